"""See what goes through the linear layers of a model, in its own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..engine.assignment import Assignment
from ..engine.calls import Call, in_place_target, key_of, named, tensors_in
from ..engine.calls.norms import batch_norm_arguments
from ..engine.calls.parsing import parse
from ..maps import Sampled
from ..rules import Gradient

_ADD = {*named("add", "__add__", "__radd__", "__iadd__")}


class Observed(NamedTuple):
    """One call of a linear layer.

    Attributes:
        name: the layer's name; a layer that is called again keeps its own.
        f: what it is.
        x: its input.
        w: its weight.
        z: its output.
        activation: what the activation function after it sees: ``z``, or what it is after a constant was added to it
            or a batch norm followed.
    """

    name: str
    f: Sampled
    x: Tensor
    w: Tensor
    z: Tensor
    activation: Tensor


class Observation(TorchFunctionMode):
    """While active, calls of linear layers are reported, each after the bias or batch norm that follows.

    Args:
        model: its parameters give the layers their names.
        inputs: the data. A layer whose input does not depend on them is none.
        report: is called with what was observed, before anything is done to it in place.
    """

    def __init__(self, model: nn.Module, inputs: Any, report: Callable[[Observed], None]) -> None:
        super().__init__()
        self._assignment = Assignment(Gradient(), None, model)
        self._report = report
        self._waiting: Observed | None = None
        self._is_live = WeakTensorKeyDictionary()
        for t in model.state_dict(keep_vars=True).values():
            if isinstance(t, Tensor):
                self._is_live[t] = False
        for t in tensors_in(inputs):
            self._is_live[t] = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        merges = self._merges(func, args, kwargs)
        target = in_place_target(func, args, kwargs)
        if target is not None or kwargs.get("out") is not None:
            self._rescue() if merges else self._settle()
        result = func(*args, **kwargs)
        live = self._is_any_live(tensors_in((args, kwargs)))
        for t in tensors_in((result, target)):
            self._is_live[t] = live
        if merges and self._waiting is not None and result.shape == self._waiting.z.shape:
            self._waiting = self._waiting._replace(activation=result)
        elif live is not False:
            self._note(Call(func, args, kwargs), result)
        else:
            self._assignment.derive((args, kwargs), result)
        return result

    def __exit__(self, exc_type: Any, *about: Any) -> None:
        super().__exit__(exc_type, *about)  # type: ignore[no-untyped-call]
        if exc_type is None:
            self._settle()

    def _settle(self) -> None:
        """Report the layer that waits for its bias or a batch norm."""
        if self._waiting is not None:
            seen, self._waiting = self._waiting, None
            if seen.x.dim() < len(seen.f.input_shape):
                x, z, activation = (t.unsqueeze(0) for t in (seen.x, seen.z, seen.activation))
                seen = seen._replace(x=x, z=z, activation=activation)
            self._report(seen)

    def _note(self, call: Call, z: Any) -> None:
        layer = parse(call, self._may_depend) or parse(call, self._depends)
        if layer is None:
            return
        self._settle()
        place = self._assignment.place(layer.family, call.function, (layer.w, layer.b))
        _, name = self._assignment.index(place, layer.w)
        self._waiting = Observed(name, layer.f, layer.x, layer.w, z, activation=z)

    def _rescue(self) -> None:
        """Keep the output of the layer that waits, which is about to be overwritten."""
        if self._waiting is not None:
            self._waiting = self._waiting._replace(z=self._waiting.z.clone())

    def _is_any_live(self, tensors: Iterable[Tensor]) -> bool | None:
        """Whether one depends on the data; None where that is unknown."""
        states = {self._is_live.get(t) for t in tensors}  # type: ignore[no-untyped-call]
        return True if True in states else None if None in states else False

    def _may_depend(self, t: Tensor) -> bool:
        """What no function that is seen has made was made by a custom autograd function, ..."""
        return self._is_any_live([t]) is not False

    def _depends(self, t: Tensor) -> bool:
        """... or is a constant that the model has not registered, as weights are."""
        return self._is_any_live([t]) is True

    def _merges(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether this adds a constant to what the waiting layer has put out, or is its batch norm in eval mode."""
        if self._waiting is None or not any(t is self._waiting.z for t in tensors_in((args, kwargs))):
            return False
        if key_of(func) in _ADD:
            z = self._waiting.z
            others = [t for t in tensors_in((args, kwargs)) if t is not z]
            return not any(self._may_depend(t) if t.shape == z.shape else self._depends(t) for t in others)
        if func is not F.batch_norm or not self._waiting.f.has_channels(self._waiting.z):
            return False
        x, mean, var, _, _, training, _ = batch_norm_arguments(*args, **kwargs)
        return x is self._waiting.z and not training and mean is not None and var is not None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; then in the mode that it was in, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
