"""Functions that give back what they get: a map must not see them."""

from __future__ import annotations

import re
from dataclasses import replace

from lrp.engine.backward.kept import TELLS_HOOKS

from .program import Builder, Skip, Step, Value

IDENTITIES = {  # expression, and whether its memory is new
    "clone": ("{x}.clone()", True),
    "contiguous": ("{x}.contiguous()", False),
    "F.dropout": ("F.dropout({x}, 0.5, training=False)", False),
    "nn.Dropout": ("nn.Dropout().eval()({x})", False),
    "view": ("{x}.view({x}.shape)", False),
    "view_as": ("{x}.view_as({x})", False),
    "reshape": ("{x}.reshape({x}.shape)", False),
    "to": ("{x}.to({x}.dtype)", False),
    "to copy": ("{x}.to({x}.dtype, copy=True)", True),
    "double": ("{x}.double()", False),
    "type_as": ("{x}.type_as({x})", False),
    "nn.Identity": ("nn.Identity()({x})", False),
    "[...]": ("{x}[...]", False),
    "[:]": ("{x}[:]", False),
    "expand_as": ("{x}.expand_as({x})", False),
    "nn.Sequential()": ("nn.Sequential()({x})", False),
    "pad by nothing": ("F.pad({x}, (0, 0))", True),
    "feature_dropout": ("torch.feature_dropout({x}, 0.5, False)", False),
    "alpha_dropout": ("F.alpha_dropout({x}, 0.5)", False),
    "cpu": ("{x}.cpu()", False),
    "cat": ("torch.cat([{x}])", True),
    "where": ("torch.where(torch.tensor(True), {x}, {x})", True),
    "buffer": ("torch.empty_like({x}).copy_({x})", True),
}
ROUND_TRIPS = {
    "unsqueeze.squeeze": ("{x}.unsqueeze(0).squeeze(0)", False),
    "permute twice": ("{x}.transpose(0, 1).transpose(0, 1)", False),
    "flip twice": ("{x}.flip(0).flip(0)", True),
    "stack[0]": ("torch.stack([{x}])[0]", True),
    "flatten.view": ("{x}.flatten().view({x}.shape)", False),
}


def identity(b: Builder) -> None:
    """The last value again, by a function that changes nothing of it."""
    x = b.values[-1]
    identities = IDENTITIES | (ROUND_TRIPS if b.exact or x.kind != "layer" else {})
    if b.integer(0, 3) == 3:  # these stand between layers and their norms
        identities = {name: identities[name] for name in ("clone", "F.dropout", "nn.Dropout", "cat")}
    line, fresh = b.spell("identity", identities, x.kind)
    text = "{out} = " + line.format(x=x.name)
    b.note(x.shape, text, ("same", x.name), kind=x.kind, memory=b.memory() if fresh else x.memory, sure=x.sure)


def hooked(b: Builder) -> None:
    """Hooks of the model's layers that return what they get."""
    hooks = {
        "the output": "lambda m, a, y: y",
        "clone": "lambda m, a, y: y.clone()",
        "view": "lambda m, a, y: y.view_as(y)",
    }
    hook = b.spell("hook", hooks)
    b.setup.append(f"for m in self.children(): m.register_forward_hook({hook})")


MASKED = ("layer", "affine", "fixed", "total", "gated", "half_each")  # what gives a tensor of its own


def masked(b: Builder) -> None:
    """A hook at the last value, which masks its relevance."""
    x = b.values[-1]
    if x.kind not in ("layer", "signal") or b.meaning_of(x)[0] not in MASKED:
        raise Skip
    mask = b.constant("mask", f"(torch.rand(1, {', '.join(map(str, x.shape))}) < 0.6).double()")
    line = b.spell("masked", {"register_hook": "{x}.register_hook(lambda R: R * {mask})"})
    b.overwritten = len(b.steps)
    b.steps.append(Step(x.name, (line.format(x=x.name, mask=mask),), ("masked", mask, x.name)))


def cut(b: Builder) -> None:
    """What the program returns does not depend on its inputs any more."""
    x = b.values[-1]
    cuts = {
        "detach": ("", "{x}.detach()"),
        ".data": ("", "{x}.data"),
        "no_grad": ("with torch.no_grad(): ", "{x} + 1"),
        "step": ("", "({x} > 0).double()"),
    }
    where, line = b.spell("cut", cuts)
    line = line.format(x=x.name)
    b.note(x.shape, f"{where}{{out}} = {line}", ("cut", line))


def checkpointed(b: Builder) -> None:
    """Some steps in a row become a checkpoint, which backward computes again; nothing after them may be overwritten."""
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


def source(b: Builder, x: Value) -> None:
    """An explained input as the program first has it: itself, or a copy that it may overwrite."""
    b.values.append(x)
    if b.flag():
        b.label("copy of the input")
        b.note(x.shape, f"{{out}} = {x.name}.clone()", ("same", x.name), kind="data")
