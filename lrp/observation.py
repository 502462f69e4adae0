"""See what goes through the linear layers of a model, in its own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .assignment import Assignment
from .calls import Call, in_place_target, tensors_in
from .handlers.linear import parse
from .handlers.normalization import batch_norm_arguments
from .linear_maps import Convolution, Linear
from .rules import Gradient


class Observed(NamedTuple):
    """One call of a linear layer.

    Attributes:
        name: the layer's name; a layer that is called again keeps its own.
        f: what it is.
        x: its input.
        w: its weight.
        z: its output.
        activation: what the activation function after it sees: ``z``, or what a batch norm makes of it.
    """

    name: str
    f: Linear | Convolution
    x: Tensor
    w: Tensor
    z: Tensor
    activation: Tensor


class Observation(TorchFunctionMode):
    """While active, calls of linear layers are reported, each just after it or after the batch norm that follows.

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
        self._names: dict[int, str] = {}
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
        merges = self._merges(func, *args, **kwargs)
        target = in_place_target(func, args, kwargs)
        if target is not None or kwargs.get("out") is not None:
            self.settle()
        result = func(*args, **kwargs)
        live = any(map(self._depends_on_data, tensors_in((args, kwargs))))
        for t in tensors_in((result, target)):
            self._is_live[t] = live
        if merges and self._waiting is not None:
            self._waiting = self._waiting._replace(activation=result)
        elif live:
            self._note(Call(func, args, kwargs), result)
        return result

    def settle(self) -> None:
        """Report the layer that waits for a batch norm."""
        if self._waiting is not None:
            observed, self._waiting = self._waiting, None
            self._report(observed)

    def _note(self, call: Call, z: Any) -> None:
        layer = parse(call)
        if layer is None or not self._depends_on_data(layer.x) or self._depends_on_data(layer.w):
            return
        self.settle()
        place = self._assignment.place(layer.family, call.function, (layer.w, layer.b))
        index = self._assignment.index(place, layer.w)
        name = self._names.setdefault(index, str(place) if place.module is None else place.name)
        batched = z.dim() == len(layer.f.input_shape)
        x, z = (layer.x, z) if batched else (layer.x.unsqueeze(0), z.unsqueeze(0))
        self._waiting = Observed(name, layer.f, x, layer.w, z, activation=z)

    def _depends_on_data(self, t: Tensor) -> bool:
        """What no function that is seen has made was made by a custom autograd function."""
        return bool(self._is_live.get(t, True))  # type: ignore[no-untyped-call]

    def _merges(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Whether this is the batch norm, in eval mode, of what the waiting layer has just put out."""
        if func is not F.batch_norm or self._waiting is None or not self._waiting.f.has_channels(self._waiting.z):
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
