"""Gradient form: what is carried is relevance over value, ``g = R / value``.

Where every rule gives an input relevance with its value as a factor, ``R = x g``, it need not be multiplied with the
value by one layer and divided by it again by the next. Sums, pools, moves, softmax and rectifiers hand on their plain
gradient; here is what backward does elsewhere. :mod:`lrp.engine.forms` says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...maps.arithmetic import divide, mask_, mul_
from .recording import is_recording

# What a layer's backward takes and gives: relevance; relevance over value; that taken and relevance given; or that
# taken, and given to the layer's own plain gradient.
Form = Literal["relevance", "gradient", "border", "damped"]


class GradientForm:
    """A backward that takes ``g`` of the outputs, where others take relevance."""


@dataclass(frozen=True)
class Start(GradientForm):
    """The backward of an output of the model, which relevance comes to: ``g = R / y``, and 0 where ``y`` is 0.

    Attributes:
        thread: that of the explained forward.
        is_recorded: whether it kept what a trace needs.
    """

    thread: int
    is_recorded: bool

    def __call__(self, R: Tensor, y: Tensor) -> Tensor:
        if not self.is_recorded and is_recording(self.thread):
            raise RuntimeError(
                "lrp.trace: form='gradient' keeps the inputs of hidden layers only where recording is on; call the "
                "model within the recording, too, or with form='relevance'"
            )
        return divide(R, y, 0.0)


@dataclass(frozen=True)
class Border(GradientForm):
    """The backward of data that meets what is none: ``R = x g``."""

    def __call__(self, g: Tensor, x: Tensor) -> Tensor:
        return g * x


@dataclass(frozen=True)
class Unchanged(GradientForm):
    """The backward of a function of each element, perhaps of several at each, that passes relevance on: ``g f(x) / x``.

    Attributes:
        limit: of ``f(x) / x`` at zero.
    """

    limit: float

    def __call__(self, g: Tensor, x: Tensor, z: Tensor) -> Tensor:
        ratio, is_zero = z / x, x == 0
        ratio = ratio.masked_fill(is_zero, self.limit) if self.limit else mask_(ratio, is_zero)
        return mul_(ratio, g).sum_to_size(x.shape)


@dataclass(frozen=True)
class Converted(GradientForm):
    """A backward in relevance form, each of whose results has the value of its input as a factor: ``g = R / x``.

    Attributes:
        backward: that backward.
        number: of its inputs.
    """

    backward: Callable[..., Any]
    number: int

    def __call__(self, g: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        values, saved = tensors[: self.number], tensors[self.number :]
        found = self.backward(g * z, *saved)
        relevances = (found,) if isinstance(found, Tensor) else found
        return tuple(None if R is None else divide(R, x, 0.0) for R, x in zip(relevances, values, strict=True))
