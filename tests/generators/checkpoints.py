"""A part of a program within ``torch.utils.checkpoint``, which computes it a second time in backward."""

from __future__ import annotations

import re
from dataclasses import replace

from lrp.engine.backward.kept import TELLS_HOOKS

from .program import Builder, Skip, Step


def checkpointed(b: Builder) -> None:
    """Some steps in a row become a function that is checkpointed, if nothing from there on is overwritten."""
    first = b.overwritten + 1
    if first >= len(b.steps) or not TELLS_HOOKS:
        raise Skip
    start = b.integer(first, len(b.steps) - 1)
    stop = b.integer(start + 1, len(b.steps))
    steps = b.steps[start:stop]
    b.steps[start:stop] = [*(replace(step, lines=()) for step in steps[:-1]), _within(b, steps)]


def _within(b: Builder, steps: list[Step]) -> Step:
    """The last of the steps, with the lines of all of them."""
    lines = [line for step in steps for line in step.lines]
    made = ", ".join(step.name for step in steps)
    used = dict.fromkeys(re.findall(r"\b[hx]\d+\b", " ".join(lines)))
    before = [name for name in used if name not in {step.name for step in steps}]
    arguments = b.spell("checkpoint", {"arguments": before, "closure": before[:1]})
    listed = ", ".join(arguments)
    body = [f"    {line}" for line in [*lines, f"return [{made}]"]]
    call = f"[{made}] = checkpoint(part, {listed}, use_reentrant=False)"
    return replace(steps[-1], lines=(f"def part({listed}):", *body, call))
