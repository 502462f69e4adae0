"""Linear maps: what is computed another way where that is faster."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONVOLUTIONS, TRANSPOSED, cases, quarters, seeds
from torch import Tensor, nn

from lrp.patterns.observation import Observation, Observed, evaluating


def observed(layer: nn.Module, x: Tensor) -> Observed:
    """The layer's own call."""
    calls: list[Observed] = []
    with evaluating(layer), Observation(layer, x, calls.append):
        layer(x)
    (call,) = calls
    return call


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer_class", [*CONVOLUTIONS, *TRANSPOSED], ids=lambda c: c.__name__)
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_weight_gradients_by_matrix_products(layer_class: type[nn.Module], data: st.DataObject, seed: int) -> None:
    call = observed(*data.draw(cases(layer_class)))
    generator = torch.Generator().manual_seed(seed)
    several = [quarters(generator, *call.z.shape) for _ in range(3)]
    for s, pulled in zip(several, call.f.weight_pullbacks(call.x, several), strict=True):
        assert torch.equal(pulled, call.f.weight_pullback(call.x, s))


@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"groups": 4}, {"groups": 40}], ids=str)
@pytest.mark.parametrize("layer_class", [nn.Conv2d, nn.ConvTranspose2d])
def test_sums_in_float32_keep_what_is_small(layer_class: type[nn.Module], settings: dict[str, int]) -> None:
    """Many equal products, such as those of a background, are where a running sum would lose most."""
    call = observed(layer_class(40, 40, 3, **settings), torch.full((4, 40, 60, 60), 0.1))
    s = torch.full_like(call.z, 0.3)
    (pulled,) = call.f.weight_pullbacks(call.x, [s])
    exact = call.f.weight_pullback(call.x.double(), s.double())
    assert ((pulled - exact).abs() <= 3e-6 * exact.abs()).all()
