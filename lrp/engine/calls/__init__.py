"""What a call of a torch function says: its tensors, and whether it is a linear map and of what.

Calls are read here, by the arguments alone; what they do to relevance is said in :mod:`lrp.engine.handlers`.

* :mod:`~lrp.engine.calls.call` - one call, the tensors in it, and what it overwrites
* :mod:`~lrp.engine.calls.lookup` - a torch function under all its names
* :mod:`~lrp.engine.calls.parsing` - the linear map that a call is
* :mod:`~lrp.engine.calls.linear`, :mod:`~lrp.engine.calls.matrices` - the spellings of it: layers, products of tensors
* :mod:`~lrp.engine.calls.norms` - the arguments of norms
* :mod:`~lrp.engine.calls.by_tensor` - what is noted of tensors, for as long as they live

A new spelling of a linear map is a parser: a function with torch's arguments in torch's order.
"""

from .call import (
    Call,
    as_function,
    distinct,
    in_place_target,
    parts_within,
    replaced_within,
    strangeness,
    substitute,
    tensors_in,
    tensors_of,
    tensors_within,
)
from .lookup import Key, key_of, named, plain_name

__all__ = [
    "Call",
    "Key",
    "as_function",
    "distinct",
    "in_place_target",
    "key_of",
    "named",
    "parts_within",
    "plain_name",
    "replaced_within",
    "strangeness",
    "substitute",
    "tensors_in",
    "tensors_of",
    "tensors_within",
]
