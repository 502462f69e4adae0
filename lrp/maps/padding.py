"""Zeros that pad the input of a linear map, and are no inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import Tensor
from torch.nn import functional as F

from .linear_maps import LinearMap
from .weights import Make

Widths = tuple[int, ...]
"""How much is added before and after the last dimension, the last but one, ..., as torch.nn.functional.pad takes it."""


@dataclass(frozen=True, kw_only=True)
class Padded(LinearMap):
    """A map of an input that is padded with zeros first: ``z = f(pad(x), w, b)``, as a convolution pads its own.

    Attributes:
        f: the map of what is padded.
        widths: those of the zeros.
    """

    f: LinearMap
    widths: Widths

    @classmethod
    def of(cls, f: LinearMap, widths: Widths) -> Padded:
        """What ``f`` is for that part of its input which is no padding."""
        shape = _grown(f.input_shape, [-width for width in widths])
        return cls(f=f, widths=widths, input_shape=shape, signed=f.signed, made=f.made)

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self._f.forward(self.pad(x), w, b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self.inner(self._f.pullback(s, w))

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return self._f.weight_pullback(self.pad(x), s)

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self._f.forward_modified(self.pad(x), make, w, b)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        return self.inner(self._f.pullback_modified(s, make, w))

    def forward_at(self, at: tuple[Tensor, ...], x: Tensor, make: Make, w: Tensor) -> Tensor:
        return self._f.forward_at(at, self.pad(x), make, w)

    def per_output(self, b: Tensor) -> Tensor:
        return self.f.per_output(b)

    def is_divisible(self) -> bool:
        return self.f.is_divisible() and not any(self.widths[2 * len(self.input_shape) - 2 :])

    def lowest(self, x: Tensor) -> Tensor:
        return self._f.lowest(self.pad(x))

    def channels(self) -> tuple[int, ...] | None:
        return self.f.channels()

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        return self.f.scale_channels(w, scale)

    def pad(self, x: Tensor) -> Tensor:
        """``x`` with the zeros around it."""
        return F.pad(x, self.widths)

    def inner(self, t: Tensor) -> Tensor:
        """What has the zeros around it without them: a view."""
        for dim, (near, far) in enumerate(zip(self.widths[::2], self.widths[1::2], strict=True), start=1):
            t = t.narrow(-dim, near, t.shape[-dim] - near - far)
        return t

    @property
    def _f(self) -> LinearMap:
        """The map of what is padded, for as many samples as this is for."""
        return replace(self.f, input_shape=_grown(self.input_shape, self.widths), made=self.made)


def zeros_around(before: Widths, widths: Sequence[int], shape: Sequence[int]) -> Widths:
    """The zeros around a tensor that had those ``before``, and this ``shape``, and is padded by ``widths``.

    Negative widths cut off. Where they leave nothing but zeros, these are not told apart: no input is among them.
    """
    around = tuple(max(0, a + b) for a, b in zip_longest(before, widths, fillvalue=0))
    inner = _grown(_grown(shape, widths), [-width for width in around])
    return around if any(around) and min(inner) > 0 else ()


def _grown(shape: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """The shape of what is padded: the last dimensions first have their widths."""
    more = [near + far for near, far in zip(widths[::2], widths[1::2], strict=True)]
    return tuple(size + n for size, n in zip_longest(shape[::-1], more, fillvalue=0))[::-1]
