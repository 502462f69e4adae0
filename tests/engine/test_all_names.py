"""Each function of the table, under each of its names, with arguments of all kinds: one map, claims that are true.

The arguments are not made for the function: what torch does not take is no case. Names that mean another function of
those arguments, as ``torch.norm`` and ``torch.linalg.norm`` may, are told apart by the values.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

import lrp
from lrp.engine.assignment import Assignment
from lrp.engine.calls import distinct, key_of, plain_name, substitute, tensors_in
from lrp.engine.handlers import TABLE
from lrp.engine.interception import Interception
from lrp.engine.modules.untouched import Untouched
from lrp.engine.streams import Streams
from lrp.rules import Epsilon, Gamma, Gradient, WSquare

pytestmark = pytest.mark.filterwarnings("ignore")

Function = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, COLUMN, ROW, SQUARE = numbers(4, 3), numbers(4, 3, seed=1), numbers(4, 1), numbers(3), numbers(3, 3)
IMAGES, BATCH = numbers(2, 2, 4, 4), numbers(2, 3, 3)
VOLUMES, PLACES_3D = numbers(1, 2, 3, 3, 3), torch.arange(27).view(3, 3, 3).expand(1, 2, 3, 3, 3)
INTEGERS, BYTES = torch.tensor([[-1, 2, -3]] * 4), torch.tensor([1, 2, 3], dtype=torch.uint8)
ROWS, PLACES = torch.tensor([1, 0, 1, 3]), torch.tensor([[1, 0, 2]] * 4)
MASK = torch.tensor([[True, False, True]] * 4)

CALLS: list[Arguments] = [
    *[((X, *others), {}) for others in (
        (), (1,), (2,), (-1,), (-2.0,), (0.5, -1.0), (-2, -1), (2.0, 3.0), (-1.0, -20.0), (0, 1), (-1, 3),
        (0, 0, 2), (1, 1, 2),
        (0, ROWS), (1, PLACES), (0, ROWS, Y), (1, PLACES, Y), (0, ROWS, -1.5), (0, PLACES, Y, "sum"),
        (0, ROWS, Y, "mean"),
        (Y,), (COLUMN,), (ROW,), (INTEGERS,), (BYTES,), (SQUARE,), (Y.T,), (MASK,), (MASK, Y), (MASK, -1.0),
        (MASK, INTEGERS),
        (Y, COLUMN), (Y, 0.3), (Y, 1.5), (SQUARE, SQUARE), (Y, SQUARE), (COLUMN, ROW), ((4, 3),), ([2, 6],),
        ((2, 2),), ([0],), ([1], True),
        (PLACES, -Y, True), ((ROWS,), -Y, True), ([ROWS], Y), ((1, 1), -1.0), ([1, 1],), (torch.float32,),
        (0.5, False),
    )],
    *[((X,), options) for options in (
        {"dim": 0}, {"dim": 1, "keepdim": True}, {"min": -2.0, "max": -1.0}, {"max": INTEGERS}, {"p": 3, "dim": 1},
        {"decimals": -1}, {"nan": -1.0}, {"beta": -1.0}, {"correction": 0}, {"lengths": torch.tensor([0, 4]),
        "reduce": "max"},
    )],
    *[((X, Y), options) for options in ({"alpha": -2}, {"alpha": 3.0}, {"dim": 1}, {"weight": -0.5},
        {"rounding_mode": "floor"})],
    *[((X, X, Y), {"value": -2.0}), ((X, X, SQUARE), {"beta": 0.5, "alpha": -2}), ((X, 0, ROWS, Y), {"alpha": -2.0})],
    *[((ROW, *others), {}) for others in ((), (ROW,), (X.T, COLUMN[:, 0]), (SQUARE, ROW), (ROW, ROW), (3,))],
    *[((BATCH, *others), {}) for others in ((), (BATCH,), (BATCH, BATCH), (2,), (1,), ((1, 2),), ([1, 1],), (X[:3],
        BATCH))],
    *[((SQUARE, BATCH, BATCH), {"beta": -1.0})],
    *[((IMAGES, *others), {}) for others in (
        (), (2,), ([2, 2],), (2, 1, 1), ((3, 3), (1, 1)), ([1, 1, 1, 1],), ((1, 1), "constant", -1.0), ([7, 6],
        False), ([7, 6],), ([2, 1], None, [1, 1], False, True, -3),
        (numbers(2, 3, 3, 2).tanh(), 0, 0, False), (numbers(2, 3, 3, 2).tanh(), 2, 0, False), ([4],), ([4],
        ROW[:1].expand(4)), (2, None, None),
        (numbers(3, 2, 3, 3), ROW), (numbers(2, 3, 3, 3), ROW, [2, 2], [1, 1]), (ROW[:2], ROW[1:], ROW[:2],
        BYTES[:2].double(), False, 0.1, 1e-5, False),
    )],
    *[((IMAGES,), options) for options in (
        {"size": (7, 6)}, {"size": (7, 6), "mode": "bilinear"}, {"size": (7, 6), "mode": "bicubic"},
        {"size": (7, 6), "mode": "lanczos", "antialias": True}, {"kernel_size": 2, "divisor_override": -2},
        {"kernel_size": 2, "return_indices": True},
    )],
    *[(([X, Y],), {}), (([X, INTEGERS],), {}), (([X, Y], 1), {}), (("ab->b", [X]), {}), (("ab,cb->ac", X, Y), {}),
        (("ab->b", X), {})],
    *[((2.0, X), {}), ((-2.0, X), {}), ((MASK, X, Y), {}), ((MASK, X, -1.0), {})],
    *[((), {"dim": 0, "index": PLACES, "input": X}), ((), {"dim": 1, "tensors": [X, Y]}), ((), {"input": X}), ((),
        {"other": -2.0, "input": X})],
    *[((VOLUMES, *others), {}) for others in (
        (numbers(2, 2, 2, 2, 2),), ([4, 4, 4],), ([4, 4, 4], False), ([1, 1, 1, 1, 1, 1],),
        (numbers(1, 2, 2, 2, 3).tanh(), 0, 0, False), (PLACES_3D, 1),
    )],
    *[((BATCH, *others), {}) for others in ((numbers(3, 2, 2),), ([5], False), (torch.arange(3).expand(2, 3, 3), 1))],
    *[((IMAGES, *others), {}) for others in (
        (numbers(3, 2, 3, 3), ROW, [1, 1], [0, 0], [1, 1], False, [0, 0], 1), (numbers(2, 3, 3, 2).tanh(),),
        ((2, 2), (1, 1), (0, 0), (1, 1)), (torch.arange(16).view(4, 4).expand(2, 2, 4, 4), 1),
    )],
    *[((numbers(1, 8, 4), (3, 3), (2, 2), *others), {}) for others in ((), ((1, 1), (0, 0), (1, 1)))],
    *[((X, *others), {}) for others in ((1, False), (PLACES, 1), (1, (3, 1)), (ROW, 0, 1))],
]  # fmt: skip


@cache
def functions() -> dict[str, list[Function]]:
    """All that the table has, and the operators of the same names, with their overloads."""
    found: dict[str, list[Function]] = {}
    for function in filter(callable, TABLE):
        found.setdefault(plain_name(function).rstrip("_"), []).append(function)
    for name, several in found.items():
        for spelling in (f"{prefix}{name}{end}" for prefix in ("", "special_", "linalg_") for end in ("", "_")):
            packet = getattr(torch.ops.aten, spelling, None)
            if packet is not None and key_of(packet) in TABLE:
                several += filter(is_checked, (getattr(packet, overload) for overload in packet.overloads()))
    return found


def is_checked(operator: OpOverload) -> bool:
    """Whether an operator looks at its arguments: those that take names or dtypes for numbers crash."""
    return not operator._overloadname.endswith(("out", "dtype")) and "Dimname" not in str(operator._schema)


@cache
def cases(name: str) -> Sequence[tuple[Arguments, list[tuple[Function, Tensor]]]]:
    """The arguments that functions of this name take, each with the functions, and what they return.

    Operators do not always check their arguments, and are asked after their namesakes.
    """
    found = []
    for arguments in CALLS:
        values: dict[Any, Tensor] = {}
        for function in functions()[name]:
            if not isinstance(function, OpOverload) or key_of(function) in (*values, function.overloadpacket):
                value = returned(function, arguments)
                values |= {} if value is None else {function: value}
        if values:
            found.append((arguments, [*values.items()]))
    return found


def returned(function: Function, arguments: Arguments) -> Tensor | None:
    """What the function returns; None if it does not take the arguments, or returns no real numbers."""
    args, kwargs = substitute(arguments, torch.clone)
    try:
        value = function(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, AssertionError):
        return None
    return flat(value) if any(t.is_floating_point() for t in tensors_in(value)) else None


def flat(value: Any) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors_in(value)])


def inputs_of(arguments: Arguments) -> list[Tensor]:
    return distinct(t for t in tensors_in(arguments) if t.is_floating_point())


MIXED = lrp.Composite(
    {"sum": WSquare(), "pool": Gamma(0.3), "max_pool": "epsilon", "activation": Gradient()}, default=Gamma(0.2)
)


def explained(function: Function, arguments: Arguments, live: Sequence[Tensor]) -> Tensor | str | None:
    """The relevance of the live tensors, or why there is none; None where torch has no gradient."""
    inputs = [t.clone().requires_grad_() for t in live]

    def model(*several: Tensor) -> list[Tensor]:
        places = {id(t): value for t, value in zip(live, several, strict=True)}
        args, kwargs = substitute(arguments, lambda t: places.get(id(t), t).clone())
        return [t for t in tensors_in(function(*args, **kwargs)) if t.is_floating_point()]

    try:
        y = [t for t in lrp.convert(model)(*inputs, explain=True, rule=MIXED, strict=True) if t.requires_grad]
    except NotImplementedError as error:
        return "named" if "strict=True" in str(error) else None
    except RuntimeError:
        return None
    except ValueError as error:
        return str(error).partition(":")[0]  # no output depends on the inputs
    R = [numbers(*t.shape, seed=5).to(t.dtype) for t in y]
    try:
        return flat(torch.autograd.grad(y, inputs, R, materialize_grads=True))
    except (RuntimeError, NotImplementedError):
        return None


def compared(name: str) -> Iterator[tuple[str, Any, Any]]:
    for arguments, several in cases(name):
        tensors = inputs_of(arguments)
        (first, value), *others = several
        alike = [f for f, other in others if other.shape == value.shape and torch.equal(other, value)]
        for live in (tensors, tensors[1:]) if alike else ():
            expected = explained(first, arguments, live) if live else None
            for function in alike if live else ():
                yield f"{function} {arguments}", explained(function, arguments, live), expected


@pytest.mark.parametrize("name", functions())
def test_each_name_of_a_function_gives_its_map(name: str) -> None:
    for case, actual, expected in compared(name):
        if isinstance(expected, str) or isinstance(actual, str):
            assert str(actual) == str(expected), case
        elif actual is not None and expected is not None:
            assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-10, equal_nan=True), case


@pytest.mark.parametrize("name", functions())
def test_what_is_claimed_of_signs_is_true(name: str) -> None:
    for arguments, several in cases(name):
        (first, value), *others = several
        for function in [first, *(f for f, other in others if not torch.equal(other, value))]:
            for signed in (True, False):
                check_claims(function, arguments, signed)


def check_claims(function: Function, arguments: Arguments, signed: bool) -> None:
    """Of inputs of any sign, and of some that are known to be >= 0, the first or all of them."""
    tensors = inputs_of(arguments)
    for known in (tensors[:1], tensors):
        inputs = {id(t): t.clone().requires_grad_() for t in tensors}
        streams = Streams(list(inputs.values()), Assignment(Epsilon()))
        with Interception(streams, Untouched(None, [], streams.rescue)):
            made = {
                id(t): x if signed or not any(t is k for k in known) else x.relu()
                for t, x in zip(tensors, inputs.values(), strict=True)
            }
            args, kwargs = substitute(arguments, lambda t, made=made: made.get(id(t), t).clone())
            try:
                z = function(*args, **kwargs)
            except (RuntimeError, NotImplementedError):  # torch has no gradient
                return
        for t in tensors_in(z):
            facts = streams.known.of(t) if t.requires_grad else None
            assert facts is None or not facts.nonnegative or not bool((t < 0).any()), (function, arguments, signed)


def test_the_arguments_reach_the_table() -> None:
    without = {name for name in functions() if not cases(name)}
    assert without <= {"cuda", "__setitem", "register_hook", "retain_grad"}
