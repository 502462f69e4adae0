"""What depends on the explained inputs, what does not, and what was made where nobody saw it."""

import dataclasses
import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch._higher_order_ops import map as map_rows
from torch._higher_order_ops import while_loop
from torch.autograd import forward_ad
from torch.nn import functional as F
from torchvision import tv_tensors

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

@dataclasses.dataclass(slots=True)
class Slots:
    y: Any


class Named(Slots):
    """Adds an attribute of its own to those in slots."""

    __slots__ = ("__more", "unset")

    def __init__(self, y: Any) -> None:
        super().__init__(None)
        self.__more = y

    @property
    def y_of_it(self) -> Any:
        return self.__more


SLOTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (Slots, lambda o: o.y),
    "nested": (lambda y: [Slots({"y": Slots(y)})], lambda o: o[0].y["y"].y),
    "of two classes": (Named, lambda o: o.y_of_it),
    "in an object": (lambda y: SimpleNamespace(y=Named(y)), lambda o: o.y.y_of_it),
}


@pytest.mark.parametrize("name", SLOTS)
def test_what_is_in_slots_is_found(name: str) -> None:
    wrap, get = SLOTS[name]
    actual = check_parameters_stay(Model(lambda m, x: wrap(m.b(m.a(x)))), get, strict=True)
    assert torch.equal(actual, check_parameters_stay(Model(lambda m, x: m.b(m.a(x)))))
    for forward, error, message in (
        (lambda m, x: wrap(Double.apply(m.b(m.a(x)))), NotImplementedError, "DoubleBackward"),
        (lambda m, x: wrap(m.b(m.a(x)).detach()), ValueError, "no output depends on the explained inputs"),
    ):
        with pytest.raises(error, match=message):
            lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=True)


def generator(m: Model, x: Tensor) -> Any:
    h = m.a(x)
    for _ in range(2):
        yield m.b(h)


async def coroutine(m: Model, x: Tensor) -> Tensor:
    return m.b(m.a(x))


async def asynchronous(m: Model, x: Tensor) -> Any:
    yield m.b(m.a(x))


class Late(nn.Module):
    """What a caller lets do the rest of the work, or has hidden from it."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.held = [y]


LATER: dict[str, tuple[Forward, str]] = {
    "generator": (generator, "returns a generator, which runs when the forward is over.*such as list"),
    "generator expression": (lambda m, x: (m.b(h) for h in [m.a(x)]), "returns a generator, which runs"),
    "coroutine": (coroutine, "returns a coroutine, which runs"),
    "asynchronous generator": (asynchronous, "returns a async_generator, which runs"),
    "map": (lambda m, x: map(m.b, [m.a(x)]), "returns a map, which runs"),
    "iterator": (lambda m, x: iter([m.b(m.a(x))]), "returns a list_iterator, which runs"),
    "in a dict": (lambda m, x: {"y": generator(m, x)}, "returns a generator, which runs"),
    "beside a tensor": (lambda m, x: (m.b(m.a(x)), [generator(m, x)]), "returns a generator, which runs"),
    "in an object": (lambda m, x: Slots(generator(m, x)), "returns a generator, which runs"),
    "closure": (lambda m, x: (lambda h: lambda: m.b(h))(m.a(x)), "no tensors are found in the output, a function"),
    "partial": (lambda m, x: functools.partial(m.b, m.a(x)), "no tensors are found in the output, a functools.partial"),
    "module": (lambda m, x: Late(m.b(m.a(x))), r"no tensors are found in the output, a test_origins\.Late"),
    "number": (lambda m, x: m.b(m.a(x)).sum().item(), "no tensors are found in the output, a float"),
    "array": (lambda m, x: m.b(m.a(x)).detach().numpy(), r"no tensors are found in the output, a numpy\.ndarray"),
    "text": (lambda m, x: str(m.b(m.a(x))), "no tensors are found in the output, a str: return tensors"),
    "nothing": (lambda m, x: None, "no tensors are found in the output, a NoneType"),
    "empty": (lambda m, x: [], "no tensors are found in the output, a list"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LATER)
def test_an_output_in_which_no_tensors_are_found_is_refused(name: str, strict: bool) -> None:
    forward, message = LATER[name]
    with pytest.raises(ValueError, match=message):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=strict)


# Views that were made unseen: of all of a tensor they are that tensor, of a part nothing is known.


class Subclass(Tensor):
    pass


class Normalized(nn.Module):
    """A convolution, and something between it and its batch norm."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        self.double().eval()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def unseen(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return function(t)


