"""Modified weights are made once, and never for a weight that has changed."""

import pytest
import torch

import lrp
from lrp.maps import weights


def test_modified_weights_are_made_once_for_each_version() -> None:
    made = []

    def make(w: torch.Tensor) -> torch.Tensor:
        made.append(w)
        return w.clamp(min=0)

    w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(weights.modified(make, w.detach()), torch.tensor([1.0, 0.0]))
        assert len(made) == 1
        w.neg_()
        assert torch.equal(weights.modified(make, w), torch.tensor([0.0, 1.0]))
        w.data = torch.tensor([3.0, -3.0])
        assert torch.equal(weights.modified(make, w), torch.tensor([3.0, 0.0]))
        assert len(made) == 3
        weights.forget()
        weights.modified(make, w)
    assert len(made) == 4


def test_modified_weights_end_with_their_weight() -> None:
    weights.forget()
    with torch.no_grad():
        for _ in range(5):
            weights.modified(torch.neg, torch.ones(3))
    assert len(weights._kept) <= 2


@pytest.mark.parametrize("rule", ["zplus", "alpha2beta1", lrp.rules.ZBox(-1.0, 1.0)], ids=str)
def test_a_large_weight_has_one_modified_copy(rule, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(weights, "_BLOCK", 12)
    layer = lrp.Linear(5, 7).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    maps = []
    for large in (2**23, 0):
        monkeypatch.setattr(weights, "LARGE", large)
        weights.forget()
        maps.append(torch.autograd.grad(layer(x, explain=True, rule=rule).square().sum(), x)[0])
    assert torch.allclose(*maps, rtol=1e-12)
    assert [len(kept.made) for kept in weights._kept.values()] == [1]


def test_explaining_follows_an_optimizer_step() -> None:
    layer = lrp.Linear(3, 2).double()
    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    before = torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0]
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    after = torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0]
    weights.forget()
    assert torch.equal(after, torch.autograd.grad(layer(x, explain=True, rule="zplus").sum(), x)[0])
    assert not torch.equal(after, before)
