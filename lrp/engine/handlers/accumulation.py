"""Functions that add up many terms, wherever they put the sums: linear maps of all their terms together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...maps import Fixed
from ...rules import Family, Gradient, Proportional, Rule
from ..backward.propagation import computing_dtype
from ..calls import Key, as_function, distinct, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams
from . import linear
from .pooling import Weights, winner_takes_all
from .shape import fills


@dataclass(frozen=True)
class TermsRelevance:
    """The backward of a function that adds up the elements of several tensors, with weights that are constant.

    The live ones among them are one input, end to end; what the constant ones contribute is a bias.

    Attributes:
        rule: how relevance is shared out.
        function: the function of all tensors, the live ones first.
        weights: what each element of a live tensor is multiplied with besides.
        has_bias: whether constants are among the terms.
        signed: False where the live ones are known to be >= 0.
        into: whether a constant is written to, which gets nothing.
        kind: the kind of linear map.
    """

    rule: Rule
    function: Callable[..., Tensor]
    weights: Sequence[float]
    has_bias: bool
    signed: bool
    into: bool
    kind: type[Fixed]

    @property
    def is_multiplicative(self) -> bool:
        """Whether each result has the value of its input as a factor."""
        return self.rule.has_gradient_form

    def __call__(self, R: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        n, dtype = len(self.weights), computing_dtype(R)
        live, constants = tensors[:n], [t.to(dtype) if t.is_floating_point() else t for t in tensors[n:]]
        sizes = [t.numel() for t in live]

        def whole(x: Tensor) -> Tensor:
            parts = zip(torch.split(x, sizes), live, strict=True)
            return self.function(*(part.view(t.shape) for part, t in parts), *constants)

        x = torch.cat([t.reshape(-1) for t in live]).to(dtype)
        b = whole(torch.zeros_like(x)) if self.has_bias else None
        function = whole if b is None else (lambda x: whole(x) - b)
        f = self.kind(input_shape=tuple(x.shape), function=function, signed=self.signed)
        relevance = self.rule.redistribute(f, x, self._weight(x, sizes), b, z.to(dtype), R.to(dtype))
        parts = zip(torch.split(relevance, sizes), live, strict=True)
        relevances = [part.view(t.shape).to(t.dtype) for part, t in parts]
        return (None, *relevances) if self.into else tuple(relevances)

    def _weight(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """One number for all inputs, or one for each of them."""
        if all(weight == 1 for weight in self.weights):
            return x.new_ones(())
        return torch.cat([x.new_full((n,), weight) for n, weight in zip(sizes, self.weights, strict=True)])


@dataclass(frozen=True)
class RootRelevance:
    """The backward of a function of some degree, ``f(c x) = c^degree f(x)``: in proportion to ``x`` times its gradient.

    This is what its parts have: a norm is a root of a sum of powers, a variance a mean of squares of what is centred.
    """

    function: Callable[[Tensor], Tensor]
    degree: int
    rule: Rule
    is_multiplicative: ClassVar = True

    def __call__(self, R: Tensor, x: Tensor) -> Tensor:
        dtype = computing_dtype(R)
        value = x.to(dtype)
        z, pull, *_ = torch.func.vjp(self.function, value)
        share = self.rule if isinstance(self.rule, Proportional) else Proportional()
        relevance: Tensor = value * pull(share.divided(R.to(dtype), self.degree * z, share.stabiliser(z)))[0]
        return relevance.to(x.dtype)


class Opaque(Fixed):
    """A function that :mod:`torch.func` cannot transform."""

    def _transpose(self, s: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(self.input_shape, dtype=s.dtype, device=s.device, requires_grad=True)
            z = self.function(x)
        return torch.autograd.grad(z, x, s)[0]


def add_up(
    streams: Streams, call: LiveCall, terms: Sequence[Any], *, weights: Weights = Weights.EVEN, keeps_sign: bool = True,
    bare: LiveCall | None = None, scaled: tuple[Any, float] = (None, 1.0), kind: type[Fixed] = Fixed,
    family: Family = "sum",
) -> Any:  # fmt: skip
    """What a function returns that is linear in its terms together.

    Args:
        terms: what is added up, live or constant.
        weights: what is known of the weights of live terms that the function hides.
        keeps_sign: whether no constant term counts negative.
        bare: the call without the factor of what is scaled.
        scaled: a live term, and its factor.
        kind: the kind of linear map.
        family: the kind of function.
    """
    live, known = distinct(call.live), streams.known
    if not all(any(t is term for term in terms) for t in live):
        return NotImplemented
    term, factor = scaled
    keeps_sign = keeps_sign and weights is not Weights.SIGNED and factor >= 0
    facts = {"nonnegative": keeps_sign and all(map(known.is_nonnegative, terms))}
    _, rule = streams.rule(family, call, live[0])
    if streams.forms.adds_up(rule, call):
        return streams.follow(call, **facts)
    if not weights.suit(rule):
        return NotImplemented
    tensors = distinct([*live, *tensors_in((call.args, call.kwargs))])
    into = [call.target] if call.target is not None and not any(call.target is t for t in live) else []
    backward = TermsRelevance(
        rule,
        as_function(bare or call, tensors, call.target),
        weights=[factor if t is term else 1.0 for t in live],
        has_bias=any(not any(constant is t for t in live) for constant in tensors_in(terms)),
        signed=not all(map(known.is_nonnegative, live)),
        into=bool(into),
        kind=kind,
    )
    saved = [streams.value_before(call, t) for t in tensors]
    z = streams.evaluate(call)
    return streams.relay(call, z, [*into, *live], backward, [z, *saved], **facts)


def of_input(streams: Streams, call: LiveCall, weights: Weights = Weights.EVEN, kind: type[Fixed] = Fixed) -> Any:
    """A function that adds up the elements of its first argument, by weights that the others give."""
    terms = [_input(*call.args, **call.kwargs)]
    return add_up(streams, call, terms, weights=weights, kind=kind, family="pool")


def roi_align(streams: Streams, call: LiveCall) -> Any:
    """``torchvision.ops.roi_align``, of constant boxes."""
    if streams.differentiable:
        raise NotImplementedError("differentiable=True: roi_align has no second derivative")
    return of_input(streams, call, weights=Weights.POSITIVE, kind=Opaque)


def indexed_add(streams: Streams, call: LiveCall) -> Any:
    """``torch.index_add`` and ``torch.scatter_add``."""
    target, source, alpha = _added(*call.args, **call.kwargs)
    if target is source:
        return add_up(streams, call, [target], weights=Weights.POSITIVE if alpha >= 0 else Weights.SIGNED)
    if alpha == 1 or not any(source is t for t in call.live):
        return add_up(streams, call, [target, source], keeps_sign=alpha >= 0)
    bare = replace(call, kwargs={name: value for name, value in call.kwargs.items() if name != "alpha"})
    return add_up(streams, call, [target, source], bare=bare, scaled=(source, alpha))


def indexed_put(streams: Streams, call: LiveCall) -> Any:
    """``torch.index_put`` and ``torch.put``, which may add to what is there."""
    target, values, accumulates, is_flat = _put(*call.args, **call.kwargs)
    if not accumulates:
        return fills(streams, call)
    weights = Weights.EVEN if is_flat else Weights.POSITIVE  # what is broadcast may be added to one place several times
    return add_up(streams, call, [target, values], weights=weights)


def scattered(streams: Streams, call: LiveCall) -> Any:
    """``torch.scatter``, unless it reduces."""
    return NotImplemented if len(call.args) > 4 or "reduce" in call.kwargs else fills(streams, call)


def indexed_reduce(streams: Streams, call: LiveCall) -> Any:
    """``torch.scatter_reduce`` and ``torch.index_reduce``: sums, means, or a winner."""
    target, source, reduce = _reduced(*call.args, **call.kwargs)
    if reduce in ("amax", "amin"):
        return winner_takes_all(streams, call)
    weights = Weights.EVEN if reduce == "sum" and target is not source else Weights.POSITIVE
    return add_up(streams, call, [target, source], weights=weights) if reduce in ("sum", "mean") else NotImplemented


def segments(streams: Streams, call: LiveCall) -> Any:
    """``torch.segment_reduce``: sums, means, or a winner."""
    data, reduce, initial = _segments(*call.args, **call.kwargs)
    if reduce in ("max", "min") and initial is None:
        return fills(streams, call)  # the largest of an empty segment is -inf
    is_sum = reduce in ("sum", "mean") and not initial
    return add_up(streams, call, [data], family="pool") if is_sum else NotImplemented


def grid_sample(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.grid_sample``, at constant places."""
    return of_input(streams, call, weights=_MODES.get(_mode(*call.args, **call.kwargs), Weights.SIGNED))


