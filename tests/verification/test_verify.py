"""verify() passes on clean networks, and finds each of the faults that are planted in the library or in a model."""

import copy
import re
import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from networks import UNet, convolutional, images, plain, randomize
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.engine.facts import Facts
from lrp.engine.handlers import TABLE, sums
from lrp.engine.streams import Streams
from lrp.maps import Centred, Convolution, Fixed, Linear, LinearMap
from lrp.rules.totals import total


class Everything(nn.Module):
    """A network with something of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.second, self.layer_norm = nn.Conv2d(6, 6, 3, padding=1), nn.LayerNorm(6)
        self.gate, self.up, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = h + h * torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        h = F.avg_pool2d(h + F.hardswish(self.second(h)), 2)
        h = self.layer_norm(h.mean((2, 3)))
        return self.head(F.silu(self.gate(h)) * self.up(h))


def everything() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomize(Everything()).eval(), torch.randn(2, 2, 10, 10).double()


CLEAN: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "everything": everything,
    "plain": lambda: (plain().eval(), torch.randn(2, 1, 6, 6).double()),
    "convolutional": lambda: (convolutional(True).eval(), images().detach()),
    "unet": lambda: (randomize(UNet()).eval(), torch.randn(2, 3, 16, 16).double()),
    "float": lambda: (everything()[0].float(), everything()[1].float()),
    "one sample": lambda: (everything()[0], everything()[1][:1]),
    **{
        name: lambda name=name: (
            randomize(getattr(torchvision.models, name)(num_classes=3)).eval(), torch.randn(2, 3, 48, 48).double()
        )
        for name in ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "efficientnet_b0")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_clean_networks(name: str) -> None:
    torch.manual_seed(0)
    model, x = CLEAN[name]()
    found = lrp.verify(model, x)
    assert found.ok, str(found)
    assert not any("not compared" in note for note in found.notes), str(found)
    assert str(found).splitlines()[-1] == "lrp is right on this model, as far as was checked."


def flipped(self: Convolution, s: Tensor, w: Tensor, original: Callable[..., Tensor] = Convolution.pullback) -> Tensor:
    return original(self, s, w.flip(-1))


def louder(self: Linear, s: Tensor, make: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    return 1.01 * s @ make(w)


def mismatched(self: Convolution, x: Tensor, make: object, w: Tensor, b: Tensor | None = None) -> Tensor:
    return self.forward(x, w.abs(), b)


def doubled(
    f: LinearMap, parts: object, w: Tensor, b: Tensor | None, original: Callable[..., Tensor] = total
) -> Tensor:
    return 1.5 * original(f, parts, w, b)


def halved(self: sums.SumRelevance, a: Tensor, b: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    return R.expand_as(a + b) / 2, R.expand_as(a + b) / 2


def scaled(self: Fixed, s: Tensor, original: Callable[..., Tensor] = Fixed._transpose) -> Tensor:
    return 0.9 * original(self, s)


def uncentred(self: Centred, x: Tensor) -> Tensor:
    return x


def unscaled(
    self: Streams, call: object, x: Tensor, scale: Tensor, shift: Tensor, z: Tensor,
    original: Callable[..., Tensor] = Streams.merge, **facts: object,
) -> Tensor:  # fmt: skip
    return original(self, call, x, None if scale is None else scale.abs(), shift, z, **facts)


_stale: dict[object, tuple[Tensor, Tensor]] = {}


def stale(make: Callable[[Tensor], Tensor], w: Tensor, near: object = None) -> Tensor:
    """What was made of a weight when it was seen first; it is held, so that no other has its memory."""
    return _stale.setdefault((make, w.data_ptr(), w.shape), (w, make(w)))[1]


ACTIVATION = "lrp.engine.handlers.activations.unchanged"
PLANTS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a wrong transpose": lambda patch: patch.setattr(Convolution, "pullback", flipped),
    "a lost gate": lambda patch: patch.setattr(Facts, "weighs", property(lambda self: False)),
    "a missing rule": lambda patch: patch.delitem(TABLE, F.silu),
    "a stale weight": lambda patch: patch.setattr("lrp.maps.linear_maps.modified", stale),
    "a deviation with relevance": lambda patch: patch.setitem(TABLE, F.layer_norm, lambda s, call: s.follow(call)),
    "an activation's gradient": lambda patch: patch.setattr(ACTIVATION, lambda s, call, x, *_, **__: s.follow(call)),
    "a batch norm's sign": lambda patch: patch.setattr(Streams, "merge", unscaled),
    "halves of a sum": lambda patch: patch.setattr(sums.SumRelevance, "_shares", halved),
    "a pool that loses": lambda patch: patch.setattr(Fixed, "_transpose", scaled),
    "a layer that creates": lambda patch: patch.setattr(Linear, "pullback_modified", louder),
    "a norm that is not centred": lambda patch: patch.setattr(Centred, "_centre", uncentred),
    "z+ of weights of both signs": lambda patch: patch.setattr(Convolution, "forward_modified", mismatched),
    "a bias that is counted twice": lambda patch: patch.setattr("lrp.rules.rule.total", doubled),
}
FAULTS = {
    "a wrong transpose": "form is not the detached gradient",
    "a lost gate": "form is not the detached gradient",
    "a missing rule": "no rule for the relevance of silu",
    "a stale weight": "weights that were changed are not seen",
    "a deviation with relevance": "form is not the detached gradient",
    "an activation's gradient": "form is not the detached gradient",
    "a batch norm's sign": "form is not the detached gradient|two forms differ",
    "halves of a sum": "the map in relevance form is not the detached gradient",
    "a pool that loses": "the map in relevance form is not the detached gradient",
    "a layer that creates": "is not the detached gradient",
    "a norm that is not centred": "is not the detached gradient",
    "z+ of weights of both signs": "does not hand on by z[+] what it gets",
    "a bias that is counted twice": "does not hand on by z[+] what it gets",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = everything()
    with torch.no_grad():
        model.norm.weight[::2] *= -1
    _stale.clear()
    PLANTS[fault](monkeypatch)
    found = lrp.verify(model, x)
    assert not found.ok
    assert re.search(FAULTS[fault], str(found)), str(found)
    assert str(found).splitlines()[-1] == "Do not trust its maps yet."


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return 3 * g


class Own(nn.Module):
    """A model with a mistake, or a habit, of its own."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 5), nn.Linear(5, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.between(self.first(x))))


