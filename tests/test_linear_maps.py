"""Linear maps: what is computed another way where that is faster."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONVOLUTIONS, cases, quarters, seeds
from torch import Tensor, nn

import lrp
from lrp.observation import Observation, Observed, evaluating


def observed(layer: nn.Module, x: Tensor) -> Observed:
    """The layer's own call."""
    calls: list[Observed] = []
    with evaluating(layer), Observation(layer, x, calls.append):
        layer(x)
    (call,) = calls
    return call


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer_class", CONVOLUTIONS, ids=lambda c: c.__name__)
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_weight_gradients_by_matrix_products(layer_class: type[nn.Module], data: st.DataObject, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lrp.convolutions, "_MANY_CHANNELS", 1)
        call = observed(*data.draw(cases(layer_class)))
        generator = torch.Generator().manual_seed(seed)
        several = [quarters(generator, *call.z.shape) for _ in range(3)]
        for s, pulled in zip(several, call.f.weight_pullbacks(call.x, several), strict=True):
            assert torch.equal(pulled, call.f.weight_pullback(call.x, s))