def einsum(streams: Streams, call: LiveCall) -> Any:
    """``torch.einsum``: of one tensor, sums and moves; of several, a product."""
    tensors = list(tensors_in(call.args))
    return add_up(streams, call, tensors, family="pool") if len(tensors) == 1 else linear.einsum(streams, call)


def root(streams: Streams, call: LiveCall) -> Any:
    """A norm, which is of degree 1."""
    if _order(*call.args, **call.kwargs) == 0:
        return NotImplemented
    return _root(streams, call, streams.evaluate(call), as_function(call, call.live), 1)


def variance(streams: Streams, call: LiveCall) -> Any:
    """``torch.var``, and ``torch.std``: the root passes relevance unchanged, and the variance has every gradient."""
    return _root(streams, call, streams.evaluate(call), as_function(replace(call, function=torch.var), call.live), 2)


def variance_and_mean(streams: Streams, call: LiveCall) -> Any:
    """``torch.var_mean`` and ``torch.std_mean``."""
    (x,) = call.live
    _, rule = streams.rule("pool", call, x)
    if isinstance(rule, Gradient):
        return NotImplemented if streams.differentiable else streams.follow(call)
    spread, mean = streams.evaluate(call)
    both, value = as_function(replace(call, function=torch.var_mean), call.live), streams.value(x)
    backward = RootRelevance(lambda t: both(t)[0], 2, rule)
    f = Fixed(input_shape=tuple(x.shape), function=lambda t: both(t)[1])
    values = value, x.new_ones(()), None
    nonnegative = call.facts_of(x).nonnegative
    return (
        streams.relay(call, spread, [x], backward, [value], nonnegative=True),
        streams.relay_layer(call, f, rule, None, values, x, mean, nonnegative=nonnegative),
    )


