"""A map merged with a scale is the map of the merged weights."""

import pytest
import torch
from networks import error
from spellings import draw

from lrp.maps import Contraction, Convolution, Linear, LinearMap, Scaled
from lrp.rules import Epsilon, Proportional

LINEAR = Linear(input_shape=(4, 5)), draw(4, 5), draw(6, 5, seed=1), draw(6, seed=2)
GROUPED = (
    Convolution(
        input_shape=(2, 4, 7), weight_shape=(6, 2, 3), stride=(2,), padding=(1,), dilation=(1,), groups=2,
        output_padding=(0,),
    ),
    draw(2, 4, 7), draw(6, 2, 3, seed=1), draw(6, seed=2),
)  # fmt: skip
EXPERTS = (
    Contraction(input_shape=(2, 4, 5), x="eni", w="eio", z="eno", weight_shape=(2, 5, 3)),
    draw(2, 4, 5), draw(2, 5, 3), draw(6),
)  # fmt: skip
MAPS = {"linear": LINEAR, "grouped": GROUPED, "experts": EXPERTS}


@pytest.mark.parametrize("name", MAPS)
def test_a_scaled_map_has_the_passes_of_its_merged_weights(name: str) -> None:
    f, x, w, b = MAPS[name]
    scale = draw(6, seed=3)
    scaled, merged = Scaled.of(f, scale), f.scale_channels(w, scale)
    z = f.forward(x, merged, b)
    s = draw(*z.shape, seed=4)
    assert error(scaled.forward(x, w, b), z) < 1e-12
    assert error(scaled.pullback(s, w), f.pullback(s, merged)) < 1e-12
    assert error(scaled.weight_pullback(x, s), f.scale_channels(f.weight_pullback(x, s), scale)) < 1e-12


@pytest.mark.parametrize("rule", [
    Epsilon(0.1), Epsilon(0.1, bias="ignore"), Epsilon(0.1, bias="distribute"), Proportional(),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", MAPS)
def test_a_rule_shares_alike_through_both(name: str, rule: Proportional) -> None:
    f, x, w, b = MAPS[name]
    scale = draw(6, seed=3)
    merged = f.scale_channels(w, scale)
    z = f.forward(x, merged, b)
    R = draw(*z.shape, seed=4)
    assert error(_shared(rule, Scaled.of(f, scale), x, w, b, z, R), _shared(rule, f, x, merged, b, z, R)) < 1e-10


def _shared(rule: Proportional, f: LinearMap, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return rule.redistribute(f, x, *others)
