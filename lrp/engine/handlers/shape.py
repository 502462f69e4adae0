"""Functions that only move values about: their gradient is their relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..calls import named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams

_MOVES = """
    T mT H mH adjoint as_strided atleast_1d atleast_2d atleast_3d broadcast_to cat
    channel_shuffle chunk column_stack concat concatenate diag diagonal dsplit
    dstack expand expand_as flatten flip fliplr flipud gather hsplit hstack index_select
    masked_select moveaxis movedim narrow permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave
    reshape reshape_as roll rot90 select native_channel_shuffle split split_with_sizes squeeze stack swapaxes
    swapdims swap_axes t take take_along_dim tensor_split tile transpose tril triu unbind
    unflatten unfold unsqueeze view view_as vsplit vstack __getitem__
""".split()

_COPIES = "alias bfloat16 clone contiguous cpu cuda double float half positive requires_grad to type type_as".split()

# These can put other values than those of their first argument among the output's.
_FILLS = """
    copy __setitem__ index_copy index_put masked_scatter scatter masked_fill index_fill fill zero
    select_scatter slice_scatter diagonal_scatter broadcast_tensors
""".split()


def moves(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the first argument, a tensor or several."""
    values = tensors_in(call.args[0] if call.args else next(iter(call.kwargs.values())))
    return streams.follow(call, nonnegative=all(map(streams.known.is_nonnegative, values)))


def copies(streams: Streams, call: LiveCall) -> Any:
    """The output's values are those of the first argument, each in its place."""
    values = tensors_in(call.args[:1])
    nonnegative = all(map(streams.known.is_nonnegative, values))
    return streams.follow(call, is_identity=True, nonnegative=nonnegative)


def fills(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of several arguments, or constants."""
    return streams.follow(call)


def pads(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the input, or the number that pads it."""
    x, value = _padded(*call.args, **call.kwargs)
    known = streams.known
    return streams.follow(call, nonnegative=known.is_nonnegative(x) and known.is_nonnegative(value or 0))


def chooses(streams: Streams, call: LiveCall) -> Any:
    """``torch.where(condition, input, other)``: the output's values are values of two arguments."""
    return _choose(streams, call, *_branches(*call.args, **call.kwargs))


def chooses_from(streams: Streams, call: LiveCall) -> Any:
    """``input.where(condition, other)``."""
    return _choose(streams, call, *_branches_of_method(*call.args, **call.kwargs))


def _choose(streams: Streams, call: LiveCall, *values: Any) -> Any:
    return streams.follow(call, nonnegative=all(map(streams.known.is_nonnegative, values)))


def _branches(condition: Any, input: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _branches_of_method(input: Any, condition: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _padded(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> tuple[Any, Any]:
    return input, value


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named(*_MOVES), moves),
    **dict.fromkeys(named(*_COPIES), copies),
    **dict.fromkeys(named(*_FILLS), fills),
    **dict.fromkeys(named("pad", "constant_pad_nd"), pads),
    torch.where: chooses,
    Tensor.where: chooses_from,
}
