"""Drawing programs: which steps follow one another.

By number they are independent draws, which many mistakes need to be seen. Hypothesis draws what is small, again and
again, and makes what fails smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

from . import elementwise, gates, identities, layers, moves, sums
from .program import Builder, Program, Skip, Value
from .readings import CASES

STEPS: dict[str, Callable[[Builder], None]] = {
    "layer": layers.layer,
    "relu": elementwise.relu,
    "affine": layers.affine,
    "norm": layers.norm,
    "identity": identities.identity,
    "masked": identities.masked,
    "total": sums.total,
    "indexed": sums.indexed,
    "average": sums.average,
    "divided": sums.divided,
    "sums": sums.running,
    "winner": sums.winner,
    "number": elementwise.number,
    "constant": elementwise.constant,
    "activation": elementwise.activation,
    "fill": elementwise.fill,
    "detached": elementwise.detached,
    "overwritten": elementwise.overwritten,
    "hidden_write": elementwise.hidden_write,
    "unseen": elementwise.unseen,
    "move": moves.move,
    "padded": moves.padded,
    "joined": moves.joined,
    "padded_batch": moves.padded_batch,
    "token": moves.token,
    "slice_written": moves.slice_written,
    "gate": gates.gate,
    "of_a_gate": gates.of_a_gate,
    "gated": gates.gated,
    "mixed": gates.mixed,
    "product": gates.product,
}
LAST: dict[str, Callable[[Builder], None]] = {
    "hooked": identities.hooked,
    "checkpointed": identities.checkpointed,
    "cut": identities.cut,
}
ANY = "any"


@dataclass(frozen=True)
class Kind:
    """Networks that have something in common, in which one kind of mistake shows.

    Attributes:
        examples: how many the tests draw.
        phrases: steps that follow one another, one of which each network has.
        cases: the rules that tell.
        last: what is done to the whole program in the end, and how often: once in so many.
    """

    examples: int
    phrases: tuple[tuple[str, ...], ...]
    cases: tuple[str, ...] = tuple(CASES)
    last: tuple[tuple[str, int], ...] = (("hooked", 6), ("checkpointed", 8), ("cut", 30))


_SIGNS = ("zplus", "gamma", "alpha1beta0", "alpha2beta1 absorb", "gamma+epsilon")
_SIGNED = (
    "number",
    "number",
    "constant",
    "fill",
    "fill",
    "activation",
    "activation",
    "average",
    "padded",
    "hidden_write",
)
KINDS = {
    "sign": Kind(
        300,
        (
            *(("layer", "relu", step, "layer") for step in (*_SIGNED, *_SIGNED, "divided", "move", "winner")),
            ("layer", "activation", "layer"),
            ("layer", "activation", "relu", "activation", "layer"),
            ("layer", "relu", "winner", "divided", "layer"),
        ),
        _SIGNS,
    ),
    "gate": Kind(
        130,
        (
            ("layer", "gate", "of_a_gate", "gated"),
            ("layer", "gate", "of_a_gate", "of_a_gate", "gated"),
            ("layer", "gate", "of_a_gate", "move", "gated"),
            ("layer", "gate", "identity", "gated"),
            *(3 * (("layer", "gate", "layer", "product"),)),
            ("layer", "gate", "gated", "layer"),
            ("layer", "gate", "mixed"),
        ),
    ),
    "layer": Kind(
        150,
        (
            *(2 * (("layer", "identity", "affine"), ("layer", "identity", "number"))),
            ("layer", "affine", "relu"),
            ("layer", "masked", "affine"),
            ("layer", "constant", ANY),
            ("layer", "winner", "overwritten"),
            ("layer", "overwritten", "affine"),
            ("layer", "relu", ANY, "overwritten"),
            ("layer", ANY, "affine"),
            ("layer", "detached"),
        ),
    ),
    "data": Kind(
        90,
        tuple(
            (step, *then)
            for step in ("affine", "affine", "number", "padded_batch", "joined", "identity", "token")
            for then in (("layer",), ("layer", "layer", "total"))
        ),
        ("epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "zplus", "flat"),
    ),
    "flow": Kind(
        130,
        (
            ("layer", "relu", "indexed"),
            ("layer", "relu", "sums"),
            ("layer", "layer", "total"),
            ("layer", "total"),
            ("layer", "relu", "detached"),
            ("layer", "joined", "layer"),
            ("layer", "token", "layer"),
            ("layer", "slice_written", "layer"),
            ("layer", "norm", "layer"),
            ("layer", "unseen"),
            ("unseen",),
        ),
        last=(("checkpointed", 3), ("cut", 12)),
    ),
    "any": Kind(40, ((ANY,), (ANY, ANY), ("relu", ANY, "layer"), ("layer", "relu", ANY), ("layer", ANY))),
}
ALL = tuple(phrase for kind in KINDS.values() for phrase in kind.phrases)
OF_DATA = ("affine", "number", "constant", "total", "joined", "padded_batch", "token", "move", "identity")


def random_network(kind: str, number: int, off: Sequence[str] = ()) -> tuple[str, Program]:
    """The rule and the program of this number, of one of :data:`KINDS`: each number is a draw of its own."""
    integer = Random(f"{kind} {number}").randint
    cases = KINDS[kind].cases
    case = cases[integer(0, len(cases) - 1)]
    return case, write(integer, case, off, kind)


@st.composite
def networks(draw: Callable, off: Sequence[str] = (), cases: Sequence[str] = tuple(CASES)) -> tuple[str, Program]:
    """A rule and a program for it, which hypothesis can make smaller."""

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    case = draw(st.sampled_from(cases))
    return case, write(integer, case, off, draw(st.sampled_from([*KINDS])))


def write(integer: Callable[[int, int], int], case: str, off: Sequence[str] = (), kind: str = "any") -> Program:
    """A program for a rule of :data:`CASES`, without what the patterns ``off`` match.

    Args:
        integer: draws a number from the first to the second.
        case: the key of the rule.
        off: patterns of steps and of labels, as ``program.labels`` shows them.
        kind: the key of one of :data:`KINDS`.
    """
    rule = CASES[case]
    b = Builder(integer, rule.exact, not rule.reaches_zeros, rule.absorbs, tuple(off))
    shapes = [_shape(b) for _ in range(b.choose([1, 1, 1, 2]))]
    for i, shape in enumerate(shapes):
        identities.source(b, Value(f"x{i}", shape, kind="data"))
    if kind != "data":
        _take(b, [b.choose(OF_DATA) for _ in range(b.integer(0, 2))])
    before = [b.choose(ALL) for _ in range(b.integer(0, 1))]
    after = [b.choose(ALL) for _ in range(b.integer(0, 3) // 3)]
    for phrase in (*before, b.choose(KINDS[kind].phrases), *after):
        _take(b, phrase)
    for label, often in KINDS[kind].last:
        if b.integer(1, often) == often:
            _take(b, [label])
    return b.finish(shapes, b.integer(0, 2**16))


def _take(b: Builder, names: Sequence[str]) -> None:
    """Take these steps, those that can be taken."""
    for name in names:
        if name is ANY or b.allows(name):
            with suppress(Skip):
                (STEPS | LAST)[b.choose([step for step in STEPS if b.allows(step)]) if name is ANY else name](b)


def _shape(b: Builder) -> tuple[int, ...]:
    sizes = [b.integer(2, 4) for _ in range(b.integer(1, 3))]
    return tuple(size + 1 if i else size for i, size in enumerate(sizes))
