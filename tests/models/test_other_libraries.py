"""The same layers and networks in zennit 0.5.1 and captum 0.9: equal maps where they mean the same rule.

Where they do not, a test below shows both:

zennit
  - `Gamma` chooses its mirrored half by the sign of z alone. For non-negative inputs and z < 0 that is not
    the gamma rule of Montavon (2019), which raises the positive weights of every neuron; where z = 0 it
    drops the neuron's relevance. In a ReLU network only an output can differ: dead neurons have no
    relevance to share.
  - Every rule absorbs the bias, AlphaBeta included (b+ and b-, once each): lrp's bias="absorb". By default
    lrp's AlphaBeta ignores it, as zennit's does with zero_params="bias".
  - Average pooling has its own rule (`Norm`), whatever the rule for the linear layers. In lrp it follows
    the rules that do not look at the inputs, Flat and WSquare; so does zennit's here.
  - Without a stabiliser, a neuron that gets nothing divides 0 by 0: NaN, where lrp gives 0.

captum
  - `GammaRule` raises the weights but not the bias: x (w + gamma w+) over its sum + b. It is the gamma rule
    with set_bias_to_zero=True, lrp's bias="ignore", and non-negative inputs.
  - `Alpha1_Beta0_Rule` absorbs b, not b+: a negative bias makes the denominator smaller, or negative. It is
    z+ with set_bias_to_zero=True and non-negative inputs.
  - Both raise or keep w+ whatever the sign of the input, and so contributions that are negative.
  - `EpsilonRule` is right. There are no other rules; a map starts from the value of the target; modules
    that are not on captum's short list are refused.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zennit.composites
import zennit.rules
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, PropagationRule
from oracles import reference
from torch import Tensor, nn

import lrp
from lrp import rules

TOLERANCE = 1e-6

LAYERS = {
    "linear": lambda: (nn.Linear(7, 5), (3, 7)),
    "linear on sequences": lambda: (nn.Linear(7, 5), (2, 4, 7)),
    "conv1d": lambda: (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 9)),
    "conv2d": lambda: (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 6, 5)),
    "conv2d without bias": lambda: (nn.Conv2d(2, 3, 2, bias=False), (2, 2, 4, 4)),
    "conv2d, stride, groups": lambda: (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 6)),
    "conv2d, depthwise, dilation": lambda: (nn.Conv2d(3, 6, (2, 3), dilation=2, groups=3), (2, 3, 7, 7)),
    "conv2d, reflect": lambda: (nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 2, 4, 4)),
    "conv3d": lambda: (nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), (2, 1, 3, 4, 3)),
    "conv_transpose2d": lambda: (nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 2, 3, 3)),
}

# their rule, ours
ZENNIT = {
    "epsilon": (zennit.rules.Epsilon(0.1), rules.Epsilon(0.1)),
    "epsilon, no bias": (zennit.rules.Epsilon(0.1, zero_params="bias"), rules.Epsilon(0.1, bias="ignore")),
    "zplus": (zennit.rules.ZPlus(), rules.ZPlus()),
    "alpha2beta1": (zennit.rules.AlphaBeta(2.0, 1.0), rules.AlphaBeta(2.0, 1.0, bias="absorb")),
    "alpha2beta1, no bias": (zennit.rules.AlphaBeta(2.0, 1.0, zero_params="bias"), rules.AlphaBeta(2.0, 1.0)),
    "gamma": (zennit.rules.Gamma(0.3), rules.Gamma(0.3)),
    "zbox": (zennit.rules.ZBox(-3.0, 4.0), rules.ZBox(-3.0, 4.0)),
    "wsquare": (zennit.rules.WSquare(), rules.WSquare()),
    "flat": (zennit.rules.Flat(), rules.Flat()),
}

# and the stabiliser of average pooling
CAPTUM = {
    "epsilon": (lambda: EpsilonRule(0.1), rules.Epsilon(0.1), 1e-6),
    "gamma": (lambda: GammaRule(0.3, True), rules.Gamma(0.3, epsilon=1e-9, bias="ignore"), 1e-9),
    "zplus": (lambda: Alpha1_Beta0_Rule(True), rules.ZPlus(epsilon=1e-9, bias="ignore"), 1e-9),
    "alpha1beta0": (lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True), rules.AlphaBeta(1, 0, epsilon=1e-9), 1e-9),
}


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Head(nn.Sequential):
    """Flattens in its forward: captum refuses the module nn.Flatten."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


def mlp() -> tuple[nn.Sequential, Tensor]:
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    return nn.Sequential(*layers), torch.rand(3, 6)


