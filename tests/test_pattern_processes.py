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
model, batches = torch.load(sys.argv[1], weights_only=False)
fits = lrp.patterns.fit_patternnet, lrp.patterns.fit_patternnet_positive
try:
    result = [fit(model, batches[rank::2], device="cpu") for fit in fits]
except Exception as error:
    result = repr(error)
torch.save(result, f"{sys.argv[1]}.{rank}")
torch.distributed.destroy_process_group()
"""


def two_processes(model: nn.Module, data: list[Tensor], folder: Path) -> list:
    """What each of them gets: patterns, or an error."""
    script, shared = folder / "fit.py", folder / "shared.pt"
    script.write_text(SCRIPT)
    torch.save((model, data), shared)
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


def test_they_fit_to_all_their_data(tmp_path: Path) -> None:
    model, data = network(), batches(3, 1, 5, 2, 4)
    expected = lrp.patterns.fit_patternnet(model, data), lrp.patterns.fit_patternnet_positive(model, data)
    for patterns in two_processes(model, data, tmp_path):
        torch.testing.assert_close(patterns, [*expected], rtol=1e-9, atol=1e-12)


def test_one_that_raises_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    data = batches(3, 1, 5, 2)
    data[3][0, 0, 0, 0] = torch.nan
    waited, raised = two_processes(network(), data, tmp_path)
    assert "process 1" in waited
    assert "not finite" in waited
    assert "not finite" in raised
