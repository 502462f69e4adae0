"""Undo, one by one, what the library does against wrong maps: do the networks that the tests draw show it?

    python tests/generators/undo.py

Each line of the table is a kind of mistake, made by replacing attributes of the library while it runs. The command
prints in how many of the networks each of them is seen.
"""

# ruff: noqa: E402 - run as a script, it finds the tests' modules by itself
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial, partialmethod
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from torch import Tensor

from generators import KNOWN_TO_FAIL
from generators.checks import Expectation
from generators.drawing import KINDS, random_network
from lrp.engine import interception, streams
from lrp.engine.backward.kept import Keeper, Kept
from lrp.engine.backward.ledger import Ledger
from lrp.engine.calls import named, tensors_in
from lrp.engine.facts import Known
from lrp.engine.handlers import TABLE, activations, affine, normalization, pooling, products, shape, sums
from lrp.engine.interception import Interception
from lrp.engine.origins import Origins
from lrp.engine.streams import Streams
from lrp.maps import Elementwise

Undoing = Callable[[], AbstractContextManager[Any]]
replaced = partial(partial, patch.object)  # (owner, name, value)


def handled(handler: streams.Handler, *names: str) -> Undoing:
    """The functions of these names, by this handler."""
    return partial(patch.dict, TABLE, {key: handler for key in named(*names) if key in TABLE})


def forgets(fact: str, *names: str, value: Any = False) -> Undoing:
    """The functions of these names make nothing known of this kind."""
    keys = [key for key in named(*names) if key in TABLE]
    return partial(patch.dict, TABLE, {key: partial(_forgetting, TABLE[key], fact, value) for key in keys})


def _forgetting(handler: streams.Handler, fact: str, value: Any, s: Streams, call: Any) -> Any:
    result = handler(s, call)
    base = None if call.target is None else call.target._base
    for t in tensors_in((() if result is NotImplemented else result, call.target, base)):
        facts = s.known.of(t)
        if facts is not None:
            bounds = {"top": inf} if fact == "gate" else {}  # which make a gate, too
            s.known.note(t, replace(facts, **{fact: value}, **bounds))
    return result


def nothing(*_: Any, **__: Any) -> None:
    """Instead of a method that notes something."""


_is_nonnegative, _affine, _unsupported, _take = Known.is_nonnegative, affine.affine, Origins.unsupported, Ledger.take
_check, _relay_layer = Origins.check, Streams.relay_layer


def _numbers_are_nonnegative(known: Known, value: Any, kinds: Any = (int, float)) -> bool:
    return isinstance(value, kinds) or _is_nonnegative(known, value)


def _constants_are_nonnegative(known: Known, value: Any) -> bool:
    return (isinstance(value, Tensor) and value not in known) or _is_nonnegative(known, value)


def _as_live(s: Streams, call: Any) -> Any:
    return s.follow(call, nonnegative=all(facts.nonnegative for facts in call.facts))


