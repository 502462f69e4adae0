"""Functions that only move values about: their gradient is their relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..calls import Call, named
from ..streams import Handler, Streams

_MOVES = """
    T mT H mH adjoint alias as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat
    channel_shuffle chunk clone column_stack concat concatenate contiguous cpu cuda diag diagonal double dsplit
    dstack expand expand_as flatten flip fliplr flipud float gather half bfloat16 hsplit hstack index_select
    masked_select moveaxis movedim narrow permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave
    reshape reshape_as roll rot90 select native_channel_shuffle split split_with_sizes squeeze stack swapaxes
    swapdims swap_axes t take take_along_dim tensor_split tile to transpose tril triu type type_as unbind
    unflatten unfold unsqueeze view view_as vsplit vstack where __getitem__
""".split()

# These can put other values than the input's own among the output's.
_MOVES_AND_FILLS = """
    pad copy __setitem__ index_copy index_put masked_scatter scatter masked_fill index_fill fill zero
    select_scatter slice_scatter diagonal_scatter requires_grad
""".split()


def moves(streams: Streams, call: Call) -> Any:
    """The output's values are values of the inputs."""
    return streams.follow(call, keeps=True)


def moves_and_fills(streams: Streams, call: Call) -> Any:
    """The output's values are values of the inputs, or constants."""
    return streams.follow(call)


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named(*_MOVES), moves),
    **dict.fromkeys(named(*_MOVES_AND_FILLS), moves_and_fills),
}
