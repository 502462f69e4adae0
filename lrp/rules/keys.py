"""The keys that ``rule=`` takes, which composites add theirs to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .dividing import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZPlus
from .patterns import PatternAttribution, PatternNet
from .rule import Gradient, Rule

KEYS: dict[str, Rule] = {
    "gradient": Gradient(),
    "epsilon": Epsilon(epsilon=0.1),
    "gamma": Gamma(gamma=0.1),
    "gamma+epsilon": Gamma(gamma=0.1, epsilon=0.1),
    "alpha1beta0": AlphaBeta(1, 0),
    "alpha2beta1": AlphaBeta(2, 1),
    "zplus": ZPlus(),
    "wsquare": WSquare(),
    "flat": Flat(),
    "patternnet": PatternNet(),
    "patternattribution": PatternAttribution(),
}


_all_keys: dict[str, Rule] = {**KEYS}


def register(keys: Mapping[str, Rule]) -> None:
    """Let :func:`get`, and so every ``rule=``, take these keys besides.

    Raises:
        ValueError: for a key that names another rule already.
    """
    for key, rule in keys.items():
        if _all_keys.setdefault(key, rule) != rule:
            raise ValueError(f"key={key!r}: names {_all_keys[key]!r} already")


def get(rule: str | Rule) -> Rule:
    """The rule or composite that ``rule=`` names: a key, or a rule itself.

    Raises:
        ValueError: for a key that there is not; it lists the keys.
        TypeError: for anything else, a rule's class without parentheses among them.

    >>> import lrp
    >>> get("alpha2beta1")
    AlphaBeta(alpha=2, beta=1, conserve=False)
    >>> get("epsilon_plus") == lrp.composites.EpsilonPlus()
    True
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule={rule.__name__}: this is the class; write {rule.__name__}(...)")
    if not isinstance(rule, str):
        raise TypeError(f"rule={rule!r}: must be a key such as 'epsilon', or a lrp.Rule")
    if rule not in _all_keys:
        near = difflib.get_close_matches(rule.lower(), _all_keys, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"rule={rule!r} is unknown: {hint}the keys are {', '.join(map(repr, _all_keys))}")
    return _all_keys[rule]
