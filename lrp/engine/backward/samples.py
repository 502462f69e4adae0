"""Tell whether a tensor is what it was, where torch does not count what is written to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import Parameter

from ...maps.storage import storage_of
from .kept import was_modified

_SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """Some values of a tensor, all of a small one: torch does not count what its own fused optimizers write.

    Nor does it count numpy, ``.data``, other processes. What such a one writes in few places of a large tensor may
    escape, and so does all that is written on an accelerator, which would have to be waited for.
    """

    values: Tensor

    @classmethod
    def of(cls, t: Tensor | None) -> Sample | None:
        """Of a plain tensor on the CPU; None while somebody traces the computation."""
        return cls(_some_of(t)) if t is not None and _can_be_read(t) else None

    def check(self, t: Tensor) -> None:
        """Raise if ``t``, which is the same tensor at another time, does not have these values."""
        if _can_be_read(t) and not torch.equal(self.values, _some_of(t)):
            raise was_modified(t)


def _can_be_read(t: Tensor) -> bool:
    is_plain = type(t) in (Tensor, Parameter) and t.device.type == "cpu" and storage_of(t) is not None
    return is_plain and not torch._C._len_torch_dispatch_stack()


def _some_of(t: Tensor) -> Tensor:
    """The bits of some values, which are as good for NaN as for numbers."""
    return t.detach().take(_places(t.numel())).view(torch.uint8)


@lru_cache(maxsize=256)
def _places(number: int) -> Tensor:
    step = max(1, number // _SAMPLES) | 1  # which visits all columns of a matrix
    return torch.arange(0, number, step, device="cpu")