def in_a_thread(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The mode is of the thread that has entered it."""
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(function(t)))
    thread.start()
    thread.join()
    return results[0]


RULES = ["epsilon", "zplus", "gamma", "epsilon_plus_flat"]
IDENTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "as_subclass": lambda h: h.as_subclass(Subclass),
    "as_subclass of a view": lambda h: h.flatten(2).as_subclass(Subclass).unflatten(2, h.shape[2:]),
    "twice": lambda h: h.as_subclass(Subclass).as_subclass(Tensor),
    "view_as": lambda h: unseen(lambda t: t.view_as(t), h),
    "slice": lambda h: unseen(lambda t: t[:], h),
    "in a thread": lambda h: in_a_thread(lambda t: t.view(t.shape), h),
    "image": tv_tensors.Image,
    "as_tensor": torch.as_tensor,
    "as_tensor by name": lambda h: torch.as_tensor(data=h),
    "as_tensor of its dtype": lambda h: torch.as_tensor(h, dtype=torch.float64),
}


def normalized_relevance(function: Callable[[Any, Tensor], Tensor], rule: str) -> Tensor:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = lrp.convert(Normalized(function))(x, explain=True, rule=rule, strict=True)
    (R,) = torch.autograd.grad(y.sum(), x)
    return R


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_view_of_all_of_a_tensor_is_that_tensor(name: str, rule: str, place: int) -> None:
    """Before the first layer, between a layer and its norm, and before a rule that asks for the sign."""

    def forward(m: Normalized, x: Tensor, identity: Callable[[int, Tensor], Tensor]) -> Tensor:
        return m.last(identity(2, m.norm(identity(1, m.conv(identity(0, x)))).relu()))

    actual = normalized_relevance(lambda m, x: forward(m, x, lambda i, t: IDENTITIES[name](t) if i == place else t), rule)
    assert error(actual, normalized_relevance(lambda m, x: forward(m, x, lambda i, t: t), rule)) < 1e-12


def with_part(m: Normalized, x: Tensor, take: Callable[[Tensor], Tensor], is_late: bool) -> Tensor:
    h = m.conv(x)
    parts = [lambda: m.norm(h), lambda: 3 * take(h)]
    both = [part() for part in (parts if is_late else reversed(parts))]
    return both[0] + both[1]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_part_that_is_taken_unseen_uses_the_layer_beside_its_norm(rule: str, is_late: bool) -> None:
    actual = normalized_relevance(lambda m, x: with_part(m, x, lambda h: unseen(lambda t: t[:1], h), is_late), rule)
    expected = normalized_relevance(lambda m, x: with_part(m, x, lambda h: h[:1], is_late), rule)
    assert error(actual, expected) < 1e-12


def scaled(h: Tensor) -> Tensor:
    return h[:].mul_(3).add_(1)


def scaled_in_part(h: Tensor) -> Tensor:
    return h[:1].mul_(3)


def flat_and_scaled(h: Tensor) -> Tensor:
    return h.view(-1).mul_(3)


def beside(write: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The view is made before what it is a view of is written to."""

    def function(h: Tensor) -> Tensor:
        view = h[:]
        write(h)
        return view

    return function


@pytest.mark.parametrize("run", [unseen, in_a_thread])
@pytest.mark.parametrize("write", [scaled, scaled_in_part, flat_and_scaled, beside(scaled)])
@pytest.mark.parametrize("base", ["layer", "relu"])
def test_a_write_to_a_view_that_was_made_unseen_is_named(run: Any, write: Callable[[Tensor], Tensor], base: str) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return run(write, m.a(x) if base == "layer" else m.a(x).relu())

    with pytest.raises(NotImplementedError, match="a write that lrp does not see"):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, rule="zplus", strict=True)


@pytest.mark.parametrize("take", [lambda t: t.as_subclass(Subclass), lambda t: unseen(lambda u: u[:2], t)])
def test_a_view_does_not_hide_the_function_behind_it(take: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of the autograd function"):
        lrp.convert(Model(lambda m, x: m.b(take(Reversed.apply(m.a(x))))))(
            X.clone().requires_grad_(), explain=True, strict=True
        )


# Transforms, compiled operators and nested tensors: named, with the gradient for want of a rule.

W = torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
VMAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "argument": lambda h: torch.vmap(lambda w, t: t @ w, in_dims=(0, None))(W, h),
    "closure": lambda h: torch.vmap(lambda w: (h * 2) @ w)(W),
    "in place": lambda h: torch.vmap(lambda w: h.clone().mul_(2) @ w)(W),
    "both mapped": lambda h: torch.vmap(lambda w, row: row @ w)(W[:4], h),
    "not mapped at all": lambda h: torch.vmap(lambda w, t: t.sin(), in_dims=(0, None), out_dims=None)(W, h),
    "nested": lambda h: torch.vmap(lambda w: torch.vmap(lambda row: row @ w)(h))(W),
    "of a module": lambda h: torch.vmap(lambda w, t: F.linear(t, w.T).square(), in_dims=(0, None))(W, h),
}


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_over_constants_is_named_and_gives_its_gradient(name: str) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return VMAPPED[name](m.a(x))

    model, x = Model(forward), X.clone().requires_grad_()
    with pytest.warns(lrp.RelevanceWarning, match="there is no rule for the relevance of"):
        y = lrp.convert(model)(x, explain=True, rule="gradient")
    assert torch.equal(y, model(x))
    actual, expected = (torch.autograd.grad(out.sum(), x)[0] for out in (y, model(x)))
    assert error(actual, expected) < 1e-12
    assert model.gradients() == []
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of"):
        lrp.convert(model)(x, explain=True, strict=True)


