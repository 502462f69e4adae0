"""Programs over tensors, step by step: what each step is called, how it is written, and what it means.

A program is written twice. Its *lines* are Python source, in any of the spellings that torch has; its *meanings* are
what the lines compute, in words that know no spelling: a layer, a sum, a move. The library explains the lines, and a
reference (:mod:`generators.readings`) reads the meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from networks import randomize
from torch import Tensor, nn

T = TypeVar("T")
Meaning = tuple[Any, ...]
READ_ONLY = 0  # the memory of inputs and constants, which no step writes into

PREAMBLE = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

def folded(norm, dims, scale=True, shift=True):
    '''Scale and shift of a batch norm in eval mode, shaped to broadcast over (n, channels, ...).'''
    w = norm.weight * (norm.running_var + norm.eps).rsqrt() if scale else torch.ones_like(norm.weight)
    b = norm.bias - norm.running_mean * w if shift else torch.zeros_like(norm.bias)
    return [t.detach().reshape(1, -1, *[1] * (dims - 2)) for t in (w, b)]

class Unseen(torch.autograd.Function):
    '''Three times its input, by a function of the user's own.'''
    generate_vmap_rule = True
    @staticmethod
    def forward(t):
        return 3 * t
    @staticmethod
    def setup_context(ctx, inputs, output):
        pass
    @staticmethod
    def backward(ctx, grad):
        return 3 * grad
"""


class Skip(Exception):  # noqa: N818
    """A step that cannot be taken here, for want of what it needs."""


@dataclass
class Value:
    """A tensor of a program.

    Attributes:
        name: of the variable.
        shape: without the batch, which is dimension 0.
        memory: the number of its memory, which views share.
        kind: "data" before any layer, "layer" for what a layer gives, "gate", "signal".
        sure: False where it is open whether a scale and shift that follow belong to a layer: they are not drawn.
    """

    name: str
    shape: tuple[int, ...]
    memory: int = READ_ONLY
    kind: str = "signal"
    sure: bool = True

    @property
    def is_data(self) -> bool:
        return self.kind == "data"

    @property
    def writable(self) -> bool:
        return self.memory != READ_ONLY

    @property
    def full_shape(self) -> str:
        return f"(n, {', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Step:
    """One value: its lines in the program, and its meaning."""

    name: str
    lines: tuple[str, ...]
    meaning: Meaning


@dataclass(frozen=True)
class Program:
    """A drawn network. ``str()`` of it is Python source."""

    shapes: tuple[tuple[int, ...], ...]
    setup: tuple[str, ...]
    steps: tuple[Step, ...]
    output: str
    labels: frozenset[str]
    seed: int

    @property
    def source(self) -> str:
        names = ", ".join(f"x{i}" for i in range(len(self.shapes)))
        lines = ["n = len(x0)", *(line for step in self.steps for line in step.lines), f"return {self.output}"]
        return "\n".join(
            [
                "class Program(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *(f"        {line}" for line in self.setup),
                f"    def forward(self, {names}):",
                *(f"        {line}" for line in lines),
            ]
        )

    def __repr__(self) -> str:
        shapes = ", ".join(map(str, self.shapes))
        return f"{self.source}\n# seed {self.seed}, inputs of shapes (n, ...): {shapes}\n# {sorted(self.labels)}"

    __str__ = __repr__

    def build(self) -> nn.Module:
        """The network, with weights from the seed."""
        scope: dict[str, Any] = {}
        exec(compile(PREAMBLE + self.source, "<drawn program>", "exec"), scope)
        torch.manual_seed(self.seed)
        model: nn.Module = scope["Program"]().double().eval()
        for i, layer in enumerate(model.children()):
            randomize(layer, self.seed + i)
        return model

    def inputs(self, n: int = 2) -> list[Tensor]:
        """Random inputs that require grad."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randn(n, *s, generator=generator, dtype=torch.float64).requires_grad_() for s in self.shapes]


@dataclass
class Builder:
    """Writes a program by what is drawn.

    Args:
        integer: draws a number from the first to the second.
        exact: the rule is epsilon -> 0, for which it does not matter what belongs to a layer.
        has_factor: the rules give no relevance to an input that is zero.
        absorbs: a constant term takes its share.
        off: patterns of labels that are not to be drawn.
    """

    integer: Callable[[int, int], int]
    exact: bool = True
    has_factor: bool = True
    absorbs: bool = True
    off: Sequence[str] = ()
    values: list[Value] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    modules: list[Any] = field(default_factory=list)
    memories: int = READ_ONLY
    overwritten: int = -1
    names: int = 0

    def allows(self, label: str) -> bool:
        return not any(fnmatchcase(label, pattern) for pattern in self.off)

    def label(self, *labels: str) -> None:
        self.labels.update(labels)

    def flag(self) -> bool:
        return self.integer(0, 1) == 1

    def choose(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def spell(self, kind: str, spellings: dict[str, Any], context: str = "") -> Any:
        """One of the spellings that are switched on; labelled as ``kind:spelling@context``.

        Raises:
            Skip: where none is.
        """
        labels = {f"{kind}:{name}{context and '@'}{context}": spelling for name, spelling in spellings.items()}
        allowed = [label for label in labels if self.allows(label)]
        if not allowed:
            raise Skip
        label = self.choose(allowed)
        self.label(label)
        return labels[label]

    def name(self, prefix: str = "h") -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def memory(self) -> int:
        self.memories += 1
        return self.memories

    def module(self, prefix: str, made: str) -> str:
        """A new module or buffer of the model, under a name of its own."""
        name = self.name(prefix)
        self.setup.append(f"self.{name} = {made}")
        return name

    def constant(self, prefix: str, made: str) -> str:
        name = self.name(prefix)
        self.setup.append(f"self.register_buffer({name!r}, {made})")
        return f"self.{name}"

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """One of the values that fit, mostly the last one, which is the simplest choice."""
        fitting = [value for value in reversed(self.values) if fits(value)]
        if not fitting:
            raise Skip
        return fitting[self.integer(0, len(fitting) - 1) if self.integer(0, 3) == 3 else 0]

    def meaning_of(self, value: Value) -> Meaning:
        return next(step.meaning for step in self.steps if step.name == value.name)

    def overwrite(self, value: Value) -> None:
        """The memory of a value is written into: no other value that lives there can be used any more."""
        assert value.writable
        self.overwritten = len(self.steps)
        self.values = [other for other in self.values if other.memory != value.memory]

    def note(
        self,
        shape: tuple[int, ...],
        lines: str | Iterable[str],
        meaning: Meaning,
        *,
        kind: str = "signal",
        memory: int | None = None,
        sure: bool = True,
    ) -> Value:
        """A step. In its lines, ``{out}`` stands for the name of what it makes."""
        name = self.name()
        lines = [lines] if isinstance(lines, str) else lines
        text = tuple(line.replace("{out}", name) for line in lines)
        self.steps.append(Step(name, text, meaning))
        value = Value(name, shape, self.memory() if memory is None else memory, kind, sure)
        self.values.append(value)
        return value

    def finish(self, shapes: Sequence[tuple[int, ...]], seed: int) -> Program:
        return Program(
            tuple(shapes),
            tuple(self.setup),
            tuple(self.steps),
            self.values[-1].name,
            frozenset(self.labels),
            seed,
        )
