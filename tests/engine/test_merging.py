"""A layer stays a layer through identities; a scale and shift of each channel belong to it, however spelled."""

from collections.abc import Callable
from functools import partial

import networks
import pytest
import torch
from networks import error
from spellings import CONV, IMAGES, NORM, SCALE, SHIFT, Function, draw, explained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lrp
from lrp.rules import AlphaBeta, Epsilon, Gamma, Rule

W, W2 = draw(5, 3), draw(4, 5, seed=2)


MERGING_RULES = ["zplus", "gamma", "alpha2beta1", Epsilon(0.1), "epsilon_plus_flat", Gamma(0.25, bias="ignore")]
ALL_RULES = [
    *MERGING_RULES,
    "flat",
    "wsquare",
    "gradient",
    Epsilon(0.1, bias="distribute"),
    AlphaBeta(2, 1, conserve=True),
]


def merged(x: Tensor) -> Tensor:
    return NORM(CONV(x)).relu()


def channels(v: Tensor) -> Tensor:
    return v[:, None, None]


def looked_at(look: Callable[[Tensor], object]) -> Function:
    def same(y: Tensor) -> Tensor:
        look(y)
        return y

    return same


IDENTITIES: dict[str, Function] = {
    "clone": Tensor.clone,
    "cat of one": lambda y: torch.cat([y]),
    "where, of the same": lambda y: torch.where(torch.tensor(True), y, y),
    "clone to channels last": lambda y: y.clone(memory_format=torch.channels_last),
    "contiguous": Tensor.contiguous,
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "dropout": lambda y: F.dropout(y, 0.5, False),
    "dropout module": nn.Dropout2d(0.3).eval(),
    "dropout in place": lambda y: F.dropout(y, 0.5, False, True),
    "dropout module in place": nn.Dropout(0.3, inplace=True).eval(),
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.5, False),
    "identity": nn.Identity(),
    "no layers": nn.Sequential(),
    "view": lambda y: y.view(y.shape),
    "reshape": lambda y: y.reshape(y.shape),
    "view_as": lambda y: y.view_as(y),
    "expand_as": lambda y: y.expand_as(y),
    "to": lambda y: y.to(y.dtype),
    "to channels last": lambda y: y.to(memory_format=torch.channels_last),
    "double": Tensor.double,
    "type": lambda y: y.type(y.dtype),
    "type_as": lambda y: y.type_as(y),
    "cpu": Tensor.cpu,
    "positive": lambda y: +y,
    "ellipsis": lambda y: y[...],
    "slices": lambda y: y[:, :, :, :],
    "narrow": lambda y: y.narrow(0, 0, 2),
    "permute": lambda y: y.permute(0, 1, 2, 3),
    "twice transposed": lambda y: y.transpose(1, 3).transpose(1, 3),
    "squeezed": lambda y: y.unsqueeze(0).squeeze(0),
    "flattened": lambda y: y.flatten(2).unflatten(2, (4, 4)),
    "one part": lambda y: y.split(4, 1)[0],
    "no padding": lambda y: F.pad(y, (0, 0)),
    "copied": lambda y: torch.empty_like(y).copy_(y),
    "times 1": lambda y: y * 1,
    "plus 0": lambda y: y + 0,
    "over ones": lambda y: y / torch.ones(4, 1, 1, dtype=torch.float64),
    "checkpoint": lambda y: checkpoint(Tensor.clone, y, use_reentrant=False),
    "printed": looked_at(str),
    "read": looked_at(lambda y: y.sum().item()),
    "read by numpy": looked_at(lambda y: y.detach().numpy().sum()),
    "data": looked_at(lambda y: y.data),
    "retain_grad": looked_at(Tensor.retain_grad),
    "hook": looked_at(lambda y: y.register_hook(lambda R: None)),
    "requires_grad_": lambda y: y.requires_grad_(),
}


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_layer_stays_a_layer_through_an_identity(name: str, rule: Rule | str) -> None:
    actual = explained(lambda x: NORM(IDENTITIES[name](CONV(x))).relu(), IMAGES, rule)
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-10


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "returns": lambda m: m.register_forward_hook(lambda module, args, output: output),
    "clones": lambda m: m.register_forward_hook(lambda module, args, output: output.clone()),
    "before": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0].clone(),)),
    "backward": lambda m: m.register_full_backward_hook(lambda module, into, out: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda module, out: None),
}


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("hooked", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", HOOKS)
def test_a_layer_stays_a_layer_through_module_hooks(name: str, hooked: tuple[int, ...], rule: Rule | str) -> None:
    modules = [CONV, NORM]
    handles = [HOOKS[name](modules[i]) for i in hooked]
    try:
        actual = explained(merged, IMAGES, rule)
    finally:
        for handle in handles:
            handle.remove()
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-10


def augmented(y: Tensor) -> Tensor:
    y *= channels(SCALE)
    y += channels(SHIFT)
    return y


SPELLINGS: dict[str, Function] = {
    "x s + t": lambda y: y * channels(SCALE) + channels(SHIFT),
    "t + s x": lambda y: channels(SHIFT) + channels(SCALE) * y,
    "four dimensions": lambda y: y * channels(SCALE)[None] + channels(SHIFT)[None],
    "expanded": lambda y: y * channels(SCALE).expand(4, 4, 4) + channels(SHIFT).expand_as(y),
    "subtract expanded": lambda y: (y - channels(-SHIFT / SCALE).expand(4, 4, 4)) * channels(SCALE),
    "divided": lambda y: y / channels(1 / SCALE) + channels(SHIFT),
    "divided by expanded": lambda y: y / channels(1 / SCALE).expand_as(y) + channels(SHIFT),
    "t - x s": lambda y: channels(SHIFT) - y * channels(-SCALE),
    "rsub": lambda y: torch.rsub(y * channels(-SCALE), channels(SHIFT)),
    "negative": lambda y: -(y * channels(-SCALE) - channels(SHIFT)),
    "negative first": lambda y: channels(SHIFT) - (-y) * channels(SCALE),
    "shift first": lambda y: (y - channels(-SHIFT / SCALE)) * channels(SCALE),
    "alpha": lambda y: torch.add(y * channels(SCALE), channels(SHIFT / 2), alpha=2),
    "in place": lambda y: y.mul_(channels(SCALE)).add_(channels(SHIFT)),
    "augmented": augmented,
    "numbers between": lambda y: y * 2 * channels(SCALE) / 2 + channels(SHIFT) - 1 + 1,
    "by name": lambda y: torch.mul(other=channels(SCALE), input=y).add(other=channels(SHIFT)),
    "function": lambda y: F.batch_norm(y, NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias),
    "instance norm": lambda y: F.instance_norm(
        y, NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias, use_input_stats=False
    ),
    "norm and scale": lambda y: F.batch_norm(y, NORM.running_mean, NORM.running_var) * channels(NORM.weight)
    + channels(NORM.bias),
    "two norms": lambda y: F.batch_norm(
        F.batch_norm(y, torch.zeros_like(SCALE), torch.ones_like(SCALE), SCALE, eps=0.0),
        -SHIFT, torch.ones_like(SCALE), eps=0.0,
    ),
    "dropout between": lambda y: F.dropout(y * channels(SCALE), 0.1, False) + channels(SHIFT),
    "clone between": lambda y: (y * channels(SCALE)).clone().add_(channels(SHIFT)),
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last) * channels(SCALE) + channels(SHIFT),
    "permuted": lambda y: (y.permute(0, 2, 3, 1) * SCALE + SHIFT).permute(0, 3, 1, 2),
    "permuted and copied": lambda y: (y.permute(0, 2, 3, 1).contiguous() * SCALE + SHIFT).permute(0, 3, 1, 2),
    "flattened": lambda y: (y.flatten(2) * SCALE[:, None] + SHIFT[:, None]).view(y.shape),
    "rows of channels": lambda y: F.batch_norm(
        y.permute(0, 2, 3, 1).reshape(-1, 4), NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias
    ).view(2, 4, 4, 4).permute(0, 3, 1, 2),
    "parameters": lambda y: (y - NORM.running_mean.view(1, -1, 1, 1))
    / (NORM.running_var + NORM.eps).sqrt().reshape(1, -1, 1, 1)
    * nn.Parameter(NORM.weight).view(1, -1, 1, 1)
    + NORM.bias.view(1, -1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_scale_and_shift_of_each_channel_is_a_batch_norm(name: str, rule: Rule | str) -> None:
    actual = explained(lambda x: SPELLINGS[name](CONV(x)).relu(), IMAGES, rule)
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-9


FEATURES, SHIFTS = draw(5, seed=11), draw(5, seed=12)
OF_LINEAR: dict[str, Function] = {
    "vectors": lambda y: y * FEATURES + SHIFTS,
    "rows": lambda y: y * FEATURES[None] + SHIFTS[None],
    "in place": lambda y: y.mul_(FEATURES).add_(SHIFTS),
    "divided": lambda y: y / (1 / FEATURES) + SHIFTS,
    "transposed": lambda y: (y.mT * FEATURES[:, None] + SHIFTS[:, None]).mT,
    "batch norm": lambda y: F.batch_norm(
        y.reshape(-1, 5), torch.zeros(5).double(), torch.ones(5).double(), FEATURES, SHIFTS, eps=0.0
    ).view(y.shape),
}


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if r not in ("flat", "wsquare")], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)])
@pytest.mark.parametrize("name", OF_LINEAR)
def test_a_scale_and_shift_of_each_feature(name: str, shape: tuple[int, ...], rule: Rule | str) -> None:
    """Against a linear layer with the scaled weight."""
    x = draw(*shape)
    actual = explained(lambda x: F.linear(OF_LINEAR[name](F.linear(x, W, SHIFTS)).relu(), W2), x, rule)
    w, b = W * FEATURES[:, None], SHIFTS * FEATURES + SHIFTS
    x = x.clone().requires_grad_()
    y = lrp.convert(lambda x: F.linear(F.linear(x, w, b).relu(), W2))(x, explain=True, rule=rule)
    assert error(actual, torch.autograd.grad(y, x, y.detach())[0]) < 1e-9


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_norms_of_transposed_features(rule: Rule | str) -> None:
    norm = networks.randomize(nn.BatchNorm1d(5)).requires_grad_(False)
    x = draw(2, 4, 3)
    actual = explained(lambda x: norm(F.linear(x, W).transpose(1, 2)).transpose(1, 2).relu(), x, rule)
    expected = explained(lambda x: norm(F.linear(x.reshape(-1, 3), W)).view(2, 4, 5).relu(), x, rule)
    assert error(actual, expected) < 1e-10


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_unbatched_outputs(rule: Rule | str) -> None:
    actual = explained(lambda x: (CONV(x) * channels(SCALE) + channels(SHIFT)).relu(), IMAGES[0], rule)
    assert error(actual, explained(lambda x: merged(x[None])[0], IMAGES[0], rule)) < 1e-10


