"""``lrp.explain`` is the drop-in way in one line, of any model, which it leaves as it was."""

import copy
from collections import UserDict, namedtuple
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from networks import convolutional, error, images, randomize
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Epsilon, Gamma, Gradient, ZPlus

RULES = {
    "epsilon": Epsilon(0.1),
    "zplus": ZPlus(),
    "epsilon_plus_flat": "epsilon_plus_flat",
    "gamma": Gamma(0.25),
    "gradient": "gradient",
    "guided_backprop": "guided_backprop",
}


class Two(nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(F.relu(self.a(a) + scale * self.b(b)))


class Text(nn.Module):
    """A model of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(10, 6), nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embed(ids)
        h = h if attention_mask is None else h * attention_mask.unsqueeze(-1)
        return self.head(F.relu_(self.conv(h.transpose(1, 2))).mean(2))


def by_hand(model: nn.Module, x: Tensor, rule: object, target: int, form: str) -> Tensor:
    """The drop-in way."""
    x = x.detach().requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=rule, form=form)
    start = torch.zeros_like(y)
    start[:, target] = y.detach()[:, target]
    return torch.autograd.grad(y, x, start)[0]


@pytest.mark.parametrize("form", [None, "relevance", "gradient"])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_drop_in_way(rule: str, form: str | None) -> None:
    model, x = convolutional(True), images().detach()
    is_multiplicative = rule not in ("gradient", "guided_backprop")
    if form == "gradient" and not is_multiplicative:
        with pytest.raises(ValueError, match="form='gradient'"):
            lrp.explain(model, x, 1, rule=RULES[rule], form=form)
        return
    e = lrp.explain(model, x, 1, rule=RULES[rule], form=form)
    assert e.form == (form or ("gradient" if is_multiplicative else "relevance"))
    assert error(e.relevance, by_hand(model, x, RULES[rule], 1, e.form)) < 1e-12
    assert torch.equal(e.output, model(x))
    assert torch.equal(e.initial_relevance, model(x)[:, 1])
    assert (len(e), e.target.tolist()) == (len(x), [1] * len(x))


def test_the_model_is_left_as_it_was() -> None:
    model, x = convolutional(True).train(), images().detach()
    model.register_forward_hook(lambda module, args, output: None)
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    hooks = [dict(m._forward_hooks) for m in model.modules()]
    with pytest.warns(lrp.RelevanceWarning, match="training mode") as told:
        lrp.explain(model, x, layers="*")
    assert told[0].filename == __file__
    with pytest.warns(lrp.RelevanceWarning), pytest.raises(ValueError, match="must be from -"):
        lrp.explain(model, x, 99)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_may_be_switched_off_outside(around: object) -> None:
    model, x = convolutional(), images().detach()
    with around():  # type: ignore[operator]
        e = lrp.explain(model, x.clone(), 0)
    assert torch.equal(e.relevance, lrp.explain(model, x, 0).relevance)
    assert not e.relevance.requires_grad
    assert not e.output.requires_grad


def test_arrays() -> None:
    model, x = convolutional().float(), images().detach().float()
    e = lrp.explain(model, x.double().numpy(), np.int64(1))
    assert torch.equal(e.relevance, lrp.explain(model, x, 1).relevance)
    assert isinstance(e.numpy(), np.ndarray)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_keyword_arguments(kind: type) -> None:
    model = randomize(Two()).double()
    a, b = torch.randn(3, 4).double(), torch.randn(3, 3).double()
    e = lrp.explain(model, kind(a=a, b=b), 2, rule=Epsilon(0.0))
    pair = lrp.explain(model, (a, b), 2, rule=Epsilon(0.0))
    assert list(e.relevance) == ["a", "b"]
    assert isinstance(pair.relevance, tuple)
    assert all(map(torch.equal, e.relevance.values(), pair.relevance))
    xs = [t.clone().requires_grad_() for t in (a, b)]
    for R, x, g in zip(pair.relevance, xs, torch.autograd.grad(model(*xs)[:, 2].sum(), xs), strict=True):
        assert error(R, x.detach() * g) < 1e-9
    assert [R.shape for R in pair.map()] == [a.shape, b.shape]


def test_further_arguments_are_not_explained() -> None:
    model = randomize(Two()).double()
    a, b = torch.randn(3, 4).double(), torch.randn(3, 3).double()
    e = lrp.explain(model, a, 2, rule=Epsilon(0.0), forward_kwargs={"b": b, "scale": 0.0})
    whole = lrp.explain(model, (a, b), 2, rule=Epsilon(0.0), forward_kwargs={"scale": 0.0})
    assert torch.equal(e.relevance, whole.relevance[0])
    parts = lrp.explain(model, a, 2, rule=Epsilon(0.0), forward_kwargs={"b": b, "scale": 0.0}, batch_size=2)
    torch.testing.assert_close(parts.relevance, e.relevance)


@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_a_layer_within_in_place_of_the_inputs(form: str) -> None:
    model, ids = randomize(Text()).double(), torch.randint(10, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])
    inputs = {"ids": ids, "attention_mask": mask}
    e = lrp.explain(model, inputs, 1, at="embed", rule=Epsilon(0.0), form=form)
    assert e.relevance.shape == (3, 7, 6)
    assert torch.equal(e.inputs, model.embed(ids))
    assert torch.equal(e.output, model(ids, mask))
    seen: list[Tensor] = []
    handle = model.embed.register_forward_hook(lambda m, args, out: seen.append(out) or out.retain_grad())
    model(ids, mask)[:, 1].sum().backward()
    handle.remove()
    assert error(e.relevance, seen[0].detach() * seen[0].grad) < 1e-9
    assert (e.relevance[1, 5:] == 0).all()


@pytest.mark.parametrize("at", ["0", "1", "3"])
def test_at_any_layer(at: str) -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 6), nn.ReLU(inplace=True)))
    model, x = nn.Sequential(*model, nn.Linear(6, 3)).double(), torch.randn(2, 4).double()
    e = lrp.explain(model, x, 0, at=at, rule=Epsilon(0.1))
    n = int(at) + 1
    rest = lrp.explain(lambda t: model[n:](t.clone()), model[:n](x).detach(), 0, rule=Epsilon(0.1))
    assert error(e.relevance, rest.relevance) < 1e-12


def test_where_it_cannot_be() -> None:
    model, ids = randomize(Text()), torch.randint(10, (3, 7))
    twice = nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer)
    x = torch.randn(2, 4)
    with pytest.raises(TypeError, match="by at='embed'"):
        lrp.explain(model, ids)
    with pytest.raises(ValueError, match="at='embedding': the model has no such module; its children are 'embed'"):
        lrp.explain(model, ids, at="embedding")
    with pytest.raises(ValueError, match="at='0': is called more than once"):
        lrp.explain(twice, x, at="0")
    model.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="at='unused': is not called"):
        lrp.explain(model, ids, at="unused")
    recurrent = nn.Sequential(nn.LSTM(4, 3))
    with pytest.raises(ValueError, match="at='0': returns a tuple"):
        lrp.explain(recurrent, x, at="0")
    assert not layer._forward_hooks
    assert not model.embed._forward_hooks


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_batches(batch_size: int) -> None:
    model, x = convolutional(True), images(5).detach()
    asked = {"rule": Epsilon(0.1), "layers": ["first"], "initial_relevance": torch.arange(5.0)}
    whole = lrp.explain(model, x, [0, 1, 2, 0, 1], **asked)
    parts = lrp.explain(model, x, [0, 1, 2, 0, 1], **asked, batch_size=batch_size, progress=True)
    for name in ("relevance", "output", "target", "initial_relevance", "layers", "inputs"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert len(parts) == 5


def test_the_best_form_is_chosen() -> None:
    model, x = convolutional(), images().detach()
    odd = nn.Sequential(nn.Conv2d(2, 3, 3), lrp.convert(torch.exp), nn.Flatten(), nn.LazyLinear(3)).double()
    odd(x)
    assert lrp.explain(model, x, rule="zplus").form == "gradient"
    assert lrp.explain(model, x, rule="zplus", layers=["first"]).form == "relevance"
    assert lrp.explain(model, x, rule=Gradient()).form == "relevance"
    assert lrp.explain(odd, x, rule="zplus").form == "relevance"
    with pytest.raises(NotImplementedError, match="exp"):
        lrp.explain(odd, x, rule="zplus", form="gradient")
    with pytest.raises(ValueError, match="form='other'"):
        lrp.explain(model, x, form="other")


def test_it_may_be_differentiated() -> None:
    model, x = convolutional(), images().detach().requires_grad_()
    e = lrp.explain(model, x, lrp.Top(2), rule=Epsilon(0.1), differentiable=True)
    assert e.form == "relevance"
    weight = model.first.weight
    (g,) = torch.autograd.grad(e.relevance.square().sum(), weight)
    step = 1e-6 * torch.randn(weight.shape, dtype=weight.dtype)
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step
        sums.append(lrp.explain(model, x, e.target, rule=Epsilon(0.1), form="relevance").relevance.square().sum())
        with torch.no_grad():
            weight -= sign * step
    torch.testing.assert_close((g * step).sum(), (sums[0] - sums[1]) / 2, rtol=1e-5, atol=0)


OUTPUTS = {
    "logits": lambda y: SimpleNamespace(logits=y, hidden=y[:, :1]),
    "out": lambda y: {"out": y, "aux": y * 2},
    "single": lambda y: (y,),
    "single among others": lambda y: {"scores": y, "names": ["a", "b"]},
    "named": lambda y: namedtuple("Out", "logits aux")(y, 2 * y),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_structured_outputs(kind: str) -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(lambda t: OUTPUTS[kind](model(t)), x, 1, rule="zplus")
    assert torch.equal(e.output, model(x))
    torch.testing.assert_close(e.relevance, lrp.explain(model, x, 1, rule="zplus").relevance)


def test_an_output_that_is_not_clear_is_listed() -> None:
    model, x = convolutional(), images().detach()
    with pytest.raises(TypeError, match=r"'a' of shape \(2, 3\), 'b' of shape \(2, 3\); choose with a function"):
        lrp.explain(lambda t: {"a": model(t), "b": 2 * model(t)}, x)
    with pytest.raises(TypeError, match=r"of torch\.int64"):
        lrp.explain(lambda t: model(t).argmax(1), x)


def test_devices_and_inputs_that_do_not_fit() -> None:
    model, x = convolutional(), images().detach()
    with pytest.raises(ValueError, match="inputs= are on meta and the model on cpu"):
        lrp.explain(model, x.to("meta"))
    with pytest.raises(TypeError, match="inputs= is a list"):
        lrp.explain(model, [x])
    with pytest.raises(TypeError, match="inputs= is a str"):
        lrp.explain(model, "cat.png")
    with pytest.raises(ValueError, match="'input' is not finite"):
        lrp.explain(nn.Linear(2, 2), torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="batch_size=0"):
        lrp.explain(model, x, batch_size=0)
    with pytest.raises(ValueError, match="rule='epsilom'"):
        lrp.explain(model, x, rule="epsilom")


def test_a_model_whose_forward_was_replaced() -> None:
    model, x = convolutional(), images().detach()
    expected = lrp.explain(model, x, 0, rule="zplus").relevance
    model.forward = MethodType(type(model).forward, model)
    assert torch.equal(lrp.explain(model, x, 0, rule="zplus").relevance, expected)
    with pytest.raises(TypeError, match="forward was replaced"):
        lrp.explain(model, x, 0, layers=["first"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes(dtype: torch.dtype) -> None:
    model, x = convolutional(True), images().detach()
    expected = lrp.explain(model, x, 0).relevance
    e = lrp.explain(copy.deepcopy(model).to(dtype), x.to(dtype), 0)
    assert e.relevance.dtype == dtype
    assert error(e.relevance.double(), expected) < 0.1
    assert e.numpy().dtype in (np.float16, np.float32)


def test_autocast_and_channels_last() -> None:
    model, x = convolutional(True).float(), images().detach().float()
    expected = lrp.explain(model, x, 0).relevance
    with torch.autocast("cpu", torch.bfloat16):
        assert error(lrp.explain(model, x, 0).relevance, expected) < 0.1
    last = lrp.explain(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), 0)
    assert error(last.relevance, expected) < 1e-4


def test_rules_are_shown_and_decided_from_the_calls() -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(model, x)
    assert type(e.rule) is lrp.composites.EpsilonPlusFlat
    assert repr(e.rules["first"]) == "Flat()"
    assert lrp.explain(nn.Linear(3, 2), torch.randn(2, 3)).rule == Epsilon(0.25, relative=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    functional = lrp.explain(lambda t: F.conv2d(t, weight).flatten(1), x)
    assert type(functional.rule) is lrp.composites.EpsilonPlusFlat
    unused = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double()
    unused.conv = nn.Conv2d(1, 1, 1)
    unused.forward = MethodType(lambda self, t: self[1](self[0](t)), unused)
    assert lrp.explain(unused, images(size=6).detach()).rule == Epsilon(0.25, relative=True)


class Spelled(nn.Module):
    """Attention, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((F.softmax(q @ k.mT, -1) @ v).mean(1))


@pytest.mark.parametrize("model", [nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), Spelled()])
@pytest.mark.filterwarnings("ignore::lrp.RelevanceWarning")
def test_attention_is_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(NotImplementedError, match="rule='auto': the model has attention"):
        lrp.explain(model.eval(), torch.randn(2, 3, 4), lambda y: y.flatten(1)[:, 0])


class Named(nn.Module):
    """A model that gives an object, and tensors in a named tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> SimpleNamespace:
        y = self.layer(x)
        return SimpleNamespace(pair=Pair(y, 2 * y))


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_a_model_gives_is_shown_without_its_graph(batch_size: int | None) -> None:
    model, x = Named(), torch.randn(4, 4)
    e = lrp.explain(lambda t: model(t).pair, x, lambda pair: pair.a[:, 1], batch_size=batch_size)
    assert isinstance(e.output, Pair)
    torch.testing.assert_close(e.output, model(x).pair, check_dtype=True)
    assert not e.output.a.requires_grad
    whole = lrp.explain(model, x, lambda out: out.pair.a[:, 1])
    assert not whole.output.pair.b.requires_grad
    parts = lrp.explain(model, x, lambda out: out.pair.a[:, 1], batch_size=3)
    assert [len(part.pair.a) for part in parts.output] == [3, 1]
