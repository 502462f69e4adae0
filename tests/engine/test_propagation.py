"""Whole networks: relevance against theorems, through every kind of module between the layers."""

import copy
import gc
from collections.abc import Callable
from itertools import pairwise

import networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import error, gradient_times_input, relevance
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.engine.backward import propagation
from lrp.rules import Epsilon, Rule

LRP0 = Epsilon(1e-16)
RULES = [key for key, rule in lrp.rules.KEYS.items() if not rule.needs_pattern]


@pytest.mark.parametrize("inplace", [False, True])
def test_epsilon_to_zero_is_gradient_times_input(inplace: bool) -> None:
    model, x = networks.convolutional(inplace), networks.images()
    assert error(relevance(model, x, LRP0), gradient_times_input(model, x)) < 1e-8


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5), bias=st.booleans(), inplace=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_epsilon_to_zero_on_drawn_relu_networks(sizes: list[int], bias: bool, inplace: bool, seed: int) -> None:
    layers = [m for i, o in pairwise(sizes) for m in (lrp.Linear(i, o, bias), nn.BatchNorm1d(o), nn.ReLU(inplace))]
    model = networks.randomize(lrp.Sequential(*layers, lrp.Linear(sizes[-1], 2)), seed)
    x = torch.randn(3, sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    expected = gradient_times_input(model, x)
    assert (relevance(model, x, LRP0) - expected).abs().max() < 1e-8 * max(expected.abs().max(), 1e-3)


def test_gradient_is_the_plain_gradient() -> None:
    model, x = networks.convolutional(), networks.images()
    y = model(x, explain=True, rule="gradient")
    (explained,) = torch.autograd.grad(y[:, 0].sum(), x)
    assert error(explained, torch.autograd.grad(model(x)[:, 0].sum(), x)[0]) < 1e-14


@pytest.mark.parametrize(
    "rule", [*RULES, Epsilon(0.0), lrp.rules.ZBox(-3, 3), lrp.rules.AlphaBeta(2, 1, conserve=True)]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_output_is_exactly_the_plain_one(rule: str | Rule, inplace: bool) -> None:
    model, x = networks.convolutional(inplace), networks.images()
    assert torch.equal(model(x, explain=True, rule=rule), model(x))


@pytest.mark.parametrize("rule", [*RULES, LRP0])
def test_operations_in_place_change_nothing(rule: str | Rule) -> None:
    x = networks.images()
    maps = [relevance(networks.convolutional(inplace), x, rule) for inplace in (False, True)]
    assert error(*maps) < 1e-12


@pytest.mark.parametrize(
    "rule",
    [
        Epsilon(0.0, bias="ignore"),
        lrp.rules.Gamma(0.25, epsilon=0.0, bias="ignore"),
        lrp.rules.ZPlus(epsilon=0.0, bias="ignore"),
        lrp.rules.AlphaBeta(2, 1, conserve=True, epsilon=0.0),
    ],
)
def test_every_layer_conserves_without_bias(rule: Rule) -> None:
    model, x = networks.convolutional(), networks.images()
    with torch.no_grad():  # what a batch norm on its own adds to a zero is nobody's share
        model.alone.running_mean.zero_()
        model.alone.bias.zero_()
    y = model(x, explain=True, rule=rule)
    start = networks.first_output(y)
    with lrp.trace.record() as relevances:
        (explained,) = torch.autograd.grad(y, x, start)
    # what reaches the inner layers of the block is a part of the whole: the input has it all again
    for total in (explained.sum((1, 2, 3)), relevances["more.0"].sum((1, 2, 3)), relevances["last"].sum(1)):
        assert torch.allclose(total, start.sum(1), rtol=1e-10, atol=0)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(torch.relu(self.layer(x)))))


@pytest.mark.parametrize("rule", [*RULES, LRP0])
def test_a_reused_layer_is_as_good_as_three(rule: str | Rule) -> None:
    reused = networks.randomize(lrp.Sequential(Reused()))
    layers = [copy.deepcopy(reused[0].layer) for _ in range(3)]
    unrolled = lrp.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    assert error(relevance(reused, x, rule), relevance(unrolled, x, rule)) < 1e-12


