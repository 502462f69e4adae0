"""Patterns that several processes fit together, each to its part of the data."""

from pathlib import Path

import networks
import torch
from processes import two_processes
from torch import Tensor, nn

import lrp

FIT = """
model, several, bad = about
fits = lrp.patterns.fit_patternnet, lrp.patterns.fit_patternnet_positive
patterns = [fit(model, batches[rank::2], device="cpu") for batches in several for fit in fits]
try:
    error = lrp.patterns.fit_patternnet(model, bad[rank::2])
except Exception as raised:
    error = repr(raised)
result = patterns, error
"""


def network() -> nn.Sequential:
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    return networks.randomize(nn.Sequential(*layers))


def batches(*sizes: int) -> list[Tensor]:
    x = torch.randn(sum(sizes), 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return list((x + torch.tensor([1.0, -0.5])[:, None, None]).split(sizes))


def test_they_fit_to_all_their_data_and_fail_together(tmp_path: Path) -> None:
    model, data, bad = network(), batches(3, 1, 5, 2, 4), batches(3, 1, 5, 2)
    of_one_process = batches(0, 8, 0, 7)
    bad[3][0, 0, 0, 0] = torch.nan
    fitted = [lrp.patterns.fit_patternnet(model, data), lrp.patterns.fit_patternnet_positive(model, data)]
    expected = fitted * 3
    several = [data, of_one_process, of_one_process[::-1]]
    (patterns, waited), (others, raised) = two_processes(tmp_path, FIT, model, several, bad)
    for actual in (patterns, others):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert "process 1" in waited
    assert "not finite" in waited
    assert "not finite" in raised
