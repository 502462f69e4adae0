"""A reference for maps that shares nothing with the engine: networks whose gradient times input is their relevance.

What is a constant to relevance is detached, and torch's own gradient does the rest: an activation is its input times
the constant ``f(x) / x``, a gate is a constant, a norm divides by a constant, a product gives each factor a half. All
else is linear, or its gradient is the relevance (Achtibat et al. 2024, arXiv 2402.05602; Ali et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..engine.calls import plain_name, tensors_of
from ..engine.calls.norms import group_norm_arguments, instance_norm_arguments, layer_norm_arguments

Kind = Literal["data", "gate", "signal", "unknown"]


class Detached(TorchFunctionMode):
    """While active, the gradient of what live tensors make, times the input, is the relevance by epsilon 0.

    Attributes:
        undecided: the functions of which this reference cannot say what relevance they should get.
    """

    def __init__(self) -> None:
        super().__init__()
        self.undecided: list[str] = []
        self._kinds: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        live = [t for t in tensors_of(args, kwargs) if t.requires_grad and t.is_floating_point()]
        if not live or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        name = plain_name(func).strip("_").removeprefix("special_").removeprefix("linalg_")
        name = name[1:] if name in _AUGMENTED else name
        kinds = [self._kinds.get(t, "data") for t in live]
        handler = next((handler for names, handler in _HANDLERS if name in names), None)
        if handler is None or (out := handler(self, func, args, kwargs, live, kinds)) is NotImplemented:
            if name not in _PLAIN:
                self.undecided.append(name)
            out = func(*args, **kwargs)
        self._note(name, out, kinds)
        return out

    def _note(self, name: str, out: Any, kinds: Sequence[Kind]) -> None:
        for t in tensors_of([out], {}) if not isinstance(out, (tuple, list)) else tensors_of(out, {}):
            if t.requires_grad:
                self._kinds[t] = _kind(name, kinds)


def _kind(name: str, kinds: Sequence[Kind]) -> Kind:
    """What a function makes: a gate, a signal, data still, or what may be taken for either."""
    if name == "batch_norm" and kinds == ["data"]:
        return "data"
    if name in _GATES:
        return "gate"
    if name in _LAYERS or name in _NORMS:
        return "signal"
    if name in _AS_OTHERS:
        kinds = kinds[:1]
    if name in _BOUNDED or "unknown" in kinds:
        return "unknown"
    (kind, *others) = {*kinds}
    return "signal" if others else kind


def _activation(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    """``f(x)``, as ``x`` times a constant."""
    x = live[0]
    if len(live) > 1 or not any(arg is x for arg in args):
        return NotImplemented
    before = x.clone()
    out = func(*(before.clone() if arg is x else arg for arg in args), **kwargs)
    ratio = torch.where(before == 0, 0.0, out / before).detach()
    passed = before * ratio
    passed = passed + (out - passed).detach()  # the value as it is, where x is zero
    return _written(func, args, kwargs, passed)


def _product(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    """Half to each factor, and to a gate nothing."""
    if len(live) == 1:
        return _unit(mode, func, args, kwargs, live, kinds)
    a, b = args[:2]
    if "unknown" in kinds or kinds == ["gate", "gate"]:
        mode.undecided.append("a product of gates" if "gate" in kinds else "a product of what may be gates")
        return func(*args, **kwargs)
    before = a.clone()
    if "gate" not in kinds:
        out = (before * b.detach() + before.detach() * b) / 2
    else:
        out = before.detach() * b if kinds[0] == "gate" else before * b.detach()
    return _written(func, args, kwargs, out)


def _quotient(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    """All to the numerator."""
    a, b = args[:2]
    if not isinstance(a, Tensor) or not a.requires_grad:
        mode.undecided.append("what is divided by a live tensor")
        return func(*args, **kwargs)
    if kinds == ["data"]:
        return _unit(mode, func, args, kwargs, live, kinds)
    return _written(func, args, kwargs, a.clone() / (b.detach() if isinstance(b, Tensor) else b))


def _unit(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    """A constant beside the data: their unit, in which relevance stays as it is."""
    constants = [t for t in args if isinstance(t, Tensor) and not t.requires_grad]
    if len(live) > 1 or kinds != ["data"]:
        return func(*args, **kwargs)
    if any(t.numel() != max(t.shape, default=1) for t in constants):
        mode.undecided.append("a constant beside the data")
    return _activation(mode, func, args, kwargs, live, kinds)


def _contraction(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    """Linear in its live factor, if there is but one."""
    if len(live) > 1:
        mode.undecided.append("a product of two matrices")
    return func(*args, **kwargs)


def _layer_norm(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    x, shape, weight, bias, eps = layer_norm_arguments(*args, **kwargs)
    dims = tuple(range(-len(shape), 0))
    return _affine(_normed(x, dims, eps), weight, bias, tuple(shape))


def _group_norm(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    x, groups, weight, bias, eps = group_norm_arguments(*args, **kwargs)
    z = _normed(x.reshape(len(x), groups, -1), (-1,), eps).view(x.shape)
    return _affine(z, weight, bias, (-1, *(1 for _ in x.shape[2:])))


def _instance_norm(mode: Detached, func: Any, args: Any, kwargs: Any, live: Any, kinds: Any) -> Any:
    x, _, _, weight, bias, of_input, eps = instance_norm_arguments(*args, **kwargs)
    if not of_input:
        return NotImplemented
    return _affine(_normed(x, tuple(range(2, x.dim())), eps), weight, bias, (-1, *(1 for _ in x.shape[2:])))


def _normed(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Centred, over a deviation that is a constant."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt().detach()


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    z = z if weight is None else z * weight.view(shape)
    return z if bias is None else z + bias.view(shape)


def _written(func: Any, args: Any, kwargs: Any, out: Tensor) -> Tensor:
    """The result of a function, in the place of its first argument if it works in place."""
    name = plain_name(func)
    is_written = kwargs.get("inplace") or (name.endswith("_") and not name.endswith("__")) or name[:3] == "__i"
    return args[0].copy_(out) if is_written or (args[-1] is True and "inplace" in _names(func)) else out


def _names(func: Any) -> Iterator[str]:
    code = getattr(func, "__code__", None)
    return iter(code.co_varnames[: code.co_argcount] if code is not None else ())


_AUGMENTED = {"iadd", "isub", "imul", "itruediv", "radd", "rmul"}
_AS_OTHERS = {"expand_as", "view_as", "reshape_as", "type_as"}  # which have the values of their first argument alone
_GATES = {"sigmoid", "hardsigmoid", "softmax", "expit"}
_BOUNDED = {"relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max"}
_LAYERS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
    "matmul", "bmm", "einsum", "mm", "tensordot",
}  # fmt: skip
_NORMS = {"layer_norm", "group_norm", "instance_norm"}
_ACTIVATIONS = set(
    """
    silu gelu elu celu selu mish tanh hardswish softplus softsign tanhshrink softshrink hardshrink logsigmoid exp expm1
    log1p sqrt square erf sin atan asinh sinh
    """.split()
) | (_BOUNDED | {"sigmoid", "hardsigmoid"})
_PLAIN = _LAYERS | set(
    """
    relu leaky_relu prelu rrelu abs neg negative max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices boolean_dispatch adaptive_max_pool2d avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum add sub rsub cat concat concatenate
    stack flatten reshape view permute transpose movedim contiguous clone chunk split unbind unflatten squeeze
    unsqueeze getitem narrow select expand expand_as roll flip pad dropout dropout2d feature_dropout interpolate
    upsample softmax pixel_shuffle pixel_unshuffle channel_shuffle amax max swapaxes mT T t repeat index_select to type
    float double detach dim size shape requires_grad type_as copy len iter mul div matmul get data is_floating_point
    requires_grad_ numel device dtype ndim grad_fn is_contiguous stride view_as reshape_as bilinear nearest unfold
    broadcast_to tile repeat_interleave identity log_softmax
    """.split()
)
_HANDLERS: Sequence[tuple[set[str], Callable[..., Any]]] = [
    ({"batch_norm"}, _unit),
    (_ACTIVATIONS, _activation),
    ({"mul", "multiply"}, _product),
    ({"div", "divide", "true_divide", "truediv"}, _quotient),
    ({"add", "sub", "rsub"}, _unit),
    ({"matmul", "bmm", "einsum", "mm", "tensordot"}, _contraction),
    ({"layer_norm"}, _layer_norm),
    ({"group_norm"}, _group_norm),
    ({"instance_norm"}, _instance_norm),
]
