"""Drawing programs with hypothesis: the steps in any order, then what cannot be judged is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from hypothesis import strategies as st

from . import checkpoints, elementwise, gates, identities, layers, moves, sums
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
    "average": sums.average,
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
LAST = {  # of the whole program, and once in how many of them
    "hooked": (identities.hooked, 6),
    "checkpointed": (checkpoints.checkpointed, 6),
    "cut": (identities.cut, 30),
}
ANY = "any"
PHRASES = (
    (ANY,),
    ("layer", "relu", ANY),
    ("layer", "relu", ANY, "layer"),
    ("layer", "relu", "number", "layer"),
    ("layer", "relu", "constant", "layer"),
    ("layer", "relu", "hidden_write", "layer"),
    ("layer", "relu", "fill", "layer"),
    ("layer", "relu", "activation", "layer"),
    ("layer", "relu", "average", "layer"),
    ("relu", ANY, "layer"),
    ("layer", ANY, "affine"),
    ("layer", "identity", "affine"),
    ("layer", "affine", "relu"),
    ("layer", "masked", "affine"),
    ("layer", "norm", "layer"),
    ("layer", "winner", "overwritten"),
    ("layer", "overwritten", "affine"),
    ("layer", "relu", ANY, "overwritten"),
    ("layer", "unseen"),
    ("layer", "gate", ANY, "gated"),
    ("layer", "gate", "of_a_gate", "gated"),
    ("layer", "gate", "identity", "gated"),
    ("gate", "mixed"),
    ("layer", "layer", "total", ANY),
    ("layer", "relu", "detached"),
    ("move", "joined", "layer"),
    ("layer", "joined", "layer"),
)
OF_DATA = ("affine", "number", "constant", "total", "joined", "padded_batch", "token", "move", "identity")
MOST_PHRASES = 4


@st.composite
def networks(draw: Callable, off: Sequence[str] = (), cases: Sequence[str] = tuple(CASES)) -> tuple[str, Program]:
    """A rule and a program for it, without what the patterns ``off`` match."""
    case = draw(st.sampled_from(cases))
    return case, draw(programs(case, off))


@st.composite
def programs(draw: Callable, case: str, off: Sequence[str] = ()) -> Program:
    """A program, for a rule of :data:`CASES`, without what the patterns ``off`` match.

    Args:
        case: the key of the rule.
        off: patterns of steps and of labels, as ``program.labels`` shows them.
    """
    rule = CASES[case]
    b = Builder(draw, rule.exact, not rule.reaches_zeros, rule.absorbs, tuple(off))
    shapes = [draw(_shapes()) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))]
    for i, shape in enumerate(shapes):
        identities.source(b, Value(f"x{i}", shape, kind="data"))
    steps = [name for name in STEPS if b.allows(name)]
    before = [OF_DATA[i] for i in draw(st.lists(st.integers(0, len(OF_DATA) - 1), max_size=2))]
    for name in before:
        if b.allows(name):
            with suppress(Skip):
                STEPS[name](b)
    for _ in range(b.integer(1, MOST_PHRASES)):
        for name in b.choose(PHRASES):
            if name is ANY or b.allows(name):
                with suppress(Skip):
                    STEPS[b.choose(steps) if name is ANY else name](b)
    for label, (step, often) in LAST.items():
        with suppress(Skip):
            if b.integer(1, often) == often and b.allows(label):
                step(b)
    return b.finish(shapes, draw(st.integers(0, 2**16)))


@st.composite
def _shapes(draw: Callable) -> tuple[int, ...]:
    sizes = [draw(st.integers(2, 4)) for _ in range(draw(st.integers(1, 3)))]
    return tuple(size + 1 if i else size for i, size in enumerate(sizes))
