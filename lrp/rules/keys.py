"""The keys that ``rule=`` takes."""

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


def get(rule: str | Rule, keys: Mapping[str, Rule] = KEYS) -> Rule:
    """The rule that ``rule=`` names: a key of the table, or a rule itself.

    Raises:
        ValueError: for a key that is not in the table; it lists the keys.
        TypeError: for anything else, a rule's class without parentheses among them.

    >>> get("alpha2beta1")
    AlphaBeta(alpha=2, beta=1, conserve=False)
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule={rule.__name__}: this is the class; write {rule.__name__}(...)")
    if not isinstance(rule, str):
        raise TypeError(f"rule={rule!r}: must be a key such as 'epsilon', or a lrp.Rule")
    if rule not in keys:
        near = difflib.get_close_matches(rule.lower(), keys, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"rule={rule!r} is unknown: {hint}the keys are {', '.join(map(repr, keys))}")
    return keys[rule]
