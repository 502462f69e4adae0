"""Modified weights: where they are kept, and how those of a large weight are made."""

import gc

import pytest
import torch
from torch import Tensor

from lrp.maps import Linear, weights


class Make:
    """``w+``, counted."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def __call__(self, w: Tensor) -> Tensor:
        self.shapes.append(w.shape)
        return w.clamp(min=0)


@pytest.fixture(autouse=True)
def _no_grad():  # type: ignore[no-untyped-def]
    with torch.no_grad():
        yield


def test_made_once_for_each_storage_layout_and_version() -> None:
    make, w = Make(), torch.nn.Parameter(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    made = weights.Made(w)
    for _ in range(2):
        for view in (w, w.detach(), w.T, w[1]):
            assert torch.equal(weights.modified(make, view, made), view.clamp(min=0))
    assert len(make.shapes) == 3  # an alias is the same weight, other views are others
    w.neg_()
    assert torch.equal(weights.modified(make, w, made), w.clamp(min=0))
    assert len(make.shapes) == 4
    for other in (w.clone(), torch.ones(2, 2)):
        for _ in range(2):
            assert torch.equal(weights.modified(make, other, made), other.clamp(min=0))
    assert len(make.shapes) == 8


def test_without_memory_or_with_grad_they_are_made_each_time() -> None:
    make, w = Make(), torch.ones(3, requires_grad=True)
    for _ in range(2):
        weights.modified(make, w)
    with torch.enable_grad():
        for _ in range(2):
            assert weights.modified(make, w, weights.Made(w)).requires_grad
    assert len(make.shapes) == 4


def test_a_tensor_without_storage_has_no_memory() -> None:
    memory = weights.Memory()
    assert memory.of(torch.eye(2).to_sparse()) is None

    def through_vmap(w: Tensor) -> Tensor:
        assert memory.of(w) is None
        return weights.modified(Make(), w, memory.of(w))

    with weights.keep([torch.eye(2).to_sparse()]):
        assert torch.equal(torch.vmap(through_vmap)(-torch.eye(2)), torch.zeros(2, 2))


def test_a_memory_holds_what_somebody_holds() -> None:
    memory, w = weights.Memory(), torch.ones(3)
    made = memory.of(w)
    assert memory.of(w.detach()) is made
    assert memory.of(torch.ones(3)) is not made
    del made
    gc.collect()
    assert not memory._by_storage


def test_the_latest_modifications_are_kept() -> None:
    w = torch.ones(3)
    made, makes = weights.Made(w), [Make() for _ in range(6)]
    for make in [*makes, *makes[2:], makes[0]]:
        weights.modified(make, w, made)
    assert [len(make.shapes) for make in makes] == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 8])
def test_a_large_weight_in_blocks(is_frozen: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w, b, x, s = (torch.randn(shape, dtype=torch.float64) for shape in ((8, 5), (8,), (2, 3, 5), (2, 3, 8)))
    first, second = Make(), Make()
    whole = Linear(input_shape=(2, 3, 5))
    monkeypatch.setattr(weights, "LARGE", 39)
    monkeypatch.setattr(weights, "_IN_CACHE", rows * 5)
    with weights.keep([w] if is_frozen else []):
        for make in (first, second):
            f = Linear(input_shape=(2, 3, 5), made=weights.Made(w))
            assert torch.allclose(f.forward_modified(x, make, w, b), whole.forward(x, w.clamp(min=0), b), rtol=1e-12)
            assert torch.allclose(f.pullback_modified(s, make, w), whole.pullback(s, w.clamp(min=0)), rtol=1e-12)
    blocks = 2 * -(-8 // rows)
    assert len(first.shapes) == (1 if is_frozen else blocks)
    assert len(second.shapes) == blocks
