"""Checkpoints: what ``torch.utils.checkpoint`` computes a second time in backward has to be intercepted again.

A checkpoint keeps nothing in the forward but numbers what autograd saves, and finds it in its recomputation by these
numbers. So the recomputation must do what the forward did: the same functions with the same rules, which save the same
tensors. These go through the checkpoint's own saving, and memory falls as without an explanation.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..maps.storage import place_of
from ..rules import Pass, Place, Rule
from .assignment import Assignment
from .backward.kept import TELLS_HOOKS, hooks_for_saving
from .calls import tensors_in
from .facts import Facts, Known

_CHECKPOINT = inspect.unwrap(checkpoint).__code__


class Checkpoint:
    """One checkpoint of an explained forward: what its recomputation needs to do alike.

    Args:
        facts: what is known of the tensors among its arguments, None for constants.
        start: how many rules have been chosen before it.

    Attributes:
        facts, start: alike.
    """

    def __init__(self, facts: Sequence[Facts | None], start: int) -> None:
        self.facts, self.start = facts, start
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
    if not TELLS_HOOKS and _call_of_checkpoint() is not None:
        raise NotImplementedError("torch.utils.checkpoint within an explained forward needs a newer torch than 2.6")
    hooks = hooks_for_saving()
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


def arguments_of_checkpoint() -> Any:
    """The arguments of the innermost checkpoint that is running.

    They are found where it was called: torch's record of them cannot be read within another checkpoint, which would
    begin its recomputation.
    """
    frame = _call_of_checkpoint()
    if frame is None:
        raise NotImplementedError(
            "a checkpoint that is not called by torch.utils.checkpoint.checkpoint() cannot be explained"
        )
    return frame.f_locals["args"]


def _call_of_checkpoint() -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _CHECKPOINT:
        frame = frame.f_back
    return frame
