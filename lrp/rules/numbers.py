"""The numbers that rules take: which values are numbers, and which mean something in a dtype."""

from __future__ import annotations

import math
import sys
from functools import cache
from numbers import Integral, Real
from typing import Any

import torch


def number(value: Any) -> int | float | None:
    """The value as Python's own number, if it is one: also numpy's, and an array or tensor without dimensions."""
    if getattr(value, "ndim", None) == 0 and not getattr(value, "requires_grad", False):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def check_number(rule: Any, name: str, at_least: float | None = None) -> None:
    """Raise unless the field ``name`` of ``rule`` is a finite number and large enough; it becomes Python's own."""
    value = number(getattr(rule, name))
    if value is None:
        raise TypeError(f"{name}={getattr(rule, name)!r}: must be a number")
    if abs(value) > sys.float_info.max or not math.isfinite(value) or (at_least is not None and value < at_least):
        least = "" if at_least is None else f" and at least {at_least}"
        raise ValueError(f"{name}={value!r}: must be finite{least}")
    object.__setattr__(rule, name, value)  # the rule is frozen, but not made yet


@cache
def range_error(name: str, value: float, dtype: torch.dtype) -> str | None:
    """Why a rule's number of this name means nothing in this dtype, or None. Rules compute float16 in float32."""
    info = torch.finfo(dtype)
    largest = torch.finfo(torch.float32 if dtype == torch.float16 else dtype).max
    if name == "gamma":  # weights are multiplied by it, and divided by sums of them
        largest = math.sqrt(largest)
    if math.isfinite(value) and abs(value) > largest:
        return f"is beyond {dtype}, where it may be {largest:.1e} at most; take a smaller one, or a wider dtype"
    if name == "epsilon" and value > 0 and torch.tensor(value, dtype=dtype, device="cpu").item() == 0:
        smallest = info.smallest_normal * info.eps
        return f"is 0 in {dtype}, whose smallest number is {smallest:.1e}; take a larger one, or float32"
    return None
