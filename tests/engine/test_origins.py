"""What depends on the explained inputs, what does not, and what was made where nobody saw it."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Epsilon

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Forward = Callable[["Model", Tensor], Any]


class Model(nn.Module):
    """Two layers and a token, in a forward that is given."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.token = nn.Parameter(torch.randn(1, 1, 3, dtype=torch.float64))
        self.position = nn.Parameter(torch.randn(1, 3, 3, dtype=torch.float64))
        self.norm = nn.LayerNorm(5).double()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    def gradients(self) -> list[str]:
        return [name for name, p in self.named_parameters() if p.grad is not None]


def is_same(y: Any) -> Any:
    return y


def check_parameters_stay(model: Model, get: Callable[[Any], Tensor] = is_same, **settings: Any) -> Tensor:
    """Explain the model: its input gets relevance, and its parameters get none."""
    x = X.clone().requires_grad_()
    get(lrp.convert(model)(x, explain=True, **settings)).sum().backward()
    assert x.grad is not None
    assert model.gradients() == []
    return x.grad


# 5. What lrp did not see is named, wherever it stands.


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class Reversed(torch.autograd.Function):
    """The identity, as a view, and minus the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w)
        return x @ w.t(), x.sum(1)

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_sum: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w + g_sum[:, None], g.t() @ x


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


def without_the_mode(layer: nn.Module, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        y: Tensor = layer(x)
    return y


def written_without_the_mode(h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        h.sub_(1)
    return h


UNSEEN: dict[str, Forward] = {
    "function in the middle": lambda m, x: m.b(Double.apply(m.a(x))),
    "function last": lambda m, x: Double.apply(m.b(m.a(x))),
    "function first": lambda m, x: m.b(m.a(Double.apply(x))),
    "function in one of two branches": lambda m, x: m.b(Double.apply(m.a(x))) + m.b(m.a(x)),
    "view in the middle": lambda m, x: m.b(Reversed.apply(m.a(x))),
    "view last": lambda m, x: Reversed.apply(m.b(m.a(x))),
    "view first": lambda m, x: m.b(m.a(Reversed.apply(x))),
    "view of what was written": lambda m, x: m.b(Reversed.apply(m.a(x).relu_())),
    "function of parameters last": lambda m, x: Weighted.apply(m.a(x), m.b.weight)[0],
    "function of parameters": lambda m, x: m.b(m.a(Weighted.apply(x, m.a.weight[:3])[0]).relu()),
    "function in place": lambda m, x: m.b(InPlace.apply(m.a(x))),
    "function in place last": lambda m, x: InPlace.apply(m.a(x)),
    "vmap in the middle": lambda m, x: m.b(torch.vmap(m.a)(x)),
    "vmap last": lambda m, x: torch.vmap(m.b)(m.a(x)),
    "vmap alone": lambda m, x: torch.vmap(lambda row: m.b(m.a(row)))(x),
    "mode switched off": lambda m, x: m.b(without_the_mode(m.a, x)),
    "mode switched off last": lambda m, x: without_the_mode(m.b, m.a(x)),
    "mode switched off at all": lambda m, x: without_the_mode(m.b, without_the_mode(m.a, x)),
    "function in a dict": lambda m, x: {"y": [Double.apply(m.b(m.a(x)))]},
    "function in an object": lambda m, x: SimpleNamespace(y=Double.apply(m.b(m.a(x)))),
    "function without a rule in an object": lambda m, x: SimpleNamespace(y=m.b(m.a(x)).erfinv()),
    "vmap in an object": lambda m, x: SimpleNamespace(y=torch.vmap(m.b)(m.a(x))),
}


def first_tensor(y: Any) -> Tensor:
    while not isinstance(y, Tensor):
        y = y["y"] if isinstance(y, dict) else y[0] if isinstance(y, list) else y.y
    return y


@pytest.mark.parametrize("name", UNSEEN)
def test_what_was_not_seen_is_named_and_gives_parameters_nothing(name: str) -> None:
    model = Model(UNSEEN[name])
    with pytest.warns(lrp.RelevanceWarning, match="there is no rule for the relevance of"):
        check_parameters_stay(model, first_tensor)
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of"):
        lrp.convert(model)(X.clone().requires_grad_(), explain=True, strict=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("place", ["first", "middle", "last", "alone"])
def test_a_compiled_part_is_named_and_gets_nothing(place: str) -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double())
    of_place: dict[str, Forward] = {
        "first": lambda m, x: m.b(m.a(part(x))),
        "middle": lambda m, x: m.b(m.a(part(x * x))),
        "last": lambda m, x: part(m.a(x)[:, :3]),
        "alone": lambda m, x: part(x),
    }
    with pytest.warns(lrp.RelevanceWarning, match="the autograd function"):
        check_parameters_stay(Model(of_place[place]))
    assert all(p.grad is None for p in part.parameters())


def test_the_gradients_of_ones_own_upstream_network_stay() -> None:
    """Parameters above the explained input are none of the model's: they get what the input's relevance gives them."""
    above = nn.Linear(3, 3).double()
    x = above(X)
    with pytest.warns(lrp.RelevanceWarning, match="DoubleBackward"):
        lrp.convert(Model(lambda m, x: m.b(Double.apply(m.a(x)))))(x, explain=True).sum().backward()
    assert above.weight.grad is not None


def test_a_write_that_was_seen_does_not_hide_one_that_was_not() -> None:
    """Memory is used again: what is known of a tensor that is gone says nothing of the next one in its place."""

    def forward(m: Model, x: Tensor) -> Tensor:
        for _ in range(3):
            m.a(x).relu_()  # gone at once
        h = m.a(x)
        h.detach().sub_(1)
        return m.b(h)

    with pytest.warns(lrp.RelevanceWarning, match="a write that lrp does not see"):
        check_parameters_stay(Model(forward))


def test_what_backward_needs_is_not_overwritten_unseen() -> None:
    model = Model(lambda m, x: m.b(written_without_the_mode(m.a(x))))
    with pytest.warns(lrp.RelevanceWarning, match="a write that lrp does not see"):
        y = lrp.convert(model)(X.clone().requires_grad_(), explain=True)
    with pytest.raises(RuntimeError, match="modified in place between the explained forward and backward"):
        y.sum().backward()


@dataclasses.dataclass
class Output:
    logits: Tensor
    other: Any = None


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda y: {"y": y}, lambda o: o["y"]),
    "nested": (lambda y: [{"y": (y, None)}], lambda o: o[0]["y"][0]),
    "dataclass": (Output, lambda o: o.logits),
    "dataclass in a list": (lambda y: [Output(None, {"y": y})], lambda o: o[0].other["y"]),  # type: ignore[arg-type]
    "object": (lambda y: SimpleNamespace(y=y), lambda o: o.y),
    "set": (lambda y: {y}, lambda o: next(iter(o))),
    "beside a constant": (lambda y: (torch.zeros(2), y), lambda o: o[1]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_structure(name: str) -> None:
    wrap, get = OUTPUTS[name]
    actual = check_parameters_stay(Model(lambda m, x: wrap(m.b(m.a(x)))), get, strict=True)
    assert torch.equal(actual, check_parameters_stay(Model(lambda m, x: m.b(m.a(x)))))


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"x": x}, lambda x: SimpleNamespace(x=x), Output])
def test_inputs_of_any_structure(wrap: Callable[[Tensor], Any]) -> None:
    def forward(m: Model, inputs: Any) -> Tensor:
        if isinstance(inputs, (list, dict)):
            return m.b(m.a(next(iter(inputs.values() if isinstance(inputs, dict) else inputs))))
        return m.b(m.a(inputs.logits if isinstance(inputs, Output) else inputs.x))

    x = X.clone().requires_grad_()
    lrp.convert(Model(forward))(wrap(x), explain=True).sum().backward()
    assert torch.equal(x.grad, check_parameters_stay(Model(lambda m, x: m.b(m.a(x)))))


# 6. Parameters never get relevance; inputs always do, or it is said where the way ends.


def without_gradient(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m.a(x)
    return m.b(h)


def in_inference_mode(m: Model, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = m.a(x)
    return m.b(h.clone())


ENDS: dict[str, tuple[Forward, str]] = {
    "no_grad": (without_gradient, r"linear \(before the first layer\)"),
    "inference_mode": (in_inference_mode, r"linear \(before the first layer\)"),
    "detach": (lambda m, x: m.b(m.a(x).detach()), r"detach \(after layer 'a'\)"),
    "detached leaf": (lambda m, x: m.b(m.a(x).detach().requires_grad_()), r"detach \(after layer 'a'\)"),
    "detached first": (lambda m, x: m.b(m.a(x.detach()).requires_grad_()), r"detach \(before the first layer\)"),
    "data": (lambda m, x: m.b(m.a(x).data), "__get__|data"),
    "integers": (lambda m, x: m.b(m.a(x).int().double()), r"int \(after layer 'a'\)"),
    "argmax": (lambda m, x: m.b(F.one_hot(m.a(x).argmax(1), 5).double()), r"argmax \(after layer 'a'\)"),
    "comparison": (lambda m, x: m.b((m.a(x) > 0).double()), r"gt|__gt__"),
    "zeros_like": (lambda m, x: m.b(torch.zeros_like(m.a(x))), r"zeros_like \(after layer 'a'\)"),
    "tolist": (lambda m, x: m.b(torch.tensor(m.a(x).tolist()).double()), r"tolist \(after layer 'a'\)"),
    "item": (lambda m, x: m.b.weight * m.a(x).sum().item(), r"item \(after layer 'a'\)"),
    "a leaf": (lambda m, x: m.b(torch.ones(4, 5, dtype=torch.float64, requires_grad=True)), "no function takes them"),
    "parameters": (lambda m, x: m.a.weight * 2, "no function takes them"),
}


@pytest.mark.parametrize("name", ENDS)
def test_where_the_way_ends_is_said(name: str) -> None:
    forward, place = ENDS[name]
    model = Model(forward)
    with pytest.raises(ValueError, match=f"no output depends on the explained inputs.*({place})"):
        lrp.convert(model)(X.clone().requires_grad_(), explain=True)
    assert model.gradients() == []


def beside_a_dead_branch(m: Model, x: Tensor) -> Tensor:
    return without_gradient(m, x) + m.b(m.a(x))


STOPS: dict[str, Forward] = {
    "dead branch": beside_a_dead_branch,
    "straight through": lambda m, x: (lambda h: m.b(h + (h.square() - h).detach()))(m.a(x)),
    "leaf that requires grad": lambda m, x: m.b(m.a(x) + torch.ones(5, dtype=torch.float64, requires_grad=True)),
    "half detached": lambda m, x: (lambda h: m.b(h + h.detach()))(m.a(x)),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_part_that_is_detached_is_a_constant(name: str) -> None:
    model = Model(STOPS[name])
    actual = check_parameters_stay(model, lambda y: y * y.detach(), rule=Epsilon(1e-14), strict=True)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert error(actual, X * gradient) < 1e-9


TOKENS = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([1, 2])


def written(make: Callable[[Model, Tensor], Tensor], write: Callable[[Tensor, Tensor], object]) -> Forward:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = make(m, x)
        write(h, x)
        return m.b(m.a(h))

    return forward


def repeated(m: Model, x: Tensor) -> Tensor:
    return m.token.repeat(len(x), 3, 1)


def assigned_twice(m: Model, x: Tensor) -> Tensor:
    h = torch.zeros(2, 3, 3, dtype=torch.float64)
    h[:, :1] = m.token
    h[:, 1:] = x
    return m.b(m.a(h))


def token_assigned(m: Model, x: Tensor) -> Tensor:
    h = F.pad(x, (0, 0, 1, 0))
    h[:, 0] = m.token[:, 0]
    return m.b(m.a(h))


def with_position(m: Model, x: Tensor) -> Tensor:
    h = repeated(m, x)
    h[:, 1:] = x
    h += m.position
    return m.b(m.a(h))


def is_first() -> Tensor:
    mask = torch.zeros(2, 3, 1, dtype=torch.bool)
    mask[:, 0] = True
    return mask


CLASS_TOKENS: dict[str, Forward] = {
    "item": written(repeated, lambda h, x: h.__setitem__((slice(None), slice(1, None)), x)),
    "copy_": written(repeated, lambda h, x: h[:, 1:].copy_(x)),
    "add_": written(repeated, lambda h, x: h.narrow(1, 1, 2).add_(x)),
    "mul_ and add_": written(repeated, lambda h, x: h[:, 1:].mul_(0).add_(x)),
    "view": written(repeated, lambda h, x: h[:, 1:].__setitem__(Ellipsis, x)),
    "index_copy_": written(repeated, lambda h, x: h.index_copy_(1, INDEX, x)),
    "expand": written(
        lambda m, x: m.token.expand(len(x), 3, -1).clone(),
        lambda h, x: h.__setitem__((slice(None), slice(1, None)), x),
    ),
    "joined": written(
        lambda m, x: torch.cat([m.token] * 3, 1).repeat(2, 1, 1),
        lambda h, x: h.__setitem__((slice(None), slice(1, None)), x),
    ),
    "index_copy": lambda m, x: m.b(m.a(repeated(m, x).index_copy(1, INDEX, x))),
    "slice_scatter": lambda m, x: m.b(m.a(repeated(m, x).slice_scatter(x, 1, 1, 3))),
    "cat": lambda m, x: m.b(m.a(torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position)),
    "where": lambda m, x: m.b(m.a(torch.where(is_first(), m.token, F.pad(x, (0, 0, 1, 0))))),
    "masked_scatter_": written(
        lambda m, x: F.pad(x, (0, 0, 1, 0)),
        lambda h, x: h.masked_scatter_(is_first().expand_as(h), torch.ones(2, 1, 3, dtype=torch.float64)),
    ),
    "both assigned": assigned_twice,
    "token assigned": token_assigned,
    "position": with_position,
}


@pytest.mark.parametrize("name", CLASS_TOKENS)
def test_a_class_token_gets_nothing_and_the_input_all(name: str) -> None:
    model = Model(CLASS_TOKENS[name])
    x = TOKENS.clone().requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=Epsilon(1e-14), strict=True)
    y.backward(y.detach())
    assert model.gradients() == []
    plain = TOKENS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(plain).sum(), plain)
    assert error(x.grad, TOKENS * gradient) < 1e-9


def test_a_write_to_what_was_made_of_parameters_before_is_refused() -> None:
    made = nn.Parameter(torch.randn(2, 3, 3, dtype=torch.float64)) * 1

    def forward(m: Model, x: Tensor) -> Tensor:
        made[:, 1:] = x
        return m.b(m.a(made))

    with pytest.raises(NotImplementedError, match="made of parameters before the explained forward"):
        lrp.convert(Model(forward))(TOKENS.clone().requires_grad_(), explain=True)


# 9. Graphs inside the model are refused by name.


def energy(m: Model) -> Callable[[Tensor], Tensor]:
    return lambda x: m.a(x).tanh().sum()


def forces(m: Model, x: Tensor) -> Tensor:
    return torch.autograd.grad(energy(m)(x), x, create_graph=True)[0]


def detached_forces(m: Model, x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return m.b(m.a(x + torch.autograd.grad(energy(m)(at), at)[0]))


def detached_backward(m: Model, x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    energy(m)(at).backward()
    return m.b(m.a(x + at.grad))


def forces_without_gradient(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.enable_grad():
        return torch.autograd.grad(energy(m)(x), x)[0]


def backward_on_the_way(m: Model, x: Tensor) -> Tensor:
    energy(m)(x).backward(retain_graph=True)
    return m.b(m.a(x))


GRAPHS: dict[str, Forward] = {
    "forces": forces,
    "forces, then a layer": lambda m, x: m.a(forces(m, x)),
    "detached forces": detached_forces,
    "detached backward": detached_backward,
    "enabled again": forces_without_gradient,
    "backward on the way": backward_on_the_way,
    "torch.func.grad": lambda m, x: torch.func.grad(energy(m))(x),
    "torch.func.vjp": lambda m, x: torch.func.vjp(m.a, x)[1](torch.ones(4, 5, dtype=torch.float64))[0],
    "torch.func.jvp": lambda m, x: torch.func.jvp(m.a, (x,), (torch.ones_like(X),))[1],
    "torch.func.jacrev": lambda m, x: torch.func.jacrev(m.a)(x[0]),
    "torch.autograd.functional": lambda m, x: torch.autograd.functional.jacobian(m.a, x[0], create_graph=True),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_inside_the_model_are_refused_by_name(name: str, differentiable: bool) -> None:
    model = Model(GRAPHS[name])
    with pytest.raises(
        NotImplementedError, match="within an explained forward would be given relevance for a gradient"
    ):
        lrp.convert(model)(X.clone().requires_grad_(), explain=True, differentiable=differentiable)
