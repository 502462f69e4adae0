"""Where the elements of a view lie in its base."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrp.maps.storage import Box, covers


def bounds(base: Tensor, view: Tensor) -> Box:
    """The box of the elements, looked up one by one: the base counts its own."""
    indices = torch.stack(torch.unravel_index(view.reshape(-1).long(), base.shape))
    return Box(zip(indices.amin(1).tolist(), indices.amax(1).tolist(), strict=True))


def whole(base: Tensor) -> Box:
    return Box((0, size - 1) for size in base.shape)


@st.composite
def bases(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    t = torch.empty_permuted(shape, order)
    return t.copy_(torch.arange(t.numel()).view(shape))


def sliced(draw: st.DrawFn, t: Tensor) -> Tensor:
    for dim, size in enumerate(t.shape):
        start = draw(st.integers(0, size - 1))
        t = t[(slice(None),) * dim + (slice(start, draw(st.integers(start + 1, size)), draw(st.integers(1, 2))),)]
    return t


@given(bases(), st.data())
def test_slices_lie_in_their_bounds(base: Tensor, data: st.DataObject) -> None:
    view = sliced(data.draw, base)
    view = view.permute(data.draw(st.permutations(range(view.dim()))))[None]
    assert Box.of(view, base) == bounds(base, view)


@given(bases(), st.data())
def test_other_views_lie_in_their_box(base: Tensor, data: st.DataObject) -> None:
    shape = data.draw(st.permutations([*base.shape, 1]))
    views = [base.unfold(0, min(2, base.shape[0]), 1)]
    if base.is_contiguous():
        views += [base.view(shape), base.view(-1)[base.numel() // 3 :], base.view(-1)[::2]]
    for view in views:
        part = sliced(data.draw, view)
        assert Box.of(part, base).has(bounds(base, part))


def test_rows_that_were_flattened_lie_anywhere() -> None:
    base = torch.arange(24.0).view(4, 6)
    assert Box.of(base.view(-1)[3:11], base) == whole(base)
    assert Box.of(base.view(-1)[7:11], base) == Box([(1, 1), (1, 4)])


@given(bases())
def test_a_view_covers_its_base_in_any_order(base: Tensor) -> None:
    assert covers(base.transpose(0, -1)[None], base)
    assert covers(base[1:], base) == (base[1:].numel() == base.numel())
    assert not covers(base.view(torch.int32), base)


def test_what_has_elements_twice_or_gaps_covers_nothing() -> None:
    base = torch.zeros(4)
    assert not covers(base.as_strided((2, 2), (1, 1)), base)
    assert not covers(base[:2], base[::2])


def test_what_reads_the_memory_otherwise_lies_anywhere() -> None:
    base = torch.zeros(4, 6)
    assert Box.of(base.view(torch.int32)[:2], base) == whole(base)
    assert Box.of(torch.zeros(1).expand(3, 3)[1:], torch.zeros(1).expand(3, 3)) == Box([(0, 2), (0, 2)])
