"""Running a model's own forward so that its backward carries relevance.

A mode sees every torch function that the model calls. What depends on the explained inputs is *live*: it has a value,
as torch computes it, and beside it a carrier, whose autograd graph leads relevance back to the inputs.

* :mod:`~lrp.engine.interception` - the mode, and the explained forward as a whole: start to read here
* :mod:`~lrp.engine.streams` - values and relevance side by side
* :mod:`~lrp.engine.forms` - in which form relevance is carried: as it is, or over the value
* :mod:`~lrp.engine.origins` - which tensors are live, and where they were made unseen
* :mod:`~lrp.engine.relays` - where the values meet the backward that relevance takes
* :mod:`~lrp.engine.facts` - what is known of a live tensor
* :mod:`~lrp.engine.handlers` - what each torch function does to relevance: here a function gets its rule
* :mod:`~lrp.engine.calls` - what a call of a torch function says
* :mod:`~lrp.engine.checks` - what an explained forward can be asked
* :mod:`~lrp.engine.modules` - the modules of a model: left as they were, watched, and where relevance may end
* :mod:`~lrp.engine.assignment` - which layer is called what, and which rule and pattern it gets
* :mod:`~lrp.engine.backward` - what happens when relevance flows backward, and what is kept for it
* :mod:`~lrp.engine.checkpoints` - what is computed again in backward

How a rule shares relevance out is not said here but in :mod:`lrp.rules`, and which rule a layer gets in
:mod:`lrp.composites`. The engine changes nothing of the model: it edits, hooks and traces no module
of anyone else.
"""

from .assignment import Assignment, Patterns
from .backward.books import Books
from .checks import GradientFormError
from .forms import Asked
from .interception import RelevanceWarning, assigned, explained, explained_by, value_of
from .modules.roots import Root
from .modules.watching import Layers, Watch, watched

__all__ = [
    "Asked",
    "Assignment",
    "Books",
    "GradientFormError",
    "Layers",
    "Patterns",
    "RelevanceWarning",
    "Root",
    "Watch",
    "assigned",
    "explained",
    "explained_by",
    "value_of",
    "watched",
]
