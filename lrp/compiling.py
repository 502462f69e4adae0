"""Explanations as one graph: values, rules and backward traced together, and compiled.

>>> import torch, lrp
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
>>> explain = lrp.compile(model, rule="epsilon", backend="eager")
>>> output, relevance = explain(torch.rand(5, 4), target=2)
>>> output.shape, relevance.shape
(torch.Size([5, 3]), torch.Size([5, 4]))
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from .composites import get
from .conversion import convert
from .engine import Asked, Patterns
from .engine.checks import check_form, check_inputs, check_pattern
from .rules import Rule

Explanation = tuple[Tensor, "Tensor | tuple[Tensor, ...]"]

_PLAIN = {type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size}
_NOT_TO_BE_SEEN = ("torch", "lrp")


def compile(  # noqa: A001 - as torch.compile
    model: nn.Module | Callable[..., Any],
    *,
    rule: str | Rule = "epsilon",
    target: int | Tensor | None = None,
    pattern: Patterns | None = None,
    form: Asked = "relevance",
    strict: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """A function that explains a model in one compiled graph.

    ``explain(*inputs, target=None)`` gives the model's output and the relevance of each floating input, which starts at
    the output, or of it at the target. It is traced once for each shape, dtype and device, and whenever a module, its
    mode, its attributes or its hooks are others than before. Parameters and buffers are read in each call.

    Args:
        model: a module that gives one tensor, or a function of tensors. What a function closes over is traced once.
        rule: a key such as ``"epsilon"`` (default), a rule or a composite.
        target: the index of the output to be explained along its dimension 1: a number, or one for each sample;
            None (default) explains all outputs together. A call may have another.
        pattern: for rules that need patterns, as in a forward.
        form: ``"relevance"`` or ``"gradient"``, as in a forward.
        strict: whether a function without a rule is an error.
        backend, mode, options: as :func:`torch.compile` takes them; ``mode="reduce-overhead"`` for small batches on a
            GPU, where an output lasts until the next call.

    Raises:
        ValueError, TypeError, NotImplementedError: as the explained forward of the model raises them.

    Returns:
        The function. It raises NotImplementedError, with the line, for a model whose path depends on values.
    """
    check_form(form, differentiable=False)
    check_pattern(pattern)
    settings = {"rule": get(rule), "pattern": pattern, "form": form, "strict": strict}
    return Compiled(model, target, settings, {"backend": backend, "mode": mode, "options": options})


class Compiled:
    """What :func:`compile` gives."""

    def __init__(
        self, model: nn.Module | Callable[..., Any], target: int | Tensor | None, settings: Mapping[str, Any],
        compiler: Mapping[str, Any],
    ) -> None:  # fmt: skip
        convert(model)  # raises for what cannot be explained
        self._model, self._target = model, target
        self._settings, self._compiler = settings, compiler
        self._state = _State()
        self._traces: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *inputs: Tensor, target: int | Tensor | None = None) -> Explanation:
        """The output, and the relevance of each floating input: a tensor, or a tuple of several.

        Args:
            inputs: those of the model.
            target: as for :func:`compile`, in place of what was given there.
        """
        with torch.enable_grad():
            given = _explained(inputs)
            check_inputs(_requiring_grad(given), getattr(self._model, "forward", self._model), given, {})
        index = _index(self._target if target is None else target, inputs)
        state = _state_of(self._model)
        if state.key != self._state.key:
            self._state = state
            self._traces.clear()
        key = tuple(_signature(t) for t in (*inputs, index) if t is not None)
        if key not in self._traces:
            self._traces[key] = self._traced(state.tensors, inputs, index)
        with torch.no_grad():
            output, relevances = self._traces[key]([*state.tensors.values()], inputs, index)
        return output, relevances[0] if len(relevances) == 1 else tuple(relevances)

    def _traced(self, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor], index: Tensor | None) -> Any:
        """The compiled graph of an explanation, a function of all tensors."""
        twin, names = convert(self._model), [*tensors]

        def explanation(values: Sequence[Tensor], inputs: Sequence[Tensor], index: Tensor | None) -> Any:
            named = dict(zip(names, values, strict=True))
            with torch.enable_grad():
                given = _explained(inputs)
                y = functional_call(twin, named, given, {"explain": True, **self._settings})
            if not isinstance(y, Tensor):
                raise TypeError(f"lrp.compile(): the model gives a {type(y).__name__}; it must give one tensor")
            start, xs = y.detach() if index is None else y.detach() * _selection(y, index), _requiring_grad(given)
            relevances = torch.autograd.grad(y, xs, start, allow_unused=True)
            return y.detach(), [torch.zeros_like(x) if R is None else R for x, R in zip(xs, relevances, strict=True)]

        values = [t.detach() for t in tensors.values()]
        try:
            graph = make_fx(explanation)(values, inputs, index)
        except RuntimeError as error:
            if "tracing tensor" in str(error) or "data-dependent" in str(error).lower():
                raise _untraceable(error) from error
            raise
        return torch.compile(graph, **_settings(self._compiler, inputs))


@dataclass(frozen=True)
class _State:
    """What a model is at present.

    Attributes:
        key: all but the values of its tensors.
        tensors: its parameters and buffers, by name.
        held: what the key knows by identity, which no other can get as long as it is held.
    """

    key: Sequence[Any] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    held: Sequence[Any] = ()


def _state_of(model: nn.Module | Callable[..., Any]) -> _State:
    """What a model is now, read in each call."""
    key: list[Any] = []
    tensors: dict[str, Tensor] = {}
    held: list[Any] = []
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        _read(vars(module).values(), key, held)
        for name, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None:
                tensors[f"{path}.{name}" if path else name] = t
                key += name, *_signature(t)
    return _State(key, tensors, held)


def _read(values: Iterable[Any], key: list[Any], held: list[Any]) -> None:
    """Add to the key what compares as these attributes of a module do, its hooks among them, but for its tensors."""
    for value in values:
        if type(value) in _PLAIN:
            key.append(value)
        elif isinstance(value, (tuple, list)):
            key.append(len(value))
            _read(value, key, held)
        elif isinstance(value, dict):
            key.append(len(value))
            if value:
                key += value
                _read((None if isinstance(v, Tensor) else v for v in value.values()), key, held)
        else:
            held.append(value)
            key.append(id(value))


def _signature(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


def _settings(compiler: Mapping[str, Any], inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """As :func:`torch.compile` takes them: on a CPU convolutions keep their layout, which inductor would copy from."""
    is_free = compiler["backend"] == "inductor" and compiler["mode"] is None and compiler["options"] is None
    if is_free and inputs[0].device.type == "cpu":
        return {**compiler, "options": {"layout_optimization": False}}
    return compiler


def _explained(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs, those that can carry relevance as leaves of a graph of their own."""
    return tuple(t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs)


