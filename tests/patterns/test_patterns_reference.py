"""The reference for patterns is itself right."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import patterns_reference
from strategies import LAYERS, cases
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

every_map = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)


@every_map
@settings(max_examples=30)
@given(data=st.data())
def test_reference_patches_times_weights_are_the_output(layer_class: type[nn.Module], data: st.DataObject) -> None:
    layer, x = data.draw(cases(layer_class))
    weight, bias = layer.weight.detach(), 0 if layer.bias is None else layer.bias.detach().numpy()
    rows = patterns_reference.rows(layer, weight)
    y = np.einsum("nok,ok->no", patterns_reference.patches(layer, x), rows) + bias
    assert np.array_equal(y, patterns_reference.outputs(layer, x))
    assert np.array_equal(patterns_reference.in_weight_shape(layer, rows), weight)


def test_reference_patches_of_a_transposed_convolution() -> None:
    """Element (i, k) of a neuron meets input p of channel i at output p * stride - padding + k * dilation."""
    layer = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2)
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    X = np.zeros((layer(x.float()).shape[-1], 6, 2 * 3))
    for neuron, i, k, p in itertools.product(range(6), range(2), range(3), range(5)):
        q = 2 * p - 1 + 2 * k
        if 0 <= q < len(X):
            X[q, neuron, 3 * i + k] = x[0, 2 * (neuron // 3) + i, p]
    assert np.array_equal(X, patterns_reference.patches(layer, x))


def test_reference_quality_tells_the_signal_from_the_filter() -> None:
    """On the samples of the fit, the largest correlation is that of least squares in closed form."""
    model, signal, x = patterns_reference.haufe(20_000)
    w = model[0].weight.detach()
    y, quality = x @ w.T, {}
    for name, pattern in {"none": 0 * w, "filter": w / (w @ w.T), "signal": signal}.items():
        covariance = torch.cov(torch.cat([x - y * pattern, y], 1).T)
        told = covariance[-1, :-1] @ torch.linalg.pinv(covariance[:-1, :-1], rtol=1e-10) @ covariance[:-1, -1]
        (rho,) = patterns_reference.rho(model[0], pattern, x, x)
        assert rho == pytest.approx(1 - (told / covariance[-1, -1]).sqrt().item(), abs=1e-9)
        (quality[name],) = patterns_reference.rho(model[0], pattern, *x.chunk(2))
    assert quality["none"] == pytest.approx(0)
    assert quality["filter"] < 0.9 < 0.97 < quality["signal"]
