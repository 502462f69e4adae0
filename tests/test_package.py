"""What a user gets with `import lrp`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lrp

FOLDER = Path(lrp.__file__).parent


def test_import_needs_torch_alone() -> None:
    code = "import sys, torch; before = set(sys.modules); import lrp; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    roots = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert roots <= {"lrp", "torch"}, roots


def test_every_public_name_is_documented() -> None:
    for name in lrp.__all__:
        assert (getattr(lrp, name).__doc__ or "").strip(), name


ORDER = [
    {"arithmetic", "weights", "calls", "kept", "trace", "twins"},
    {"linear_maps"},
    {"convolutions", "contractions"},
    {"rule"},
    {"contributions", "pattern_rules"},
    {"rules"},
    {"propagation", "assignment"},
    {"streams"},
    {"handlers"},
    {"interception"},
    {"composite"},
    {"composites"},
    {"functional", "layers", "moments", "observation"},
    {"sequential", "batches", "collectives", "pattern_files"},
    {"conversion", "pattern_quality"},
    {"patterns", "plot"},
    {"__init__"},
]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_imports_flow_one_way(path: Path) -> None:
    level = next(i for i, names in enumerate(ORDER) if path.stem in names)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            assert all(any(name in names for names in ORDER[:level]) for name in imported), (path.stem, imported)


def test_modified_weights_are_made_once_for_each_version() -> None:
    made = []

    def make(w: torch.Tensor) -> torch.Tensor:
        made.append(w)
        return w.clamp(min=0)

    w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(lrp.weights.modified(make, w.detach()), torch.tensor([1.0, 0.0]))
        assert len(made) == 1
        w.neg_()
        assert torch.equal(lrp.weights.modified(make, w), torch.tensor([0.0, 1.0]))
        w.data = torch.tensor([3.0, -3.0])
        assert torch.equal(lrp.weights.modified(make, w), torch.tensor([3.0, 0.0]))
        assert len(made) == 3
        lrp.weights.forget()
        lrp.weights.modified(make, w)
    assert len(made) == 4


def test_modified_weights_end_with_their_weight() -> None:
    lrp.weights.forget()
    with torch.no_grad():
        for _ in range(5):
            lrp.weights.modified(torch.neg, torch.ones(3))
    assert len(lrp.weights._kept) <= 2


@pytest.mark.parametrize("rule", ["zplus", "alpha2beta1", lrp.rules.ZBox(-1.0, 1.0)], ids=str)
def test_a_large_weight_has_one_modified_copy(rule, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lrp.weights, "_BLOCK", 12)
    layer = lrp.Linear(5, 7).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    maps = []
    for large in (2**23, 0):
        monkeypatch.setattr(lrp.weights, "LARGE", large)
        lrp.weights.forget()
        maps.append(torch.autograd.grad(layer(x, explain=True, rule=rule).square().sum(), x)[0])
    assert torch.allclose(*maps, rtol=1e-12)
    assert [len(kept.made) for kept in lrp.weights._kept.values()] == [1]


def test_explaining_follows_an_optimizer_step() -> None:
    layer = lrp.Linear(3, 2).double()
    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    before = torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0]
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    after = torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0]
    lrp.weights.forget()
    assert torch.equal(after, torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0])
    assert not torch.equal(after, before)
