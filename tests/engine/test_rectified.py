"""A rectifier in place overwrites a layer's output where nothing comes back: the map is that of one that does not."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from networks import error, relevance
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.engine.backward.kept import Keeper
from lrp.rules import AlphaBeta, Epsilon, Gamma, Rule, ZPlus

Forward = Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], Tensor]


class Model(nn.Module):
    """Two layers, and between them what a test says, of the first and of a rectifier."""

    def __init__(self, between: Forward, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, 2, 3)
        self.between, self.relu = between, relu

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, x, self.relu))


def after_norm(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    return relu(model.norm(model.conv(x)))


def after_layer(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    return relu(model.conv(x))


def twice(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    return relu(relu(model.norm(model.conv(x)))) * 2.0


def used_before(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = model.norm(model.conv(x))
    mean = y.mean((2, 3), keepdim=True)
    return relu(y) + mean


def used_in_part(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = model.norm(model.conv(x))
    rows = y[:, :, :1].clone()
    return relu(y) + rows


def layer_used_beside_its_norm(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = model.conv(x)
    normed = model.norm(y)
    return relu(y) + normed


def hooked(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = model.norm(model.conv(x))
    y.register_hook(lambda g: g + 0.5)
    return relu(y)


def through_a_view(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = model.norm(model.conv(x))
    return relu(y.flatten(1)).view(y.shape)


def moved(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    return relu(model.norm(model.conv(x)).transpose(2, 3).contiguous())


def written_after(model: nn.Module, x: Tensor, relu: Callable[[Tensor], Tensor]) -> Tensor:
    y = relu(model.norm(model.conv(x)))
    y *= 2.0
    return y


@dataclass(frozen=True)
class Spread(Epsilon):
    """A rule of one's own, which looks at all outputs at once."""

    def damp(self, g: Tensor, z: Tensor) -> Tensor:
        return g * z.std()

    @property
    def damps(self) -> bool:
        return True


@dataclass(frozen=True)
class Leaky(Rule):
    """A rule of one's own for activations, which gives something where the output is zero."""

    def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
        return x * self.gradient_form(f, x, w, b, z, R)

    def gradient_form(self, f, x, w, b, z, g):  # type: ignore[no-untyped-def]
        return g


RULES = {
    "epsilon 0": Epsilon(0.0),
    "epsilon": Epsilon(0.1),
    "relative": Epsilon(0.25, relative=True),
    "ignore": Epsilon(0.1, bias="ignore"),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25, generalized=True),
    "alpha2beta1": AlphaBeta(2, 1, bias="absorb"),
    "conserve": AlphaBeta(2, 1, conserve=True),
    "of one's own": Spread(0.0),
    "of activations": lrp.Composite({"relu": Leaky()}, default=Epsilon(0.1)),
}
FORWARDS = [
    after_norm, after_layer, twice, used_before, used_in_part, layer_used_beside_its_norm, hooked, through_a_view,
    moved, written_after,
]  # fmt: skip


def models(forward: Forward) -> tuple[nn.Module, nn.Module]:
    """The model with a rectifier in place, and with another that has new memory."""
    torch.manual_seed(0)
    inplace = Model(forward, lambda t: F.relu(t, inplace=True)).double().eval().requires_grad_(False)
    inplace.norm.running_mean.uniform_(-1, 1)
    new = Model(forward, lambda t: F.relu(t)).double().eval().requires_grad_(False)
    new.load_state_dict(inplace.state_dict())
    return inplace, new


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("forward", FORWARDS)
def test_it_may_work_in_place(forward: Forward, rule: str) -> None:
    inplace, new = models(forward)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    expected = relevance(lrp.convert(new), x, rule=RULES[rule], form="gradient")
    assert error(relevance(lrp.convert(inplace), x, rule=RULES[rule], form="gradient"), expected) < 1e-12


@pytest.mark.parametrize(("rule", "copies"), [("epsilon", 0), ("zplus", 0), ("relative", 1)])
def test_nothing_is_copied_for_it(rule: str, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rescue, copied = Keeper.rescue, []
    monkeypatch.setattr(Keeper, "rescue", lambda *args: (copied.append(rescue(*args)), copied[-1])[1])
    x, counts = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True), []
    for model in models(after_norm):
        copied.clear()
        lrp.convert(model)(x, explain=True, rule=RULES[rule], form="gradient")
        counts.append(sum(t is not None for t in copied))
    assert counts[0] - counts[1] == copies


def test_what_others_write_later_is_an_error() -> None:
    inplace, _ = models(after_norm)
    seen: list[Tensor] = []
    inplace.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    y = lrp.convert(inplace)(x, explain=True, rule="zplus", form="gradient")
    seen[0].zero_()
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()