def _root(streams: Streams, call: LiveCall, z: Tensor, function: Callable[[Tensor], Tensor], degree: int) -> Any:
    """A function of one tensor, ``z``, whose relevance is that of another, which is of some degree."""
    (x,) = call.live
    _, rule = streams.rule("pool", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, nonnegative=True)
    backward = RootRelevance(function, degree, rule)
    return streams.relay(call, z, [x], backward, [streams.value(x)], nonnegative=True)


def _input(input: Any, *_: Any, **__: Any) -> Any:
    return input


def _added(
    input: Tensor, dim: Any, index: Tensor, source: Any = None, *, src: Any = None, alpha: float = 1
) -> tuple[Tensor, Any, float]:
    return input, source if src is None else src, alpha


def _put(
    input: Tensor, indices: Any = None, values: Any = None, accumulate: bool = False, *_: Any, index: Any = None,
    source: Any = None,
) -> tuple[Tensor, Any, bool, bool]:  # fmt: skip
    return input, values if source is None else source, accumulate, isinstance(indices, Tensor) or index is not None


def _reduced(
    input: Tensor, dim: Any, index: Tensor, source: Any = None, reduce: str = "", *, src: Any = None,
    include_self: bool = True,
) -> tuple[Tensor, Any, str]:  # fmt: skip
    return input, source if src is None else src, reduce


def _segments(data: Tensor, reduce: str, *_: Any, initial: Any = None, **__: Any) -> tuple[Tensor, str, Any]:
    return data, reduce, initial


def _mode(input: Tensor, grid: Tensor, mode: str | int = "bilinear", *_: Any, **__: Any) -> str | int:
    return mode


def _order(input: Tensor, p: Any = None, *_: Any, ord: Any = None, **__: Any) -> Any:
    return p if ord is None else ord


_MODES: dict[str | int, Weights] = {
    **dict.fromkeys(("bilinear", 0), Weights.POSITIVE),
    **dict.fromkeys(("nearest", 1), Weights.EVEN),
}

TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("cumsum", "trace"), of_input),
    **dict.fromkeys(named("einsum"), einsum),
    **dict.fromkeys(named("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), grid_sample),
    **dict.fromkeys(named("index_add", "scatter_add"), indexed_add),
    **dict.fromkeys(named("index_put", "put"), indexed_put),
    **dict.fromkeys(named("index_reduce", "scatter_reduce"), indexed_reduce),
    **dict.fromkeys(named("scatter"), scattered),
    **dict.fromkeys(named("segment_reduce"), segments),
    **dict.fromkeys(named("norm", "vector_norm", "matrix_norm"), root),
    **dict.fromkeys(named("var", "std"), variance),
    **dict.fromkeys(named("var_mean", "std_mean"), variance_and_mean),
    "torchvision::roi_align": roi_align,
    "torchvision::roi_pool": winner_takes_all,
}
