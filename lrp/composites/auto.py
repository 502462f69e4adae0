"""``rule="auto"``: which rule suits a model, by the functions that its own forward calls.

Convolutions: ``epsilon_plus_flat`` (Kohlbrenner et al. 2020, arXiv 1910.09840: composites of epsilon above and z+
below locate objects best; on EfficientNet-Lite0 the patches that it finds count twice as much as random ones, see
benchmarks). Else epsilon, in units of the spread of a layer's outputs (Montavon et al. 2019, section 10.2: 0.25): an
absolute one means nothing where activations are small or large.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..engine import Assignment
from ..engine.calls import plain_name
from ..rules import Epsilon, Rule
from .named import EpsilonPlusFlat

_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}


def likely(model: Any) -> Rule:
    """The rule that a model probably gets, by the modules that it has."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return _for(any(isinstance(module, _ConvNd) for module in modules))


def decided(assignment: Assignment) -> Rule:
    """The rule that a model gets, by what its forward has called.

    Raises:
        NotImplementedError: for attention, which has no rule.
    """
    called = {plain_name(function).strip("_") for function in assignment.functions}
    attention = sorted(called & _ATTENTION) or (["softmax"] if _weighs(called) else [])
    if attention:
        raise NotImplementedError(
            f"rule='auto': the model has attention ({attention[0]}), which has no rule; name a rule for the rest of it"
        )
    return _for(any(place.family == "conv" for place, _ in assignment.chosen))


def _weighs(called: set[str]) -> bool:
    """Whether a softmax and products of matrices are called, as in attention that is spelled out."""
    return "softmax" in called and bool(called & {name.strip("_") for name in _PRODUCTS})


def _for(has_convolutions: bool) -> Rule:
    return EpsilonPlusFlat() if has_convolutions else Epsilon(0.25, relative=True)
