"""A layer as data: ``z = f(x, w, b)``, linear in ``x``, with the three passes that rules are written in.

Nothing here knows of rules, models or relevance.

* :mod:`~lrp.maps.linear_maps` - what a linear map is; linear layers, norms, and functions whose weights are their own
* :mod:`~lrp.maps.convolutions` - of any dimension and geometry, transposed or not
* :mod:`~lrp.maps.contractions` - products with a constant tensor: matmul, einsum, tensordot
* :mod:`~lrp.maps.padding` - a map of an input that zeros pad
* :mod:`~lrp.maps.scaled` - a map merged with a scale of its neurons
* :mod:`~lrp.maps.arithmetic` - division that never blows up, and arithmetic in place
* :mod:`~lrp.maps.weights` - modified weights such as ``w+``, made once for an explained forward
* :mod:`~lrp.maps.storage` - where a tensor's values lie

A new kind of layer is a subclass of :class:`LinearMap` with ``forward``, ``pullback`` and ``weight_pullback``; every
rule then works for it. What calls of torch it stands for is said in :mod:`lrp.engine.calls`.
"""

from .contractions import Contraction
from .convolutions import Convolution
from .linear_maps import Centred, Elementwise, Fixed, Linear, LinearMap, Sampled
from .padding import Padded
from .scaled import Scaled

__all__ = [
    "Centred", "Contraction", "Convolution", "Elementwise", "Fixed", "Linear", "LinearMap", "Padded", "Sampled",
    "Scaled",
]  # fmt: skip