def _requiring_grad(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.requires_grad]


def _index(target: int | Tensor | None, inputs: Sequence[Tensor]) -> Tensor | None:
    """The target as one index for each sample."""
    if target is None:
        return None
    if isinstance(target, Tensor):
        return target.to(inputs[0].device)
    return torch.full((len(inputs[0]),), target, device=inputs[0].device)


def _selection(y: Tensor, index: Tensor) -> Tensor:
    """1 at the target of each sample, and 0 elsewhere; dimension 1 of the output counts the targets."""
    if y.dim() < 2 or index.shape != y.shape[:1]:
        raise ValueError(
            f"target= has shape {tuple(index.shape)}: must be one index for each sample, of an output of shape "
            f"{tuple(y.shape)}"
        )
    index = torch.where(index < 0, index + y.shape[1], index)
    places = index.view(-1, 1, *(1 for _ in y.shape[2:]))
    return torch.zeros_like(y).scatter(1, places.expand(-1, 1, *y.shape[2:]), 1.0)


def _untraceable(error: RuntimeError) -> Exception:
    """What to say where a model cannot be traced: in which line of it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_of_library(f.filename)]
    place = "a line that is not known" if not frames else f"{frames[-1].filename}:{frames[-1].lineno}"
    line = "" if not frames else linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return NotImplementedError(
        f"lrp.compile(): the model's path depends on values, in {place} ({line}), and cannot be traced: explain it "
        "without compile()"
    )


def _is_of_library(filename: str) -> bool:
    path = Path(filename)
    return any(name in path.parts for name in _NOT_TO_BE_SEEN)
