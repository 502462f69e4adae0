"""Checkpoints: what ``torch.utils.checkpoint`` computes a second time in backward has to be intercepted again.

A checkpoint keeps nothing in the forward but numbers what autograd saves, and finds it in its recomputation by these
numbers. So the recomputation must do what the forward did: the same functions with the same rules, which save the same
tensors. These go through the checkpoint's own saving, and memory falls as without an explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..maps.storage import place_of
from ..rules import Pass, Place, Rule
from .assignment import Assignment
from .calls import tensors_in
from .facts import Known


class Checkpoint:
    """One checkpoint of an explained forward: what its recomputation needs to do alike.

    Args:
        frame: torch's record of it.
        known: what is known at its beginning.
        start: how many rules have been chosen before it.

    Attributes:
        start: alike.
        facts: the facts of the tensors among its arguments, None for constants.
    """

    def __init__(self, frame: Any, known: Known, start: int) -> None:
        self.start = start
        self.facts = [known.of_edge(*get_gradient_edge(t)[:2]) if t.requires_grad else None for t in _inputs(frame)]
        self._saved: dict[int | None, set[int]] = {}
        self._overwritten: set[int] = set()
        self._number = 0

    def saved(self, tensors: Sequence[Tensor], is_again: bool) -> Sequence[Tensor]:
        """What the next relay saves of these tensors: in the recomputation copies, if they are overwritten later."""
        number = self._number
        self._number += 1
        if not is_again:
            for t in tensors:
                self._saved.setdefault(place_of(t), set()).add(number)
        return [t.clone() for t in tensors] if is_again and number in self._overwritten else tensors

    def overwrites(self, target: Tensor) -> None:
        """Note that what was saved in this memory is overwritten: nobody holds it, to be rescued."""
        self._overwritten |= self._saved.pop(place_of(target), set())

    def begin(self, known: Known, arguments: Any) -> Checkpoint:
        """Note of the arguments of the recomputation what was known of them in the forward."""
        self._number = 0
        for t, facts in zip(tensors_in(arguments), self.facts, strict=True):
            if facts is not None:
                known.note(t, facts)
        return self


def running_frame() -> Any:
    """torch's record of the innermost checkpoint whose forward is running, or None."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    code = None if hooks is None else getattr(hooks[0], "__code__", None)
    if code is None or "frame" not in code.co_freevars:
        return None
    frame = dict(zip(code.co_freevars, hooks[0].__closure__ or (), strict=True))["frame"].cell_contents
    return frame if hasattr(frame, "recompute_fn") else None


class Replayed(Assignment):
    """The rules that were chosen before, in their order."""

    def __init__(self, chosen: Sequence[tuple[Place, Rule]]) -> None:
        super().__init__(Pass())
        self._again = iter(chosen)

    def choose(self, *_: Any, **__: Any) -> tuple[str, Rule]:
        place, rule = next(self._again)
        self.chosen.append((place, rule))
        return str(place), rule


def _inputs(frame: Any) -> list[Tensor]:
    """The tensors among the arguments of a checkpoint."""
    if hasattr(frame, "get_inputs"):
        return list(tensors_in(frame.get_inputs()))
    saver = frame.input_saver.grad_fn
    return list(tensors_in(saver.get_args(saver.saved_tensors)))