def cnn() -> tuple[nn.Sequential, Tensor]:
    first = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()
    head = Head(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4))
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(2), head), torch.rand(3, 2, 12, 12)


NETWORKS = {"mlp": mlp, "cnn": cnn}

every_layer = pytest.mark.parametrize("layer", LAYERS)
every_network = pytest.mark.parametrize("network", NETWORKS)


def relevance(forward: Callable[[Tensor], Tensor], x: Tensor, R: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(forward(x), x, R)[0]


def by_lrp(model: nn.Module, x: Tensor, R: Tensor, rule: Any) -> Tensor:
    twin = lrp.Sequential(*model) if isinstance(model, nn.Sequential) else lrp.Sequential(model)
    return relevance(lambda x: twin(x, explain=True, rule=rule), x, R)


def by_zennit(model: nn.Module, x: Tensor, R: Tensor, hook: zennit.rules.Hook) -> Tensor:
    everywhere = isinstance(hook, zennit.rules.Flat | zennit.rules.WSquare)
    composite = zennit.composites.LayerMapComposite(
        [
            (zennit.composites.Linear, hook),
            (zennit.composites.AvgPool, hook if everywhere else zennit.rules.Norm()),
            (zennit.composites.Activation, zennit.rules.Pass()),
        ]
    )
    with composite.context(model):
        return relevance(model, x, R)


def by_captum(
    model: nn.Module, x: Tensor, target: Tensor, rule: Callable[[], PropagationRule], pooling: float = 1e-9
) -> Tensor:
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.rule = rule()
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            layer.rule = EpsilonRule(pooling)
    return LRP(model).attribute(x.clone().requires_grad_(), target=target)


def winner(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest outputs and where they are; all positive, as conventions for negative ones differ."""
    y = model(x).detach()
    top, target = y.max(1)
    assert (top > 0).all()
    return torch.zeros_like(y).scatter(1, target[:, None], top[:, None]), target


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@every_layer
@pytest.mark.parametrize("rule", ZENNIT)
def test_layer_equals_zennit(layer: str, rule: str) -> None:
    hook, ours = ZENNIT[rule]
    module, shape = LAYERS[layer]()
    x = torch.randn(shape)
    R = torch.randn(module(x).shape)
    assert_same(by_lrp(module, x, R, ours), by_zennit(module, x, R, hook))


@every_network
@pytest.mark.parametrize("rule", ZENNIT)
def test_network_equals_zennit(network: str, rule: str) -> None:
    hook, ours = ZENNIT[rule]
    model, x = NETWORKS[network]()
    R, _ = winner(model, x)
    assert_same(by_lrp(model, x, R, ours), by_zennit(model, x, R, hook))


@every_network
@pytest.mark.parametrize("rule", CAPTUM)
def test_network_equals_captum(network: str, rule: str) -> None:
    theirs, ours, pooling = CAPTUM[rule]
    model, x = NETWORKS[network]()
    R, target = winner(model, x)
    assert_same(by_lrp(model, x, R, ours), by_captum(model, x, target, theirs, pooling))


def neuron(*weight: float, bias: float) -> nn.Linear:
    """A layer of one neuron."""
    layer = nn.Linear(len(weight), 1)
    layer.weight.data, layer.bias.data = torch.tensor([weight]), torch.tensor([bias])
    return layer


def test_zennit_mirrors_gamma_by_the_sign_of_z_alone() -> None:
    layer, x, R = neuron(1.0, -2.0, bias=0.0), torch.tensor([[1.0, 2.0]]), torch.ones(1, 1)
    hook, ours = zennit.rules.Gamma(1.0), rules.Gamma(1.0)

    assert_same(by_lrp(layer, x, R, ours), reference.relevance(layer, reference.gamma, x, R, gamma=1.0))
    assert_same(by_lrp(layer, x, R, ours), torch.tensor([[2.0, -4.0]]) / (2 - 4))
    assert_same(by_zennit(layer, x, R, hook), torch.tensor([[1.0, -8.0]]) / (1 - 8))


def test_zennit_gamma_drops_a_neuron_at_zero() -> None:
    layer, x, R = neuron(2.0, -1.0, bias=0.0), torch.tensor([[1.0, 2.0]]), torch.ones(1, 1)
    hook, ours = zennit.rules.Gamma(1.0), rules.Gamma(1.0)

    assert_same(by_lrp(layer, x, R, ours), torch.tensor([[4.0, -2.0]]) / (4 - 2))
    assert by_zennit(layer, x, R, hook).count_nonzero() == 0


def test_zennit_absorbs_the_bias_in_alpha_beta() -> None:
    layer, x, R = neuron(1.0, -1.0, bias=2.0), torch.ones(1, 2), torch.ones(1, 1)
    hook, ours = zennit.rules.AlphaBeta(2.0, 1.0), rules.AlphaBeta(2.0, 1.0)

    assert_same(by_lrp(layer, x, R, ours), torch.tensor([[2 / 1, -1.0]]))
    assert_same(by_zennit(layer, x, R, hook), torch.tensor([[2 / (1 + 2), -1.0]]))


def test_zennit_divides_zero_by_zero() -> None:
    layer, x, R = neuron(1.0, -1.0, bias=0.0), torch.zeros(1, 2), torch.zeros(1, 1)
    assert by_lrp(layer, x, R, rules.Epsilon(0.0)).count_nonzero() == 0
    assert by_zennit(layer, x, R, zennit.rules.Epsilon(0.0)).isnan().all()


def test_captum_raises_the_weights_but_not_the_bias() -> None:
    layer, x = neuron(1.0, 2.0, bias=1.0), torch.ones(1, 2)
    z = layer(x).detach()  # what a map of captum starts from: 4
    ours, theirs = rules.Gamma(1.0), lambda: GammaRule(1.0)

    assert_same(by_lrp(layer, x, z, ours), reference.relevance(layer, reference.gamma, x, z, gamma=1.0))
    assert_same(by_lrp(layer, x, z, ours), torch.tensor([[2.0, 4.0]]) / (2 + 4 + 2) * 4)
    assert_same(by_captum(nn.Sequential(layer), x, 0, theirs), torch.tensor([[2.0, 4.0]]) / (2 + 4 + 1) * 4)


def test_captum_absorbs_a_negative_bias_in_alpha1_beta0() -> None:
    layer, x = neuron(4.0, -1.0, bias=-2.0), torch.ones(1, 2)
    z = layer(x).detach()  # 1

    assert_same(by_lrp(layer, x, z, rules.ZPlus()), reference.relevance(layer, reference.zplus, x, z))
    assert_same(by_lrp(layer, x, z, rules.ZPlus()), torch.tensor([[4.0, 0.0]]) / 4)
    theirs = by_captum(nn.Sequential(layer), x, 0, Alpha1_Beta0_Rule)
    assert_same(theirs, torch.tensor([[4.0, 0.0]]) / (4 - 2))


def test_captum_takes_signed_inputs_for_positive() -> None:
    layer, x = neuron(4.0, 1.0, -3.0, bias=0.0), torch.tensor([[1.0, -1.0, -1.0]])
    z = layer(x).detach()  # 4 - 1 + 3 = 6

    assert_same(by_lrp(layer, x, z, rules.ZPlus()), torch.tensor([[4.0, 0.0, 3.0]]) / (4 + 3) * 6)
    theirs = by_captum(nn.Sequential(layer), x, 0, Alpha1_Beta0_Rule)
    assert_same(theirs, torch.tensor([[4.0, -1.0, 0.0]]) / (4 - 1) * 6)


# The rows of the README's table "Coming from another library"


@every_network
def test_the_table_on_captum(network: str) -> None:
    model, x = NETWORKS[network]()
    x.requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=rules.Epsilon(1e-9))[:, 3]
    theirs = LRP(copy.deepcopy(model)).attribute(x.detach().clone().requires_grad_(), target=3)
    assert_same(torch.autograd.grad(y, x, y.detach())[0], theirs)

    model[0].rule = EpsilonRule(1e-1)
    theirs = LRP(copy.deepcopy(model)).attribute(x.detach().clone().requires_grad_(), target=3)
    rule = lrp.Composite({"0": rules.Epsilon(1e-1)}, default=rules.Epsilon(1e-9))
    y = lrp.convert(model)(x, explain=True, rule=rule)[:, 3]
    assert_same(torch.autograd.grad(y, x, y.detach())[0], theirs)


TABLE = {
    "EpsilonPlusFlat": (zennit.composites.EpsilonPlusFlat, "epsilon_plus_flat"),
    "NameMapComposite": (
        lambda: zennit.composites.NameMapComposite([(["0"], zennit.rules.ZPlus())]),
        lrp.Composite({"0": "zplus"}, default="gradient"),
    ),
    "LayerMapComposite": (
        lambda: zennit.composites.LayerMapComposite([(zennit.types.Convolution, zennit.rules.ZPlus())]),
        lrp.Composite({"conv": "zplus"}, default="gradient"),
    ),
    "Epsilon, Norm": (
        lambda: zennit.composites.LayerMapComposite(
            [
                (zennit.types.Linear, zennit.rules.Epsilon(1e-6)),
                (zennit.types.AvgPool, zennit.rules.Norm()),
                (zennit.types.Activation, zennit.rules.Pass()),
            ]
        ),
        lrp.Composite({"activation": rules.Pass(), "pool": rules.Epsilon(1e-6)}, default=rules.Epsilon(1e-6)),
    ),
}


@pytest.mark.parametrize("row", TABLE)
@every_network
def test_the_table_on_zennit(network: str, row: str) -> None:
    theirs, ours = TABLE[row]
    model, x = NETWORKS[network]()
    R = torch.randn(model(x).shape)
    expected = relevance(lambda x: lrp.convert(model)(x, explain=True, rule=ours), x, R)
    with theirs().context(model) as hooked:
        assert_same(expected, relevance(hooked, x, R))


@pytest.mark.parametrize("signed", [False, True])
def test_the_tables_rules_of_zennit(signed: bool) -> None:
    pairs = [
        (zennit.rules.Epsilon(1e-6), rules.Epsilon(1e-6)),
        (zennit.rules.Gamma(0.25), rules.Gamma(0.25, generalized=True)),
        (zennit.rules.AlphaBeta(2, 1), rules.AlphaBeta(2, 1, bias="absorb")),
    ]
    layer, x = nn.Linear(6, 5), torch.randn(4, 6) if signed else torch.rand(4, 6)
    for hook, ours in pairs:
        R = torch.randn(4, 5)
        assert_same(by_lrp(layer, x, R, ours), by_zennit(layer, x, R, hook))


def pytorch_lrp(layers: list[nn.Linear], x: Tensor, c: int, method: str, p: int, beta: float, epsilon: float) -> Tensor:
    """What Pytorch-LRP (moboehle/Pytorch-LRP) computes for linear layers and ReLUs, by its e-rule and b-rule."""
    inputs = [x]
    for layer in layers:
        inputs.append(layer(inputs[-1].relu() if layer is not layers[0] else inputs[-1]))
    R = torch.zeros_like(inputs[-1])
    R[:, c] = inputs[-1][:, c]
    for layer, a in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        a, w = (a.relu() if layer is not layers[0] else a)[:, None], layer.weight[None]
        if method == "e-rule":
            z = (a**p * w**p).sum(2, keepdim=True)
            R = (a**p * w**p / (z + epsilon * z.sign()) * R[:, :, None]).sum(1)
            continue
        plus, minus = (a * w).clamp(min=0), (a * w).clamp(max=0)
        z_plus, z_minus = plus.sum(2, keepdim=True), minus.sum(2, keepdim=True)
        rare = (z_plus == 0) | (z_minus == 0)
        of_plus, of_minus = torch.where(rare, 1.0, 1 + beta), torch.where(rare, 1.0, -beta)
        shares = of_plus * plus / (z_plus + epsilon) + of_minus * minus / (z_minus - epsilon)
        R = (shares * R[:, :, None]).sum(1)
    return R.detach()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_table_on_pytorch_lrp(p: int, beta: float) -> None:
    model, x = mlp()
    model[2].weight.data[0] = model[2].weight.data[0].abs()  # a rare neuron: contributions of one sign
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    x.requires_grad_()
    for method, rule in (
        ("e-rule", rules.Epsilon(1e-3, exponent=p, bias="ignore")),
        ("b-rule", rules.AlphaBeta(1 + beta, beta, conserve=True)),
    ):
        y = lrp.convert(model)(x, explain=True, rule=rule)[:, 2]
        ours = torch.autograd.grad(y, x, y.detach())[0]
        epsilon = 1e-3 if method == "e-rule" else 1e-6
        assert_same(ours, pytorch_lrp(layers, x.detach(), 2, method, p, beta, epsilon))


def test_the_table_on_torchlrp() -> None:
    """TorchLRP's calls, as its README has them."""
    model = lrp.Sequential(
        lrp.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten(), lrp.Linear(1568, 10)
    )
    x = torch.rand(2, 1, 14, 14, requires_grad=True)
    y_hat = model.forward(x, explain=True, rule="alpha2beta1")
    y_hat = y_hat[torch.arange(2), y_hat.max(1)[1]]
    y_hat.sum().backward()
    assert x.grad.shape == x.shape
