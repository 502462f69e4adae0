"""How relevance is shared out: each rule written once, in terms of a linear map, and so valid for every layer.

A rule is a frozen dataclass with one method, :meth:`Rule.redistribute`. It sees the layer as a linear map
(:mod:`lrp.maps`), and nothing of models, autograd or torch's functions.

* :mod:`~lrp.rules.place` - where in a model a rule is chosen
* :mod:`~lrp.rules.rule` - what a rule is, and the three that stand beside others: in proportion, unchanged, gradient
* :mod:`~lrp.rules.dividing` - those of LRP: epsilon, gamma, alpha-beta, z+, z-box, w-square, flat
* :mod:`~lrp.rules.contributions` - what these weigh against each other
* :mod:`~lrp.rules.totals` - the sums that they divide by, and their precision
* :mod:`~lrp.rules.patterns` - PatternNet and PatternAttribution
* :mod:`~lrp.rules.signals` - guided backpropagation and the deconvnet, for activations
* :mod:`~lrp.rules.numbers` - the numbers that rules take
* :mod:`~lrp.rules.keys` - the keys that ``rule=`` takes

A new rule is a class in the file whose idea it shares, with its key; the dense formula that it must equal goes to
``tests/oracles/reference.py``. Which rule suits which layer is not said here but in :mod:`lrp.composites`.
"""

from ..maps.arithmetic import stabilize
from .dividing import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .keys import KEYS, get, register
from .patterns import PatternAttribution, PatternNet
from .place import Family, Place
from .rule import Gradient, Pass, Proportional, Rule
from .signals import Deconvnet, Guided

__all__ = [
    "KEYS",
    "AlphaBeta",
    "Deconvnet",
    "Epsilon",
    "Family",
    "Flat",
    "Gamma",
    "Gradient",
    "Guided",
    "Pass",
    "PatternAttribution",
    "PatternNet",
    "Place",
    "Proportional",
    "Rule",
    "WSquare",
    "ZBox",
    "ZPlus",
    "get",
    "register",
    "stabilize",
]