def test_two_forwards_before_the_backwards() -> None:
    model, a, b = networks.convolutional(), networks.images(seed=1), networks.images(seed=2)
    y_a = model(a, explain=True, rule="epsilon")
    y_b = model(b, explain=True, rule="alpha2beta1")
    explained_b = torch.autograd.grad(y_b, b, networks.first_output(y_b))[0]
    explained_a = torch.autograd.grad(y_a, a, networks.first_output(y_a))[0]
    assert torch.equal(explained_a, relevance(model, a, "epsilon"))
    assert torch.equal(explained_b, relevance(model, b, "alpha2beta1"))


def test_each_sample_is_explained_by_itself() -> None:
    model, x = networks.convolutional(), networks.images(3)
    for rule in RULES:
        alone = [relevance(model, x[i : i + 1].detach().requires_grad_(), rule) for i in range(3)]
        assert error(relevance(model, x, rule), torch.cat(alone)) < 1e-12


def test_a_rule_of_ones_own() -> None:
    class Uniform(Rule):
        def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
            ones = torch.ones_like(w)
            return f.pullback(R / f.forward(torch.ones_like(x), ones), ones)

    model, x = networks.plain(), networks.images(channels=1, size=6)
    assert error(relevance(model, x, Uniform()), relevance(model, x, lrp.rules.Flat(epsilon=0.0))) < 1e-12


