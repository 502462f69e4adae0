"""The modules of a model: what they leave as it was, and where relevance is seen or ends within it.

* :mod:`~lrp.engine.modules.untouched` - the model is left as it was, in training mode too
* :mod:`~lrp.engine.modules.roots` - the output of a module that is explained in place of the inputs
* :mod:`~lrp.engine.modules.watching` - the relevance at the inputs and outputs of any modules

The last two hook modules while a forward runs: those of a twin, which nobody else calls.
"""
