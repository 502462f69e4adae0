"""Patterns that several processes fit together, each to its part of the data."""

import os
import subprocess
import sys
from pathlib import Path

import networks
import torch
from torch import Tensor, nn

import lrp

SCRIPT = """
import sys
import torch
import torch.distributed
import lrp

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model, several, bad = torch.load(sys.argv[1], weights_only=False)
fits = lrp.patterns.fit_patternnet, lrp.patterns.fit_patternnet_positive
patterns = [fit(model, batches[rank::2], device="cpu") for batches in several for fit in fits]
try:
    error = lrp.patterns.fit_patternnet(model, bad[rank::2])
except Exception as raised:
    error = repr(raised)
torch.save((patterns, error), f"{sys.argv[1]}.{rank}")
torch.distributed.destroy_process_group()
"""


def two_processes(folder: Path, *about: object) -> list:
    """What each of them gets."""
    script, shared = folder / "fit.py", folder / "shared.pt"
    script.write_text(SCRIPT)
    torch.save(about, shared)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = [str(Path(lrp.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, script, shared], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{shared}.{rank}") for rank in range(2)]


def network() -> nn.Sequential:
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    return networks.randomize(nn.Sequential(*layers))


def batches(*sizes: int) -> list[Tensor]:
    x = torch.randn(sum(sizes), 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return list((x + torch.tensor([1.0, -0.5])[:, None, None]).split(sizes))


def test_they_fit_to_all_their_data_and_fail_together(tmp_path: Path) -> None:
    """In one test: two launchers at the same time may choose the same port."""
    model, data, bad = network(), batches(3, 1, 5, 2, 4), batches(3, 1, 5, 2)
    of_one_process = batches(0, 8, 0, 7)
    bad[3][0, 0, 0, 0] = torch.nan
    fitted = [lrp.patterns.fit_patternnet(model, data), lrp.patterns.fit_patternnet_positive(model, data)]
    expected = fitted * 3
    several = [data, of_one_process, of_one_process[::-1]]
    (patterns, waited), (others, raised) = two_processes(tmp_path, model, several, bad)
    for actual in (patterns, others):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert "process 1" in waited
    assert "not finite" in waited
    assert "not finite" in raised
