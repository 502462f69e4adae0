"""The Python blocks of the README and of CONTRIBUTING run, one after the other."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import lrp
from lrp.engine import handlers, interception

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


def run(page: str, n_blocks: int) -> dict[str, Any]:
    """The names that the Python blocks of a page define, one after the other."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == n_blocks
    for block in blocks:
        exec(block, names)
    return names


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(README, 13)
    assert names["x"].grad.shape == (5, 1, 28, 28)
    assert names["resnet_images"].grad.shape == (2, 3, 64, 64)
    assert names["output"].shape == (2, 1000)
    assert list(names["relevances"]) == ["4", "0"]


def test_the_rules_table_lists_every_key() -> None:
    table = re.findall(r'`"([a-z0-9+]+)"`', README.split("## Rules")[1].split("All are in")[0])
    assert table == list(lrp.rules.KEYS)
    composites = re.findall(r'`"([a-z0-9_]+)"`', README.split("| `lrp.composites.`")[1].split("* **Montavon")[0])
    assert sorted(composites) == sorted(lrp.composites.KEYS.keys() - lrp.rules.KEYS.keys())


def test_the_code_of_contributing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page adds does what it says: the rule, the handler and the layer are used."""
    assert torch.erfinv not in handlers.TABLE  # else the page shows nothing
    table = dict(handlers.TABLE)
    for module in (handlers, interception):
        monkeypatch.setattr(module, "TABLE", table)
    names = run(CONTRIBUTING, 3)
    x, R = torch.tensor([0.5, -0.2], requires_grad=True), torch.tensor([3.0, 1.0])
    lrp.convert(torch.erfinv)(x, explain=True, strict=True).backward(R)
    assert torch.equal(x.grad, R)
    x = torch.tensor([[1.0, -2.0]], requires_grad=True)
    lrp.functional.linear(x, torch.tensor([[3.0, 1.0]]), rule=names["Absolute"]()).backward()
    assert torch.allclose(x.grad, torch.tensor([[0.6, 0.4]]))
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    y = names["Bilinear"](scale_factor=2, mode="bilinear")(x, explain=True, rule="epsilon", strict=True)
    y.backward(y.detach())
    assert torch.allclose(x.grad.sum(), y.sum(), rtol=1e-3)


def test_the_pages_name_no_path_that_is_not_there() -> None:
    for page in (README, CONTRIBUTING):
        for path in re.findall(r"`((?:lrp|tests|examples|benchmarks)/[\w/.]+)`", page):
            assert (ROOT / path).exists(), path
        for name in re.findall(r"(?<![\w.])lrp((?:\.[a-z_]+)+)", page):
            assert attrgetter(name[1:])(lrp), name
