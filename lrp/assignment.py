"""Which layer is called what, and which rule and pattern it gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from .rule import Family, Proportional, Rule
from .rules import PatternNet

Patterns = Sequence[Tensor] | Mapping[str, Tensor]


class Assignment:
    """The names, rules and patterns of the layers, in one explained forward.

    Args:
        rule: the rule of the linear layers; the other functions have its companions.
        pattern: a list with one pattern for each linear layer in the order of the forward, or a dict by layer name.
        module: the model, whose parameters give its layers their names.
    """

    def __init__(self, rule: Rule, pattern: Patterns | None = None, module: nn.Module | None = None) -> None:
        self.rule = rule
        self.pattern = pattern
        self.names = {} if module is None else layer_names(module)
        self.calls: Counter[str] = Counter()
        self.last_name: str | None = None
        self._order: list[str] = []

    def name(self, parameters: Sequence[Tensor | None], function: str) -> str:
        """The name of the layer that owns one of the parameters, or else the function's."""
        known = (self.names[id(p)] for p in parameters if id(p) in self.names)
        self.last_name = next(known, function)
        return self.last_name

    def numbered(self, name: str) -> str:
        """The name of this call of a layer: its own at first, then ``"name#2"``, ``"name#3"``."""
        self.calls[name] += 1
        return name if self.calls[name] == 1 else f"{name}#{self.calls[name]}"

    def rule_for(self, family: Family, dtype: torch.dtype) -> Rule:
        """The rule of a function of this family."""
        rule = self.rule.companion(family)
        if isinstance(rule, Proportional) and rule.epsilon > 0 and _vanishes(rule.epsilon, dtype):
            raise ValueError(
                f"epsilon={rule.epsilon}: is 0 in {dtype}, whose smallest number is "
                f"{torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps:.1e}; take a larger one, or float32"
            )
        return rule

    def rule_for_layer(self, name: str, w: Tensor) -> Rule:
        """The rule of a linear layer, with its pattern if it needs one."""
        rule = self.rule_for("linear", w.dtype)
        if isinstance(rule, PatternNet) and rule.pattern is None:
            return replace(rule, pattern=self._pattern(name, w))
        return rule

    def check_all_used(self) -> None:
        """Raise if patterns were given for more layers than the forward called."""
        if not isinstance(self.rule, PatternNet) or self.pattern is None:
            return
        given = len(self.pattern)
        if given > len(self._order):
            raise ValueError(f"pattern= has {given} patterns for {len(self._order)} layers: {self._order}")

    def _pattern(self, name: str, w: Tensor) -> Tensor:
        if self.pattern is None:
            raise ValueError(
                f"rule={self.rule} needs pattern=: a list with one for each linear layer, or a dict by name"
            )
        if name not in self._order:
            self._order.append(name)
        key = name if isinstance(self.pattern, Mapping) else self._order.index(name)
        try:
            pattern: Tensor = self.pattern[key]  # type: ignore[index]
        except (KeyError, IndexError):
            raise ValueError(f"pattern= has none for layer {name!r}, number {self._order.index(name) + 1}") from None
        if pattern.shape != w.shape:
            raise ValueError(f"pattern= has shape {tuple(pattern.shape)} for layer {name!r}: must be {tuple(w.shape)}")
        return pattern


def layer_names(module: nn.Module) -> dict[int, str]:
    """The layer's name for the identity of each parameter and buffer.

    A replica in ``torch.nn.DataParallel`` keeps its parameters, which are no longer leaves, under another attribute.
    """
    names: dict[int, str] = {}
    for name, layer in module.named_modules():
        tensors = {**layer._parameters, **layer._buffers, **getattr(layer, "_former_parameters", {})}
        for tensor in tensors.values():
            names.setdefault(id(tensor), name or type(layer).__name__)
    return names


@cache
def _vanishes(epsilon: float, dtype: torch.dtype) -> bool:
    return torch.tensor(epsilon, dtype=dtype).item() == 0