@pytest.mark.parametrize(
    ("between", "problem"),
    [
        (Wrong.apply, "is not that of its output, by finite differences"),
        (lambda t: t - t.mean(0), "depends on the others in its batch"),
        (lambda t: torch.fft.rfft(t).abs().repeat(1, 2)[:, :5], "there is no rule for the relevance of fft_rfft"),
    ],
)
def test_what_a_model_does_itself(between: Callable[[Tensor], Tensor], problem: str) -> None:
    torch.manual_seed(0)
    found = lrp.verify(Own(between).eval(), torch.randn(3, 4))
    assert any(problem in text for text in found.problems), str(found)


def test_a_model_that_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = everything()

    def changing(m: nn.Module, *args: object, **kwargs: object) -> None:
        m.norm.running_mean += 1
        m.first.register_forward_hook(lambda *_: None)
        torch.rand(1)

    monkeypatch.setattr(sys.modules["lrp.verification.verify"], "explain", changing)
    found = lrp.verify(copy.deepcopy(model), x)
    expected = "explaining changed norm.running_mean", "explaining changed the hooks of first", "explaining drew"
    assert [any(text.startswith(start) for text in found.problems) for start in expected] == [True] * 3


def test_it_does_not_raise() -> None:
    model, x = everything()
    found = lrp.verify(model, x[:, :1])
    assert any("RuntimeError" in problem for problem in found.problems)
    assert not lrp.verify(model, x * float("nan")).ok


def test_nor_by_an_error_without_words() -> None:
    def between(t: Tensor) -> Tensor:
        raise AssertionError

    assert "explaining raises AssertionError" in lrp.verify(Own(between), torch.randn(2, 4)).problems


def test_a_model_that_is_steep_and_bent() -> None:
    found = lrp.verify(Own(lambda t: 1e3 * (t * t * t + 1e6)), torch.randn(2, 4))
    assert not any("finite differences" in problem for problem in found.problems), str(found)


def test_the_model_is_untouched() -> None:
    model, x = everything()
    before = copy.deepcopy(model.state_dict())
    lrp.verify(model, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_target_and_further_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"a": self.layer(x) * scale, "b": x}

    found = lrp.verify(Two(), torch.randn(2, 4), lambda out: out["a"][:, 1], forward_kwargs={"scale": 2.0})
    assert found.ok, str(found)
    assert any("TypeError" in problem for problem in lrp.verify(Two(), torch.randn(2, 4)).problems)


def test_a_gate_of_the_shape_of_what_it_weighs() -> None:
    found = lrp.verify(Own(lambda t: t * torch.sigmoid(t.mean(1, keepdim=True)).expand_as(t)), torch.randn(2, 4))
    assert found.ok, str(found)
    assert found.notes == ["conservation: no theorem promises it here"] or not found.notes


def test_what_could_not_be_compared_is_noted() -> None:
    found = lrp.verify(Own(lambda t: t.cumsum(1)), torch.randn(2, 4))
    assert found.notes
    assert "not compared with a detached gradient: cumsum" in str(found)