@pytest.mark.parametrize("rule", ["zplus", "gamma", Epsilon(0.1)], ids=str)
def test_a_constant_of_another_dimension_does_not_belong_to_the_layer(rule: Rule | str) -> None:
    """As many positions as channels: which dimension it is decides, not how long it is."""
    conv, row = networks.randomize(nn.Conv1d(2, 5, 2)), draw(5, seed=3)
    x = draw(3, 2, 6)
    actual = explained(lambda x: (conv(x) * row).relu(), x, rule)
    assert error(actual, explained(lambda x: (conv(x) * row.repeat(5, 1)).relu(), x, rule)) < 1e-10


SECOND = networks.randomize(nn.BatchNorm2d(4), seed=1).requires_grad_(False)
MORE = networks.randomize(nn.Conv2d(4, 4, 3, padding=1), seed=2).requires_grad_(False)


def before_the_write(x: Tensor) -> Tensor:
    h = CONV(x).relu()
    y = MORE(h)
    h.mul_(0.5)
    return NORM(y) + h


def written_input(x: Tensor) -> Tensor:
    h = CONV(x).clone()
    y = MORE(h)
    return NORM(y) + h.relu_()


def norm_then_relu_(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    return z + y.relu_()


def relu_then_norm(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y.relu_()
    return z + SECOND(y)


def norm_written(x: Tensor) -> Tensor:
    z = NORM(CONV(x))
    other = z.clone()
    z.relu_()
    return z + other * channels(SCALE)


def part_written(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y[:, :2].mul_(3)
    return z + y


def erased(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y.detach().zero_()
    return z


def erased_by_numpy(x: Tensor) -> Tensor:
    y = CONV(x)
    array = y.detach().numpy()
    z = NORM(y).relu()
    w = y * 2
    array[...] = 0
    return z + w


WRITES: dict[str, tuple[Function, Function]] = {
    "before the write": (before_the_write, lambda x: NORM(MORE(CONV(x).relu())) + CONV(x).relu() * 0.5),
    "written input": (written_input, lambda x: NORM(MORE(CONV(x))) + CONV(x).relu()),
    "norm, then relu_": (norm_then_relu_, lambda x: NORM(CONV(x)) + CONV(x).relu()),
    "relu_, then norm": (relu_then_norm, lambda x: NORM(CONV(x)) + SECOND(CONV(x).relu())),
    "norm written": (norm_written, lambda x: NORM(CONV(x)).relu() + NORM(CONV(x)) * channels(SCALE)),
    "part written": (
        part_written, lambda x: NORM(CONV(x)) + torch.cat([CONV(x)[:, :2] * 3, CONV(x)[:, 2:]], 1)
    ),
    "erased": (erased, lambda x: NORM(CONV(x))),
    "erased by numpy": (erased_by_numpy, lambda x: NORM(CONV(x)).relu() + CONV(x) * 2),
}  # fmt: skip


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if r != "gradient"], ids=str)
@pytest.mark.parametrize("name", WRITES)
def test_a_layer_remembers_what_it_saw(name: str, rule: Rule | str) -> None:
    """Against the layer called once for each of its uses."""
    network, expected = WRITES[name]
    assert error(explained(network, IMAGES, rule), explained(expected, IMAGES, rule)) < 1e-9


def into_a_buffer(y: Tensor) -> Tensor:
    buffer = y.new_zeros(len(y), 2 * y.shape[1], *y.shape[2:])
    buffer[:, y.shape[1] :].copy_(y)
    return buffer[:, y.shape[1] :]


def overwritten(y: Tensor) -> Tensor:
    return y.masked_fill_(torch.zeros(y.shape, dtype=torch.bool), 0.0)


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("use", [into_a_buffer, overwritten])
@pytest.mark.parametrize("name", ["clone", "identity", "cat of one"])
def test_what_is_merged_is_also_used_by_something_else(name: str, use: Function, rule: Rule | str) -> None:
    def both(x: Tensor) -> Tensor:
        y = IDENTITIES[name](CONV(x))
        return NORM(y) + use(y).relu()

    def apart(x: Tensor) -> Tensor:
        return NORM(CONV(x)) + CONV(x).relu()

    assert error(explained(both, IMAGES, rule), explained(apart, IMAGES, rule)) < 1e-10


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_a_hook_before_a_merged_function_that_overwrites(rule: Rule | str) -> None:
    mask = (draw(*CONV(IMAGES).shape[1:], seed=3) > 0).double()

    def network(x: Tensor, overwrites: bool) -> Tensor:
        y = CONV(x)
        y.register_hook(lambda R: R * mask)
        return y.add_(channels(SHIFT)) if overwrites else y + channels(SHIFT)

    expected, actual = (explained(partial(network, overwrites=o), IMAGES, rule) for o in (False, True))
    assert error(actual, expected) < 1e-10


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("made", [lambda y: (y > 0).double(), lambda y: y.detach().tanh(), lambda y: y.data + 1])
@pytest.mark.parametrize("combined", [torch.mul, torch.add])
def test_a_constant_of_the_samples_is_not_the_layers(combined: Function, made: Function, rule: Rule | str) -> None:
    def network(x: Tensor) -> Tensor:
        y = F.linear(x, W)
        return combined(y, made(y))

    x = draw(2, 3, seed=5)
    assert error(explained(network, x[:1], rule), explained(network, x, rule)[:1]) < 1e-10


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_a_hook_below_several_functions_that_are_merged(rule: Rule | str) -> None:
    mask = (draw(*CONV(IMAGES).shape[1:], seed=3) > 0).double()

    def hooked(x: Tensor) -> Tensor:
        y = CONV(x)
        y.register_hook(lambda R: R * mask)
        return y

    def together(x: Tensor) -> Tensor:
        shifted = hooked(x) + channels(SHIFT)
        return torch.cat([shifted * channels(-SCALE), shifted.tanh()])

    def apart(x: Tensor) -> Tensor:
        scaled = (hooked(x) + channels(SHIFT)) * channels(-SCALE)
        return torch.cat([scaled, (hooked(x) + channels(SHIFT)).tanh()])

    assert error(explained(together, IMAGES, rule), explained(apart, IMAGES, rule)) < 1e-10
