"""What is noted of a tensor is noted of that tensor alone, and no longer than it lives."""

import gc

import torch

from lrp.engine.calls.by_tensor import ByTensor


def test_tensors_are_told_apart_by_identity() -> None:
    noted: ByTensor[str] = ByTensor()
    a, b = torch.zeros(2), torch.zeros(2)
    noted[a] = "a"
    assert (noted.get(a), noted.get(b), a in noted, b in noted) == ("a", None, True, False)
    noted[a] = "again"
    assert noted.get(a) == "again"
    assert next(iter(noted)) is a


def test_nothing_outlives_its_tensor() -> None:
    noted: ByTensor[int] = ByTensor()
    kept = torch.zeros(1)
    noted[kept] = 0
    for i in range(100):
        noted[torch.zeros(i)] = i
    gc.collect()
    assert [*noted] == [kept]
    for _ in range(100):  # which may get the memory of one that is gone
        assert torch.zeros(1) not in noted
