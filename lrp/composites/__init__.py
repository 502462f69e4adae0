"""Which rule for which layer.

A composite is itself a rule, that of a whole model: an ordered table from selectors to rules, and a default.

* :mod:`~lrp.composites.composite` - the table, and what its selectors match
* :mod:`~lrp.composites.named` - those of the literature, and the keys that ``rule=`` takes
* :mod:`~lrp.composites.auto` - which rule suits a model, by the functions that it calls

A new composite is a class in ``named`` that says its table, with its key. How a rule shares relevance out is not said
here but in :mod:`lrp.rules`.
"""

from ..rules import get
from .composite import Composite, Keyword, assigned_rules, resolve
from .named import (
    KEYS,
    Deconvnet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
)

__all__ = [
    "KEYS",
    "Composite",
    "Deconvnet",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonGammaBox",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "ExcitationBackprop",
    "GuidedBackprop",
    "Keyword",
    "assigned_rules",
    "get",
    "resolve",
]
