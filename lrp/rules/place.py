"""Where in a model a rule is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Family = Literal["linear", "conv", "norm", "pool", "max_pool", "sum", "product", "activation"]


@dataclass(frozen=True)
class Place:
    """One call of a torch function in an explained forward, which a rule is chosen for.

    Attributes:
        name: the name of the layer that owns the function's parameters, or else the function's name.
        family: its kind: ``"conv"``, ``"linear"``, ``"norm"``, ``"pool"`` (averages and interpolation),
            ``"max_pool"``, ``"sum"``, ``"product"`` or ``"activation"``.
        function: the torch function's name, such as ``"conv2d"``.
        module: the layer, or None where no layer owns the parameters.
        number: 1 for the first call of this name, 2 for the second, ...
        first: whether the input is data that no linear layer or convolution has seen.
    """

    name: str
    family: Family
    function: str
    module: nn.Module | None = None
    number: int = 1
    first: bool = False

    def is_linear(self) -> bool:
        """Whether this is a linear layer or a convolution."""
        return self.family in ("linear", "conv")

    def __str__(self) -> str:
        return self.name if self.number == 1 else f"{self.name}#{self.number}"
