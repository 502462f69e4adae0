"""Functions that only move values about: their gradient is their relevance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams

_MOVES = """
    as_strided broadcast_to cat channel_shuffle chunk column_stack concat concatenate diag diag_embed diagflat diagonal
    dsplit dstack expand expand_as flip fliplr flipud gather hsplit hstack index index_select masked_select max_unpool1d
    max_unpool2d max_unpool3d narrow native_channel_shuffle pixel_shuffle pixel_unshuffle reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    roll rot90 select slice split split_with_sizes stack take take_along_dim tensor_split tile tril triu unbind unfold
    unsafe_chunk unsafe_split upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d vsplit vstack __getitem__
""".split()

# Of these, the output has every value of the input once.
_REARRANGED = """
    T mT H mH adjoint atleast_1d atleast_2d atleast_3d flatten moveaxis movedim permute ravel reshape reshape_as
    squeeze swapaxes swapdims swap_axes t transpose unflatten _unsafe_view unsqueeze view view_as
""".split()

_COPIES = (
    "alias bfloat16 clone contiguous cpu cuda _to_copy double float half positive requires_grad to type type_as".split()
)

# These can put other values than those of their first argument among the output's.
_FILLS = """
    block_diag broadcast_tensors cartesian_prod combinations __setitem__ diagonal_scatter fill index_copy
    index_fill masked_fill masked_scatter meshgrid select_scatter slice_scatter zero
""".split()


def moves(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the first argument, a tensor or several."""
    values = tensors_in(call.args[0] if call.args else next(iter(call.kwargs.values())))
    return streams.follow(call, nonnegative=all(map(streams.known.is_nonnegative, values)))


def rearranges(streams: Streams, call: LiveCall) -> Any:
    """The output's values are those of the first argument, in another shape or order."""
    return streams.follow(call, is_rearranged=True, nonnegative=call.facts[0].nonnegative)


def copies(streams: Streams, call: LiveCall) -> Any:
    """The output's values are those of the first argument, each in its place."""
    values = tensors_in(call.args[:1])
    nonnegative = all(map(streams.known.is_nonnegative, values))
    return streams.follow(call, is_identity=True, nonnegative=nonnegative)


def converts(streams: Streams, call: LiveCall) -> Any:
    """``torch.as_tensor(data)``: a tensor is itself, or copied; of other data, values alone are taken."""
    data = call.args[0] if call.args else call.kwargs["data"]
    if not isinstance(data, Tensor):
        return NotImplemented
    return streams.follow(call, is_identity=True, nonnegative=streams.known.is_nonnegative(data))


def overwrites(streams: Streams, call: LiveCall) -> Any:
    """``target.copy_(source)``: the target's values are those of the source, of which it has one or several copies."""
    source = call.args[1] if len(call.args) > 1 else call.kwargs["src" if "src" in call.kwargs else "other"]
    return streams.follow(call, is_identity=True, nonnegative=streams.known.is_nonnegative(source))


def watches(streams: Streams, call: LiveCall) -> Any:
    """A hook, for what flows backward: it is for the carrier, and there is no value."""
    return call.run(streams.carrier)


def fills(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of several arguments, or constants."""
    return streams.follow(call)


def pads(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the input, or the number that pads it."""
    x, widths, value = _padded(*call.args, **call.kwargs)

    known = streams.known
    nonnegative = known.is_nonnegative(x) and known.is_nonnegative(value or 0)
    return streams.follow(call, is_identity=not any(widths), nonnegative=nonnegative)


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


def _padded(
    input: Any, pad: Any, *others: Any, mode: str = "constant", value: float | None = None
) -> tuple[Any, Any, Any]:
    return input, pad, next((other for other in others if not isinstance(other, str)), value)


TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named(*_MOVES), moves),
    **dict.fromkeys(named(*_REARRANGED), rearranges),
    **dict.fromkeys(named(*_COPIES), copies),
    **dict.fromkeys(named(*_FILLS), fills),
    **dict.fromkeys(named("as_tensor"), converts),
    Tensor.copy_: overwrites,
    **dict.fromkeys(named("register_hook", "retain_grad"), watches),
    **dict.fromkeys(named("pad", "constant_pad_nd"), pads),
    **dict.fromkeys(named("where"), chooses),
    Tensor.where: chooses_from,
}
