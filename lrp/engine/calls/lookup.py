"""Find a torch function under all the names that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_PLACES = (torch, Tensor, F, torch._C._nn)


def named(*names: str) -> Iterator[Callable[..., Any]]:
    """Every torch function of these names, as a function, a method, a property, and in place."""
    for name in names:
        for spelling in (name, f"{name}_"):
            for place in _PLACES:
                found: Any = getattr(place, spelling, None)
                if callable(found):
                    yield found
                elif hasattr(found, "__get__"):  # a property
                    yield found.__get__
