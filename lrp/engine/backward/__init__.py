"""What happens when relevance flows backward, and what is kept for it.

* :mod:`~lrp.engine.backward.propagation` - the autograd function that calls a rule
* :mod:`~lrp.engine.backward.gradient_form` - where relevance over value is carried, what is not torch's own gradient
* :mod:`~lrp.engine.backward.ledger` - what is merged with a layer, and what reaches its output from elsewhere
* :mod:`~lrp.engine.backward.moves` - how a layer's output was rearranged since, and back
* :mod:`~lrp.engine.backward.kept` - what backward needs, kept from operations in place
* :mod:`~lrp.engine.backward.samples` - whether a tensor is what it was, where torch does not count
* :mod:`~lrp.engine.backward.books` - how much relevance comes to each call, and where it goes
* :mod:`~lrp.engine.backward.recording` - who records the relevance of hidden layers
"""