def _apart_from_layers(s: Streams, call: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if call.facts_of(x).layer is not None else _affine(s, call, x, *args, **kwargs)


def _keeps_gates(s: Streams, call: Any, *args: Any, gate: bool = False, **kwargs: Any) -> Tensor:
    return _relay_layer(s, call, *args, **kwargs)


def _notes_how_many(origins: Origins, outputs: Sequence[Tensor]) -> None:
    origins.so_far = len(origins._unsupported)  # type: ignore[attr-defined]
    _check(origins, outputs)


def _before_the_last(origins: Origins, outputs: Sequence[Tensor]) -> list[str]:
    del origins._unsupported[origins.so_far :]  # type: ignore[attr-defined]
    return _unsupported(origins, outputs)


def _past_hooks(ledger: Ledger, R: Tensor, own: Any) -> Any:
    put = list(ledger._parts)
    parts = _take(ledger, R, own)
    return put if len(put) == len(parts) else parts


DROPOUTS = "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout".split()
SAME = "clone contiguous to type_as double cpu view view_as reshape __getitem__".split()
IN_PLACE = "add_ sub_ mul_ div_ __iadd__ __isub__ __imul__ __itruediv__".split()

UNDONE: dict[str, Sequence[Undoing]] = {
    "sign: integers count as indices": [
        replaced(Known, "is_nonnegative", partialmethod(_numbers_are_nonnegative, kinds=int))
    ],
    "sign: numbers are not looked at": [replaced(Known, "is_nonnegative", _numbers_are_nonnegative)],
    "sign: constants are not looked at": [replaced(Known, "is_nonnegative", _constants_are_nonnegative)],
    "sign: where has that of its live branch": [handled(_as_live, "where")],
    "sign: fills keep it": [handled(shape.moves, "masked_fill", "__setitem__")],
    "sign: threshold, whatever its value": [
        handled(partial(activations.activation, proof=activations.always), "threshold", "_threshold")
    ],
    "sign: softplus, whatever its beta": [
        handled(partial(activations.activation, proof=activations.always), "softplus")
    ],
    "sign: leaky relu, as a relu": [handled(partial(activations.activation, proof=activations.always), "leaky_relu")],
    "sign: clamp, whatever its bounds": [
        handled(partial(activations.activation, proof=activations.always), "clamp")
    ],
    "sign: average pools, whatever their divisor": [handled(partial(pooling.fixed, keeps_sign=True), "avg_pool2d")],
    "sign: pads keep it": [handled(shape.moves, "pad")],
    "sign: writes that torch does not count": [replaced(Known, "forget", nothing)],
    "sign: writes by numpy": [replaced(Known, "lend", nothing)],
    "gate: nothing is one but what makes it": [
        replaced(streams, "inherited", lambda facts: {"gate": False, "data": all(f.data for f in facts)})
    ],
    "gate: lost by dropout": [forgets("gate", *DROPOUTS)],
    "gate: lost by expanding": [forgets("gate", "expand_as", "expand", "broadcast_to")],
    "gate: lost by 1 - z": [forgets("gate", "sub", "rsub", "__rsub__", "add", "__radd__")],
    "gate: lost by products": [forgets("gate", "mul", "div")],
    "gate: lost by moves and fills": [forgets("gate", "flip", "cat", "masked_fill", "where", "__getitem__", "flatten")],
    "gate: lost by clamp": [forgets("gate", "clamp")],
    "gate: kept by layers": [replaced(Streams, "relay_layer", _keeps_gates)],
    "gate: references for a shape are asked": [
        replaced(streams, "sources_of", lambda output, edges: [*range(max(1, len(edges)))]),
        replaced(Streams, "_of_base", nothing),
    ],
    "layer: lost by dropout": [forgets("layer", *DROPOUTS, value=None)],
    "layer: lost by identities": [forgets("layer", "clone", *SAME, value=None)],
    "layer: x * scale + shift is none": [
        replaced(module, "affine", _apart_from_layers) for module in (sums, products)
    ],
    "layer: batch norms are none": [forgets("layer", "linear", "conv1d", "conv2d", value=None)],
    "layer: remembers what is there now": [
        replaced(Keeper, "rescue", nothing), replaced(Kept, "release", lambda kept: kept.tensor)
    ],
    "layer: has constants of the samples": [replaced(Known, "is_any_varying", lambda known, constants: False)],
    "data: lost in place": [forgets("data", *IN_PLACE)],
    "data: lost in a buffer": [forgets("data", "copy_", "__setitem__")],
    "data: has no units": [replaced(affine, "change_of_unit", lambda *_, **__: NotImplemented)],
    "data: batch norms are no unit": [replaced(normalization, "change_of_unit", lambda *_, **__: NotImplemented)],
    "flow: unseen functions are not named": [replaced(Origins, "take_gradient", nothing)],
    "flow: the last function is not named": [
        replaced(Origins, "unsupported", _before_the_last), replaced(Origins, "check", _notes_how_many)
    ],
    "flow: constants keep their graph": [
        replaced(interception, "substitute", lambda structure, change: structure),
        replaced(interception, "_check_target", nothing),
        replaced(Streams, "carrier", lambda s, t: t),
    ],
    "flow: ends are not named": [replaced(Origins, "check", nothing)],
    "flow: index_put is a move": [handled(shape.fills, "index_put")],
    "flow: index_add is a move": [handled(shape.fills, "index_add")],
    "flow: scatter_add is a move": [handled(shape.fills, "scatter_add")],
    "flow: cumsum is a move": [handled(shape.moves, "cumsum")],
    "flow: h += h.detach() of what h has become": [
        replaced(Streams, "value_before", lambda s, call, t: s.value(t))
    ],
    "flow: checkpoints are computed again as they are": [replaced(Interception, "_enter_checkpoint", nothing)],
    "layer: what is merged passes hooks by": [replaced(Ledger, "take", _past_hooks)],
    "flow: norms are not centred": [
        replaced(normalization, "Centred", lambda input_shape, grouped: Elementwise(input_shape=input_shape))
    ],
}  # fmt: skip


@contextmanager
def undone(name: str) -> Iterator[None]:
    """Within this context, the library makes this mistake."""
    with ExitStack() as stack:
        for undoing in UNDONE[name]:
            stack.enter_context(undoing())
        yield


def expectations(kind: str, factor: float = 1) -> Iterator[Expectation]:
    """Those of the networks of a kind that the tests draw, or of more."""
    for number in range(round(factor * KINDS[kind].examples)):
        case, program = random_network(kind, number, KNOWN_TO_FAIL)
        yield Expectation(program, case)


def is_right(expectation: Expectation) -> bool:
    """Whether the library finds what is expected, without failing otherwise."""
    try:
        return bool(expectation.verdict())
    except Exception:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], help="of networks, and of mistakes")
    parser.add_argument("--factor", type=float, default=1, help="how many times the networks that the tests draw")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    drawn = [expectation for kind in chosen.kinds for expectation in expectations(kind, chosen.factor)]
    print(f"{'nothing':55} {sum(not is_right(expectation) for expectation in drawn):4} of {len(drawn)}", flush=True)
    for name in (name for name in UNDONE if name.partition(":")[0] in chosen.kinds):
        with undone(name):
            wrong = sum(not is_right(expectation) for expectation in drawn)
        print(f"{name:55} {wrong:4} of {len(drawn)}" + ("" if wrong else "  not found"), flush=True)


if __name__ == "__main__":
    main()
