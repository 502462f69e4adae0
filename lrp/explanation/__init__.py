"""One call, from a model and its inputs to an explanation that says how it came about.

* :mod:`~lrp.explanation.explain` - the call: start to read here
* :mod:`~lrp.explanation.running` - run a model, and let relevance flow
* :mod:`~lrp.explanation.inputs`, :mod:`~lrp.explanation.outputs` - what models take and give
* :mod:`~lrp.explanation.targets` - what is explained
* :mod:`~lrp.explanation.flow` - how much relevance starts where, and what comes of it
* :mod:`~lrp.explanation.audit` - where relevance went
* :mod:`~lrp.explanation.weights` - what flows through each weight
* :mod:`~lrp.explanation.randomization` - whether a map depends on what the model has learned
* :mod:`~lrp.explanation.result`, :mod:`~lrp.explanation.files` - what comes out, and in which files it is kept
"""

from .audit import Audit, Row
from .explain import explain
from .randomization import Randomization
from .result import Explanation, Features
from .targets import Difference, Region, Top

__all__ = ["Audit", "Difference", "Explanation", "Features", "Randomization", "Region", "Row", "Top", "explain"]