MODULES: dict[str, Callable[[], nn.Module]] = {
    **{name: getattr(nn, name) for name in ["ReLU", "ReLU6", "LeakyReLU", "ELU", "GELU", "SiLU", "Hardswish", "Tanh"]},
    **{name: getattr(nn, name) for name in ["Sigmoid", "Hardsigmoid", "Softplus", "PReLU", "Mish", "CELU", "SELU"]},
    **{name: getattr(nn, name) for name in ["Hardtanh", "RReLU", "Softsign", "LogSigmoid", "Hardshrink", "Identity"]},
    **{name: getattr(nn, name) for name in ["Softshrink", "Tanhshrink", "Dropout", "Dropout2d", "AlphaDropout"]},
    "Threshold": lambda: nn.Threshold(0.1, 0.0),
    "AvgPool2d": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(3),
    "MaxPool2d": lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(3),
    "Flatten": lambda: nn.Flatten(2),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(2),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha2beta1"])
def test_torch_modules_between_lrp_layers(name: str, rule: str) -> None:
    """The same values, and relevance without a warning."""
    model = networks.randomize(lrp.Sequential(lrp.Conv2d(2, 4, 3), MODULES[name]()))
    x = networks.images(size=8)
    y = model(x, explain=True, rule=rule, strict=True)
    assert torch.equal(y, model(x))
    (explained,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert explained.isfinite().all()
    assert explained.abs().max() > 0


@pytest.mark.filterwarnings("ignore:in training mode is this Sequential:lrp.RelevanceWarning")
@pytest.mark.parametrize("name", ["ReLU", "Tanh", "GELU", "Hardswish", "Sigmoid", "Dropout"])
def test_activations_pass_relevance_unchanged(name: str) -> None:
    x = networks.images()
    R = torch.rand_like(x)
    y = lrp.Sequential(getattr(nn, name)())(x, explain=True)
    assert torch.equal(torch.autograd.grad(y, x, R)[0], R)


def test_average_pool_shares_in_proportion_to_the_values() -> None:
    x = networks.images(size=6)
    y = lrp.AvgPool2d(2)(x, explain=True, rule=LRP0)
    R = torch.rand_like(y)
    explained = torch.autograd.grad(y, x, R)[0]
    assert error(explained, x.detach() / 4 * (R / y.detach()).repeat_interleave(2, 2).repeat_interleave(2, 3)) < 1e-10


def test_average_pool_with_flat_shares_equally() -> None:
    x = networks.images(size=6)
    y = lrp.AvgPool2d(2)(x, explain=True, rule=lrp.rules.Flat(epsilon=0.0))
    R = torch.rand_like(y)
    assert error(torch.autograd.grad(y, x, R)[0], R.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4) < 1e-12


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rule", [*RULES, LRP0])
def test_a_batch_norm_merges_with_the_layer_before_it(transposed: bool, groups: int, rule: str | Rule) -> None:
    conv_class = nn.ConvTranspose2d if transposed else nn.Conv2d
    pair = networks.randomize(lrp.Sequential(conv_class(4, 6, 3, groups=groups), nn.BatchNorm2d(6)))
    conv, norm = copy.deepcopy(pair[0]), pair[1]
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    grouped = (groups, 1, 6 // groups, 1, 1) if transposed else (groups, 6 // groups, 1, 1, 1)
    with torch.no_grad():
        weight = conv.weight.view(groups, -1, *conv.weight.shape[1:]) * scale.view(grouped)
        conv.weight.copy_(weight.view_as(conv.weight))
        conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
    x = networks.images(channels=4, size=5)
    R = torch.rand_like(conv(x))
    maps = [torch.autograd.grad(m(x, explain=True, rule=rule), x, R)[0] for m in (pair, lrp.Sequential(conv))]
    assert error(*maps) < 1e-10


class Sums(nn.Module):
    """All the ways to write a sum of two tensors."""

    def __init__(self, spelling: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.spelling, self.left, self.right = spelling, nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(self.left(x), self.right(x))


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


SUMS = {
    "+": lambda a, b: a + b,
    "+=": _iadd,
    "add": lambda a, b: torch.add(a, b, alpha=2),
    "add_": lambda a, b: a.add_(b, alpha=2),
    "-": lambda a, b: a - b,
    "sub": lambda a, b: torch.sub(a, b, alpha=0.5),
    "constants": lambda a, b: (3 - 2 * a) + b / 4 - 1,
    "broadcast": lambda a, b: a + b[:, :1],
    "into a constant": lambda a, b: torch.zeros_like(a.detach()).add_(a).add_(b),
    "of itself": lambda a, b: a + a,
    "into a slice": lambda a, b: torch.cat([a, b], 1)[:, 1:4].add_(b),
}


@pytest.mark.parametrize("spelling", SUMS)
def test_sums_of_live_tensors_and_constants(spelling: str) -> None:
    model = networks.randomize(lrp.Sequential(Sums(SUMS[spelling])))
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.equal(model(x, explain=True, strict=True), model(x))
    assert error(relevance(model, x, LRP0), gradient_times_input(model, x)) < 1e-8


def test_a_sum_shares_in_proportion_to_its_terms() -> None:
    a, b = (torch.tensor(v, requires_grad=True) for v in ([3.0, 1.0, 0.0], [1.0, -3.0, 0.0]))
    model = lrp.Sequential(Sums(SUMS["+"]))
    model[0].left, model[0].right = nn.Identity(), nn.Identity()

    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    y = _explainable(Pair())(a, b, explain=True)
    y.backward(torch.tensor([8.0, 8.0, 8.0]))
    assert torch.allclose(a.grad, torch.tensor([6.0, -4.0, 0.0]), rtol=1e-5)
    assert torch.allclose(b.grad, torch.tensor([2.0, 12.0, 0.0]), rtol=1e-5)


def _explainable(module: nn.Module) -> nn.Module:
    """The module with the forward of lrp's layers."""

    class Explained(lrp.layers.Explainable, type(module)):  # type: ignore[misc]
        pass

    return Explained()


class Overwriting(nn.Module):
    """Overwrites what came out of a layer through other views of its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        left, right = z[:, :3], z.view(-1, 2, 3)[:, 1]
        left.mul_(3.0)
        right *= -2.0
        z[:, 5] = 0.0
        return F.relu(z, inplace=True)


def test_views_see_what_is_overwritten() -> None:
    model = networks.randomize(lrp.Sequential(Overwriting(), nn.Linear(6, 2)))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(model(x, explain=True, strict=True), model(x))
    assert error(relevance(model, x, LRP0), gradient_times_input(model, x)) < 1e-8


def test_the_output_may_be_overwritten_before_backward() -> None:
    model, x = networks.convolutional(), networks.images()
    expected = relevance(model, x)
    y = model(x, explain=True)
    start = networks.first_output(y)
    with torch.no_grad():
        y.mul_(3.0)
    assert torch.equal(torch.autograd.grad(y, x, start)[0], expected)


class Stashing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.stash = x
        return x


def test_overwriting_what_backward_needs_is_an_error() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Stashing(), nn.Linear(3, 2)))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = model(x, explain=True)
    with torch.no_grad():
        model[1].stash.zero_()
    with pytest.raises(RuntimeError, match="modified in place between the explained forward and backward"):
        y.sum().backward()


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(torch.logcumsumexp(x, -1).sigmoid() / 2)


def test_functions_without_a_rule_are_named() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Unknown()))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    listed = r"logcumsumexp \(after layer '0'\), erfinv \(after layer '0'\)"
    with pytest.warns(lrp.RelevanceWarning, match=listed):
        model(x, explain=True)
    with pytest.raises(NotImplementedError, match=listed):
        model(x, explain=True, strict=True)


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Squash.apply(x)


def test_a_custom_autograd_function_is_named() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Custom(), nn.Linear(3, 2)))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning, match="SquashBackward"):
        y = model(x, explain=True)
    y.sum().backward()
    assert x.grad.abs().max() > 0


class Generated(nn.Module):
    """Its weight is computed from a parameter, and from a tensor that is no parameter but requires grad."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        self.b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) * 2,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a * torch.sigmoid(self.a) + self.b[0])


def test_weights_that_are_computed_are_constants() -> None:
    model = lrp.Sequential(Generated(), lrp.Linear(3, 2).double())
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = model(x, explain=True, rule=Epsilon(1e-13), strict=True)
    y.sum().backward()
    assert model[0].a.grad is None
    weight = (model[0].a * torch.sigmoid(model[0].a) + model[0].b[0]).detach()
    layer = lrp.Linear(4, 3, bias=False).double()
    layer.weight = nn.Parameter(weight)
    twin = lrp.Sequential(layer, model[1])
    assert error(relevance(model, x, "alpha2beta1"), relevance(twin, x, "alpha2beta1")) < 1e-12


def test_the_gradients_of_gradients_of_a_batch_of_outputs() -> None:
    """Autograd's vmap over the outputs: all explanations of a sample in one backward."""
    model, x = networks.convolutional(), networks.images(1)
    for rule in RULES:
        y = model(x, explain=True, rule=rule)
        starts = torch.eye(3, dtype=torch.float64)[:, None]
        together = torch.autograd.grad(y, x, starts, is_grads_batched=True, retain_graph=True)[0]
        alone = torch.stack([torch.autograd.grad(y, x, start, retain_graph=True)[0] for start in starts])
        assert error(together, alone) < 1e-12


BOUNDS = lrp.rules.ZBox(torch.linspace(-5, -3, 3, dtype=torch.float64).view(3, 1, 1, 1), 5.0)


@pytest.mark.parametrize("rule", [*RULES, LRP0, BOUNDS, lrp.rules.AlphaBeta(2, 1, conserve=True)], ids=str)
def test_large_batches_are_explained_in_parts(rule: str | Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks.plain(), networks.images(3, channels=1, size=6)
    for layer in (model, model[0], lrp.Linear(6, 4).double()):
        maps = []
        for large in (2**25, 0):
            monkeypatch.setattr(propagation, "LARGE", large)
            monkeypatch.setattr(propagation, "PART", 2 * x[0].numel() * x.element_size())
            if rule is BOUNDS and layer is model:
                continue
            maps.append(torch.autograd.grad(layer(x, explain=True, rule=rule).square().sum(), x)[0])
        assert not maps or error(*maps) < 1e-12


def test_a_rule_of_ones_own_gets_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normalized(Rule):
        def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
            return f.pullback(R / R.sum(), w)

    monkeypatch.setattr(propagation, "LARGE", 0)
    x = torch.ones(4, 3, requires_grad=True)
    lrp.functional.linear(x, torch.ones(2, 3), rule=Normalized()).sum().backward()
    assert torch.allclose(x.grad, torch.full((4, 3), 0.25))


@pytest.mark.parametrize("settings", [{}, {"rule": "epsilon_plus"}, {"rule": Epsilon(0.1), "form": "gradient"}])
def test_all_that_an_explanation_holds_is_freed_at_once(settings: dict[str, object]) -> None:
    """Nothing refers to itself: memory does not wait for the garbage collector."""
    model, x = networks.convolutional(), networks.images()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        model(x, explain=True, **settings).sum().backward()
        gc.collect()
        waiting = [o for o in gc.garbage if isinstance(o, Tensor) or type(o).__module__.startswith("lrp")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not waiting
