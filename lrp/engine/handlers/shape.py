"""Functions that only move values about: their gradient is their relevance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...maps.padding import zeros_around
from ...rules.numbers import number
from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams

_MOVES = """
    broadcast_to cat channel_shuffle column_stack concat concatenate diag diag_embed diagflat dstack
    expand expand_as flip fliplr flipud gather hstack im2col index index_select masked_select max_unpool1d max_unpool2d
    max_unpool3d native_channel_shuffle pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll rot90
    row_stack stack take take_along_dim tile tril triu unfold upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d vstack
""".split()

# Of these, each output has some values of the input, each of them once.
_PARTS = """
    chunk diagonal dsplit hsplit narrow select slice split split_with_sizes tensor_split unbind unsafe_chunk
    unsafe_split vsplit
""".split()

# Of these, the output has every value of the input once.
_REARRANGED = """
    T mT H mH adjoint atleast_1d atleast_2d atleast_3d flatten moveaxis movedim permute ravel reshape reshape_as
    squeeze swapaxes swapdims t transpose unflatten _unsafe_view unsqueeze view view_as
""".split()

_COPIES = (
    "alias bfloat16 clone contiguous cpu cuda _to_copy double float half positive requires_grad to type type_as".split()
)

# These can put other values than those of their first argument among the output's.
_FILLS = """
    as_strided block_diag broadcast_tensors cartesian_prod combinations __setitem__ diagonal_scatter fill index_copy
    index_fill masked_fill masked_scatter meshgrid select_scatter slice_scatter zero
""".split()


def moves(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the first argument, a tensor or several."""
    first = call.args[0] if call.args else call.kwargs.get("tensors", call.kwargs)
    is_alone = isinstance(first, (tuple, list)) and len(first) == 1
    nonnegative = all(map(streams.known.is_nonnegative, tensors_in(first)))
    return streams.follow(call, is_identity=is_alone, nonnegative=nonnegative)


def rearranges(streams: Streams, call: LiveCall) -> Any:
    """The output's values are those of the first argument, in another shape or order."""
    nonnegative = all(facts.nonnegative for facts in call.facts)
    return streams.follow(call, is_rearranged=True, nonnegative=nonnegative, top=max(facts.top for facts in call.facts))


def parts(streams: Streams, call: LiveCall) -> Any:
    """Each output's values are some of those of the first argument."""
    return streams.follow(call, is_part=True, nonnegative=call.facts[0].nonnegative)


def indexed(streams: Streams, call: LiveCall) -> Any:
    """``x[index]``: a part of it, where the index is made of numbers and slices."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    is_part = all(i is None or i is Ellipsis or type(i) in (int, slice) for i in index)
    return streams.follow(call, is_part=is_part, nonnegative=call.facts_of(call.args[0]).nonnegative)


def copies(streams: Streams, call: LiveCall) -> Any:
    """The output's values are those of the first argument, each in its place."""
    facts = call.facts[0]
    return streams.follow(call, is_identity=True, nonnegative=facts.nonnegative, padding=facts.padding)


def converts(streams: Streams, call: LiveCall) -> Any:
    """``torch.as_tensor(data)``: a tensor is itself, or copied; of other data, values alone are taken."""
    data = call.args[0] if call.args else call.kwargs["data"]
    if not isinstance(data, Tensor):
        return NotImplemented
    return streams.follow(call, is_identity=True, nonnegative=streams.known.is_nonnegative(data))


def overwrites(streams: Streams, call: LiveCall) -> Any:
    """``target.copy_(source)``: the target's values are those of the source, of which it has one or several copies."""
    source = call.args[1] if len(call.args) > 1 else call.kwargs["src" if "src" in call.kwargs else "other"]
    is_identity = isinstance(source, Tensor) and streams.is_live(source)
    return streams.follow(call, is_identity=is_identity, nonnegative=streams.known.is_nonnegative(source))


def watches(streams: Streams, call: LiveCall) -> Any:
    """A hook, for what flows backward: it is for the carrier, and there is no value."""
    return call.run(streams.carrier)


def fills(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of several arguments, or constants."""
    return streams.follow(call)


def pads(streams: Streams, call: LiveCall) -> Any:
    """The output's values are values of the input, or the number that pads it."""
    x, widths, mode, value = _padded(*call.args, **call.kwargs)
    known = streams.known
    nonnegative = known.is_nonnegative(x) and known.is_nonnegative(value or 0)
    are_zeros = mode == "constant" and (number(value or 0) == 0 or all(width <= 0 for width in widths))
    padding = zeros_around(call.facts_of(x).padding, widths, x.shape) if are_zeros else ()
    return streams.follow(call, is_identity=not any(widths), nonnegative=nonnegative, padding=padding)


def chooses(streams: Streams, call: LiveCall) -> Any:
    """``torch.where(condition, input, other)``: the output's values are values of two arguments."""
    return _choose(streams, call, *_branches(*call.args, **call.kwargs))


def chooses_from(streams: Streams, call: LiveCall) -> Any:
    """``input.where(condition, other)``."""
    return _choose(streams, call, *_branches_of_method(*call.args, **call.kwargs))


def _choose(streams: Streams, call: LiveCall, a: Any, b: Any) -> Any:
    nonnegative = all(map(streams.known.is_nonnegative, (a, b)))
    return streams.follow(call, is_identity=a is b, nonnegative=nonnegative)


def _branches(condition: Any, input: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _branches_of_method(input: Any, condition: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _padded(
    input: Any, pad: Any, *others: Any, mode: str = "constant", value: float | None = None
) -> tuple[Any, Any, str, Any]:
    mode = next((other for other in others if isinstance(other, str)), mode)
    return input, pad, mode, next((other for other in others if not isinstance(other, str)), value)


TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named(*_MOVES), moves),
    **dict.fromkeys(named(*_PARTS), parts),
    **dict.fromkeys(named("__getitem__"), indexed),
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
