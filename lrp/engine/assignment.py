"""Which layer is called what, and which rule and pattern it gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..rules import Family, Place, Rule
from .calls import plain_name, tensors_in
from .calls.by_tensor import ByTensor

Patterns = Sequence[Tensor] | Mapping[str, Tensor]
Owner = tuple[str, nn.Module]


class Assignment:
    """The names, rules and patterns of the layers, in one explained forward.

    Args:
        rule: the rule of the model: of all its linear layers, the other functions having its companions; or one
            that chooses by place.
        pattern: a list with one pattern for each linear layer in the order of the forward, or a dict by layer name.
        module: the model, whose parameters give its layers their names.

    Attributes:
        chosen: the rule of each place, in the order of the forward.
        last_name: the name of the last layer so far.
        functions: those that were called with live tensors.
    """

    def __init__(self, rule: Rule, pattern: Patterns | None = None, module: nn.Module | None = None) -> None:
        self.rule = rule
        self.pattern = pattern
        self.module = module
        self.chosen: list[tuple[Place, Rule]] = []
        self.last_name: str | None = None
        self.functions: set[Callable[..., Any]] = set()
        self._layers = [] if module is None else list(_layers(module))
        self._owners = _owners(self._layers)
        self._derived: ByTensor[Sequence[Owner]] = ByTensor()
        self._calls: Counter[str] = Counter()
        self._order: dict[tuple[Any, ...], tuple[int, str]] = {}
        self._taken: set[str] = set()
        self._checked: dict[tuple[int, torch.dtype], Rule] = {}
        self._companions: dict[Family, Rule] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the identity of one of them

    def derive(self, arguments: Any, result: Any) -> None:
        """Note that a constant was made of parameters, such as a normalised weight, and so has their owner."""
        if not self._owners:
            return
        owners = next((owners for t in tensors_in(arguments) if (owners := self._owners_of(t))), None)
        for t in tensors_in(result) if owners else ():
            self._derived[t] = owners or ()

    def choose(
        self,
        family: Family,
        function: Callable[..., Any],
        dtype: torch.dtype,
        parameters: Sequence[Tensor | None] = (),
        first: bool = False,
    ) -> tuple[str, Rule]:
        """The name of the layer that is called, and its rule.

        Args:
            family: the kind of function.
            function: the torch function.
            dtype: that in which the rule is computed.
            parameters: the layer's parameters, its weight first.
            first: whether the input is data that no linear layer has seen.
        """
        place = self.place(family, function, parameters, first)
        rule = self._rule_of(place)
        self._check_dtype(rule, dtype, place)
        weight = parameters[0] if parameters else None
        if place.is_linear() and weight is not None:
            layer = self.index(place, weight)
            if rule.needs_pattern and self.pattern is not None:
                rule = rule.with_pattern(_fitting(self.pattern, *layer, weight))
        elif rule.needs_pattern:
            rule = rule.companion(family)
        self.chosen.append((place, rule))
        return str(place), rule

    def _check_dtype(self, rule: Rule, dtype: torch.dtype, place: Place) -> None:
        """Raise where a number of the rule has no meaning in this dtype: once for each rule."""
        if (id(rule), dtype) not in self._checked:
            rule.check_dtype(dtype, str(place))
            self._checked[id(rule), dtype] = rule

    def _rule_of(self, place: Place) -> Rule:
        """The rule of a place: of a model that has one rule for all, its companion, each made once."""
        if type(self.rule).rule_for is not Rule.rule_for:
            return self.rule.rule_for(place)
        rule = self._companions.get(place.family)
        if rule is None:
            rule = self._companions[place.family] = self.rule.rule_for(place)
        return rule

    def check(self, output: Any) -> None:
        """After the forward: raise if patterns were given for more layers than it called, or rules for others."""
        if self.rule.needs_pattern and self.pattern is not None and len(self.pattern) > len(self._order):
            names = [name for _, name in self._order.values()]
            raise ValueError(f"pattern= has {len(self.pattern)} patterns for {len(names)} layers: {names}")
        self.rule.check(self.chosen, output)

    def place(
        self, family: Family, function: Callable[..., Any], parameters: Sequence[Tensor | None], first: bool = False
    ) -> Place:
        """Where a rule is to be chosen for the call that comes next."""
        called = plain_name(function).strip("_")
        owners = self._common_owners(parameters)
        name, module = owners[0] if owners else (called, None)
        if parameters:
            self.last_name = name
        self._calls[name] += 1
        return Place(name, family, called, module, self._calls[name], first, tuple(owners[1:]))

    def _common_owners(self, parameters: Sequence[Tensor | None]) -> Sequence[Owner]:
        """The layers that own all of the parameters that any layer owns, or else the first of them."""
        known = [owners for p in parameters if p is not None and (owners := self._owners_of(p))]
        first = known[0] if known else []
        return [owner for owner in first if all(owner in owners for owners in known)] or first

    def _owners_of(self, t: Tensor) -> Sequence[Owner] | None:
        """The layers that own a parameter, or what was made of one."""
        owners: Sequence[Owner] | None = self._owners.get(id(t)) or self._derived.get(t)
        if owners is None and isinstance(t, nn.Parameter) and t not in self._derived:
            self._owners = {**_owners(self._layers), **self._owners}  # a sharded model has others while it runs
            owners = self._derived[t] = self._owners.get(id(t), ())
        return owners

    def index(self, place: Place, weight: Tensor) -> tuple[int, str]:
        """The number of the layer in the order of the forward and its name, which it keeps when it is called again.

        A layer is what has a weight: one of which parts are used, or which is also used transposed, makes several.
        """
        owner = id(weight) if place.module is None else place.name
        key = owner, weight.shape, weight.stride(), weight.storage_offset()
        if key not in self._order:
            name = str(place) if place.name in self._taken else place.name
            self._taken.add(name)
            self._order[key] = len(self._order), name
            self._kept.append(weight)
        return self._order[key]


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, Owner]]:
    """All modules in ``module``, under all their paths, each with the name and the layer that own its parameters.

    What a parametrization makes a weight of belongs to the layer that has the weight.
    """
    for path, layer in _paths(module):
        name = f".{path}".split(".parametrizations.")[0][1:]
        yield layer, (name or type(layer).__name__, layer if name == path else module.get_submodule(name))


def _owners(layers: Iterable[tuple[nn.Module, Owner]]) -> dict[int, list[Owner]]:
    """The layers, with their names, for the identity of each parameter and buffer: several, where they share it.

    A replica in ``torch.nn.DataParallel`` keeps its parameters, which are no longer leaves, under another attribute.
    """
    owners: dict[int, list[Owner]] = {}
    for layer, owner in layers:
        tensors = {**layer._parameters, **layer._buffers, **getattr(layer, "_former_parameters", {})}
        for tensor in tensors.values():
            of_tensor = owners.setdefault(id(tensor), [])
            if owner not in of_tensor:
                of_tensor.append(owner)
    return owners


def _paths(module: nn.Module, path: str = "", above: tuple[nn.Module, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, as ``named_modules()`` does: one that is registered twice has both names."""
    yield path, module
    above = (*above, module)
    for name, child in module._modules.items():
        if child is not None and child not in above:
            yield from _paths(child, f"{path}.{name}" if path else name, above)


def _fitting(patterns: Patterns, index: int, name: str, w: Tensor) -> Tensor:
    """The pattern of the layer, which must have the shape of its weight."""
    try:
        pattern: Tensor = patterns[name if isinstance(patterns, Mapping) else index]  # type: ignore[index]
    except (KeyError, IndexError):
        raise ValueError(f"pattern= has none for layer {name!r}, number {index + 1}") from None
    if pattern.shape != w.shape:
        raise ValueError(f"pattern= has shape {tuple(pattern.shape)} for layer {name!r}: must be {tuple(w.shape)}")
    return pattern
