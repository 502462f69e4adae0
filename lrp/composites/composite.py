"""A composite: which rule for which layer, as an ordered table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .. import rules
from ..engine import assigned
from ..engine.backward.propagation import nearest_layers
from ..engine.calls import substitute
from ..maps import LinearMap
from ..rules import Family, Place, Rule

Selector = str | type[nn.Module] | Callable[[Place], bool]
Table = Mapping[Any, Rule | str] | Iterable[tuple[Selector, Rule | str]]

FAMILIES = ("conv", "linear", "norm", "pool", "max_pool", "sum", "activation")
ENDS = ("first", "last")


class Keyword(str):
    """A family, ``"first"`` or ``"last"`` as a selector, for models in which a layer has that name.

    >>> Composite({Keyword("conv"): "zplus"}) == Composite({"conv": "zplus"})
    True
    """


class Composite(Rule):
    """An ordered table, selector -> rule. The first selector that matches a layer wins.

    A selector is one of

    * the name of a layer, as in ``model.named_modules()``, or a glob such as ``"features.*"``;
    * a family: ``"conv"``, ``"linear"``, ``"norm"``, ``"pool"`` (averages, interpolation), ``"max_pool"`` (also
      ``amax`` and ``max``, but not ``topk``, ``sort`` and the like), ``"sum"``, ``"activation"``;
    * ``"first"``, the linear layers and convolutions that the data meets before any other, and ``"last"``, those
      that no other follows on the way to the output;
    * a torch class, such as ``torch.nn.Conv2d``;
    * a callable that takes a :class:`lrp.rules.Place` and says whether the rule is meant for it.

    A glob is for layers with weights. A function without parameters, such as a functional relu, has its own name.
    A batch norm that merges with the layer before it has that layer's rule. Layers that share all their parameters
    are one layer, which each of their names matches.

    Args:
        table: a mapping, or pairs of a selector and a rule or its key.
        default: the rule of the layers that no selector matches; functions that no selector matches have its
            companions. Default ``"epsilon"``.

    Raises:
        TypeError: for what is no selector, or no rule.
        ValueError: for an unknown key and for a selector that stands twice; and where a model is explained, for a
            selector, other than a family, that matches nothing in it, and for one such as ``"conv"`` that is a
            layer's name as well; :class:`Keyword` and a callable are unambiguous.

    >>> import torch, lrp
    >>> composite = Composite({"first": lrp.rules.ZBox(0.0, 1.0), "conv": "zplus", "*.head": "epsilon"})
    >>> composite
    Composite
      first      ZBox(low=0.0, high=1.0)
      conv       ZPlus()
      *.head     Epsilon(epsilon=0.1, exponent=1)
      otherwise  Epsilon(epsilon=0.1, exponent=1)
    """

    def __init__(self, table: Table, default: Rule | str = "epsilon") -> None:
        rows = table.items() if isinstance(table, Mapping) else table
        self.table = tuple((_selector(selector), _rule(rule)) for selector, rule in rows)
        self.default = _rule(default)
        selectors = [selector for selector, _ in self.table]
        for selector in selectors:
            if selectors.count(selector) > 1:
                raise ValueError(f"table: the selector {_shown(selector)} stands twice; only its first row would count")

    def updated(self, table: Table, default: Rule | str | None = None) -> Composite:
        """A copy with these rows: each in the place of the row of its selector, or else before all others."""
        changes = dict(Composite(table).table)
        rows = [(selector, changes.pop(selector, rule)) for selector, rule in self.table]
        return Composite([*changes.items(), *rows], self.default if default is None else default)

    def resolve(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Rule]:
        """The rule of each layer and function of a model; see :func:`lrp.composites.resolve`.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> Composite({"first": "flat"}).resolve(model, torch.rand(1, 3))
        {'0': Flat(), 'relu': Pass(), '2': Epsilon(epsilon=0.1, exponent=1)}
        """
        return resolve(self, model, *args, **kwargs)

    def rule_for(self, place: Place) -> Rule:
        if place.family == "product":
            return self.default.companion(place.family)
        if_last: Rule | None = None
        for selector, rule in self.table:
            if selector == "last":
                if_last = if_last or (rule if place.is_linear() else None)
            elif _selects(selector, place):
                return rule if if_last is None else _IfLast(if_last, rule)
        rule = self.default.companion(place.family)
        return rule if if_last is None else _IfLast(if_last, rule)

    def check(self, chosen: Sequence[tuple[Place, Rule]], output: Any) -> None:
        selectors = [selector for selector, _ in self.table]
        last = list(nearest_layers(output)) if "last" in selectors else []
        for layer in last:
            if isinstance(layer.rule, _IfLast):
                layer.rule.state.is_last = True
        places = [place for place, _ in chosen if place.family != "product"]
        for selector in selectors:
            _check_ambiguity(selector, places, {layer.name for layer in last})
            if selector in FAMILIES or selector == "last" or any(_selects(selector, place) for place in places):
                continue
            if selector != "first" or any(place.is_linear() for place in places):
                names = ", ".join(str(place) for place in places)
                raise ValueError(f"the selector {_shown(selector)} matches nothing; the layers are {names or 'none'}")

    def companion(self, family: Family) -> Rule:
        return self.default.companion(family)

    @property
    def needs_pattern(self) -> bool:
        return any(rule.needs_pattern for rule in (self.default, *(rule for _, rule in self.table)))

    def __repr__(self) -> str:
        rows = [*((_shown(selector), rule) for selector, rule in self.table), ("otherwise", self.default)]
        width = max(len(name) for name, _ in rows)
        return "\n".join([type(self).__name__, *(f"  {name:{width}}  {rule!r}" for name, rule in rows)])


def resolve(rule: Rule | str, model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Rule]:
    """The rule of each layer and function of a model, by name, in the order of its forward.

    Args:
        rule: whatever ``rule=`` takes.
        model: any model, or a function of tensors; a batch norm that merges with a layer is not listed.
        args, kwargs: what the model takes; every floating tensor among them is taken for an explained input.

    Raises:
        ValueError, TypeError: as an explanation by this rule does.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> resolve("zplus", model, torch.rand(1, 3))
    {'0': ZPlus(), 'relu': Pass(), '2': ZPlus()}
    """

    def explained(t: Tensor) -> Tensor:
        return t.detach().requires_grad_() if t.is_floating_point() else t

    rule, module = rules.get(rule), model if isinstance(model, nn.Module) else None
    chosen = assigned(model, substitute(args, explained), substitute(kwargs, explained), rule=rule, module=module)
    return assigned_rules(chosen)


def assigned_rules(chosen: Sequence[tuple[Place, Rule]]) -> dict[str, Rule]:
    """The rules by name, of all places but products, which have no choice."""
    rows = [(str(place), rule) for place, rule in chosen if place.family != "product"]
    return {name: rule.decided if isinstance(rule, _IfLast) else rule for name, rule in rows}


@dataclass
class _State:
    is_last: bool = False


class _IfLast(Rule):
    """One rule for the last layer and another for any other: which it is, is known when the forward is over.

    What is made of it, for a batch norm that merges or with a pattern, shares its state: it is of the same layer.
    """

    def __init__(self, last: Rule, otherwise: Rule, state: _State | None = None) -> None:
        self.last, self.otherwise, self.state = last, otherwise, state or _State()

    @property
    def decided(self) -> Rule:
        return self.last if self.state.is_last else self.otherwise

    def __repr__(self) -> str:
        return f"{self.last!r} if last, else {self.otherwise!r}"

    def check_dtype(self, dtype: torch.dtype, layer: str) -> None:
        self.last.check_dtype(dtype, layer)
        self.otherwise.check_dtype(dtype, layer)

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self.decided.redistribute(f, x, w, b, z, R)

    def gradient_form(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, g: Tensor) -> Tensor:
        return self.decided.gradient_form(f, x, w, b, z, g)

    @property
    def has_gradient_form(self) -> bool:
        return self.last.has_gradient_form and self.otherwise.has_gradient_form

    def needs_output(self, f: LinearMap) -> bool:
        return self.last.needs_output(f) or self.otherwise.needs_output(f)

    def is_divisible(self, x: Tensor) -> bool:
        return self.decided.is_divisible(x)

    def counts_zeros(self) -> bool:
        return self.decided.counts_zeros()

    def is_plain(self) -> bool:
        return self.decided.is_plain()

    @property
    def needs_pattern(self) -> bool:
        return self.last.needs_pattern or self.otherwise.needs_pattern

    def with_pattern(self, pattern: Tensor) -> Rule:
        return _IfLast(self.last.with_pattern(pattern), self.otherwise.with_pattern(pattern), self.state)

    def scaled(self, f: LinearMap, scale: Tensor) -> Rule:
        return _IfLast(self.last.scaled(f, scale), self.otherwise.scaled(f, scale), self.state)


def _selects(selector: Selector, place: Place) -> bool:
    if isinstance(selector, type):
        if place.module is None:
            return _calls(selector, place.function)
        return any(isinstance(module, selector) for module in place.modules)
    if not isinstance(selector, str):
        return bool(selector(place))
    if selector == "first":
        return place.first and place.is_linear()
    if selector in FAMILIES:
        return place.family == selector
    has_weights = place.is_linear() or place.family == "norm"
    return _names(selector, place) or (has_weights and any(fnmatchcase(name, selector) for name in place.names))


def _names(selector: str, place: Place) -> bool:
    """Whether the selector is a name of this layer, or of this call of it."""
    return selector in place.names or selector in (f"{name}#{place.number}" for name in place.names)


def _check_ambiguity(selector: Selector, places: Sequence[Place], last: Set[str | None]) -> None:
    """Raise for a word such as "conv" that is also the name of a layer, and means others than that layer."""
    if type(selector) is not str or selector not in FAMILIES + ENDS:
        return
    named = {str(place) for place in places if place.module is not None and _names(selector, place)}
    is_last = selector == "last"
    meant = {str(place) for place in places if (str(place) in last if is_last else _selects(selector, place))}
    if named and named != meant:
        others = ", ".join(sorted(meant)) or "nothing here"
        raise ValueError(
            f"the selector {selector!r} is ambiguous: it is the name of a layer, and means {others}; "
            f"for the layer, write lambda layer: layer.name == {selector!r}; for what it means, "
            f"lrp.composites.Keyword({selector!r})"
        )


def _calls(cls: type[nn.Module], function: str) -> bool:
    """Whether a class of torch calls this function: ``MaxPool2d`` calls ``max_pool2d``."""
    return cls.__name__.lower() == function.replace("_", "")


def _selector(selector: Selector) -> Selector:
    known = issubclass(selector, nn.Module) if isinstance(selector, type) else callable(selector)
    if known or isinstance(selector, str):
        return selector
    raise TypeError(
        f"the selector {selector!r}: must be a layer's name or glob, one of {', '.join(map(repr, FAMILIES + ENDS))}, "
        "a torch.nn class or a callable"
    )


def _rule(rule: Rule | str) -> Rule:
    found = rules.get(rule)
    if isinstance(found, Composite):
        raise TypeError(
            f"a rule in a Composite's table must be one rule, not a Composite such as {type(found).__name__}; "
            "see Composite.updated()"
        )
    return found


def _shown(selector: Selector) -> str:
    return selector if isinstance(selector, str) else getattr(selector, "__qualname__", repr(selector))