def test_vmap_beside_a_merged_norm() -> None:
    """What is merged with a layer has to know of all that uses the layer besides."""

    def forward(m: Normalized, x: Tensor) -> Tensor:
        h = m.conv(x)
        return m.norm(h).sum() + torch.vmap(lambda w, t: (t * w).sum(), in_dims=(0, None))(W[:, 0, 0], h).sum()

    model = Normalized(forward)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning):
        y = lrp.convert(model)(x, explain=True, rule="gradient")
    actual, expected = (torch.autograd.grad(out, x)[0] for out in (y, model(x)))
    assert error(actual, expected) < 1e-10


def dual(m: Model, h: Tensor, get: str) -> Any:
    with forward_ad.dual_level():
        y = m.b(forward_ad.make_dual(h, torch.ones_like(h)))
        return getattr(forward_ad.unpack_dual(y), get)


FORWARD_MODE: dict[str, Forward] = {
    "tangent": lambda m, x: dual(m, m.a(x), "tangent"),
    "primal": lambda m, x: dual(m, m.a(x), "primal"),
    "constant": lambda m, x: m.b(m.a(x)) + dual(m, torch.ones(4, 5, dtype=torch.float64), "tangent"),
    "linearize": lambda m, x: torch.func.linearize(m.b, m.a(x))[0],
    "linearized": lambda m, x: torch.func.linearize(m.b, m.a(x))[1](torch.ones(4, 5, dtype=torch.float64)),
    "jacfwd": lambda m, x: torch.func.jacfwd(m.b)(m.a(x)[0]),
}


@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode_differentiation_is_refused_by_name(name: str) -> None:
    message = "(forward-mode differentiation|torch.func).* would be given relevance .*: explain what it is taken of"
    with pytest.raises(NotImplementedError, match=message):
        lrp.convert(Model(FORWARD_MODE[name]))(X.clone().requires_grad_(), explain=True)


def test_within_a_dual_level_of_ones_own_a_model_can_be_explained() -> None:
    model, x = Model(lambda m, x: m.b(m.a(x))), X.clone().requires_grad_()
    with forward_ad.dual_level():
        lrp.convert(model)(x, explain=True).sum().backward()
    assert torch.equal(x.grad, check_parameters_stay(model))


def twice(h: Tensor) -> Tensor:
    return h * 2


OPERATORS: dict[str, tuple[Forward, str]] = {
    "cond": (lambda m, x: m.b(torch.cond(x.sum() > 0, torch.relu, twice, (m.a(x),))), "torch.cond"),
    "cond of layers": (lambda m, x: torch.cond(x.sum() > 0, m.a, lambda t: m.a(-t), (x,)), "torch.cond"),
    "while_loop": (
        lambda m, x: while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, h * 2), (torch.tensor(0), m.a(x)))[1],
        "while_loop",
    ),
    "map": (lambda m, x: map_rows(twice, m.a(x)), "map"),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch, on the way
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_run_compiled_are_refused_by_name(name: str) -> None:
    forward, operator = OPERATORS[name]
    with pytest.raises(NotImplementedError, match=rf"{operator}.* runs compiled.*write the branch or the loop in Python"):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True)


def test_a_branch_that_python_picks_is_explained() -> None:
    branching = Model(lambda m, x: m.b(torch.cond(bool(x.numel() > 3), torch.relu, twice, (m.a(x),))))
    assert torch.equal(
        check_parameters_stay(branching, strict=True), check_parameters_stay(Model(lambda m, x: m.b(m.a(x).relu())))
    )


NESTED: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "padded": lambda m, n: n.to_padded_tensor(0.0),
    "layer": lambda m, n: torch.cat(m.b(n).unbind()),
    "norm": lambda m, n: torch.cat(m.norm(n).unbind()),
    "in place": lambda m, n: torch.cat(n.relu_().unbind()),
    "identities": lambda m, n: torch.cat(n.clone().contiguous().unbind()),
    "output": lambda m, n: n,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", [torch.strided, torch.jagged])
@pytest.mark.parametrize("name", NESTED)
def test_nested_tensors_are_named(name: str, form: torch.layout) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return NESTED[name](m, torch.nested.as_nested_tensor([h[:1], h[1:]], layout=form))

    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of .*nested"):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_copies_values_alone_is_said() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return torch.nested.nested_tensor([h[0], h[1]]).to_padded_tensor(0.0)

    message = r"ends at what copies values alone, such as torch.nested.nested_tensor\(\) \(after layer 'a'\)"
    with pytest.raises(ValueError, match=message):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True)
