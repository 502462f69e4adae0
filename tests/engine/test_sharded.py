"""A model whose parameters are sharded over processes, explained between the steps of its training."""

from pathlib import Path

import networks
import pytest
import torch
from processes import two_processes
from torch import Tensor, nn

import lrp

EXPLAIN = """
import warnings
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from test_sharded import explain_between_steps, network, relevances

warnings.simplefilter("error", lrp.RelevanceWarning)
mesh = init_device_mesh("cpu", (2,))
result = []
for inplace in (True, False):
    model = network(inplace)
    for part in ([model.conv, model.merged], model.hidden, model.again, model.norm, model.last, model):
        fully_shard(part, mesh=mesh)
    result.append(explain_between_steps(model))
apart = network(True)
for part in (apart.conv, apart.merged, apart):
    fully_shard(part, mesh=mesh)
result.append(relevances(apart, torch.ones(8, 2, 4, 4, dtype=torch.float64), "zplus"))
try:
    lrp.convert(apart)
except TypeError as raised:
    result.append(str(raised))
"""


class Network(nn.Module):
    """A weight as large as the activations, a reused layer, a norm that merges and one that does not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.merged = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(64, 8)
        self.again = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.merged(self.conv(x)))
        h = self.relu(self.hidden(h.flatten(1)))
        h = self.relu(self.again(h) + 1)
        h = h + self.relu(self.again(h))
        return self.last(self.norm(h))


def network(inplace: bool) -> nn.Module:
    return networks.randomize(lrp.convert(Network(inplace)))


def relevances(model: nn.Module, x: Tensor, rule: object) -> dict[str, Tensor]:
    """By layer name, and that of the input under ``"x"``."""
    x = x.clone().requires_grad_()
    y = model(x, explain=True, rule=rule)
    with lrp.trace.record() as recorded:
        y[:, 0].sum().backward()
    return {**recorded, "x": x.grad}  # type: ignore[dict-item]


def explain_between_steps(model: nn.Module) -> list[dict[str, Tensor]]:
    composite = lrp.Composite({"first": "flat", "again": "gamma", "last": "zplus"}, default="alpha2beta1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    maps = []
    for _ in range(3):
        x = torch.randn(8, 2, 4, 4, dtype=torch.float64, generator=generator)
        maps += [relevances(model, x, rule) for rule in ("zplus", "epsilon", "gamma", composite)]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return maps


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_sharded_models_are_explained_as_whole_ones(tmp_path: Path) -> None:
    expected = [explain_between_steps(network(inplace)) for inplace in (True, False)]
    expected.append(relevances(network(True), torch.ones(8, 2, 4, 4, dtype=torch.float64), "zplus"))
    for *actual, converted in two_processes(tmp_path, EXPLAIN):
        assert "write fully_shard(convert(model))" in converted
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        assert [*actual[0][0]] == ["last", "norm", "again#2", "again", "hidden", "conv", "x"]
