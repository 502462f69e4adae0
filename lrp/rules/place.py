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
        others: further names and layers, where several share the parameters or one is registered twice.
    """

    name: str
    family: Family
    function: str
    module: nn.Module | None = None
    number: int = 1
    first: bool = False
    others: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the layer, the one that it is called by first."""
        return (self.name, *(name for name, _ in self.others))

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All layers that own the parameters."""
        return () if self.module is None else (self.module, *(module for _, module in self.others))

    def is_linear(self) -> bool:
        """Whether this is a linear layer or a convolution."""
        return self.family in ("linear", "conv")

    def __str__(self) -> str:
        return self.name if self.number == 1 else f"{self.name}#{self.number}"
