"""Relay: the autograd function that carries values forward and relevance backward.

In an explained forward every tensor that depends on the input carries relevance: its autograd graph is made of
relays, and of torch's own functions where their gradient is the relevance. The values come from torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...maps import LinearMap, Padded, Sampled, Scaled
from ...maps.arithmetic import is_vmapped, mul_
from ...maps.padding import Widths
from ...maps.records import changed
from ...maps.weights import Memory
from ...rules import Rule
from ..calls import tensors_in
from .gradient_form import Form
from .kept import hooks_for_saving, unhooked
from .ledger import Ledger, Part
from .moves import Moves
from .recording import is_recording, report
from .samples import Sample

LARGE = 2**25  # bytes
PART = 2**24

Redistribute = Callable[..., "Tensor | tuple[Tensor | None, ...]"]


@dataclass(frozen=True, eq=False)
class Share:
    """Share the relevance of a layer's outputs out among its inputs, by a rule.

    Attributes:
        rule: the layer's rule.
        memory: where modifications of its weight are kept.
        z: the outputs, if the rule needs them.
        scale: what the layer was merged with, one number a channel.
        shift: alike.
        form: what is taken and given.
    """

    rule: Rule
    memory: Memory
    z: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    form: Form = "relevance"

    def __call__(self, R: Tensor, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if self.scale is not None:
            f, w = (Scaled.of(f, self.scale), w) if self.rule.is_plain() else (f, f.scale_channels(w, self.scale))
        b = plus(times(b, self.scale), self.shift)
        is_sample, own = x.dim() < len(f.input_shape), x.dtype
        x, z, R = (t.unsqueeze(0) if is_sample else t for t in (x, self.z, R))
        dtype = computing_dtype(R)
        b = None if b is None else b.to(dtype)
        x, w, z, R = (t if t.dtype == dtype else t.to(dtype) for t in (x, w, z, R))
        relevance = self._in_parts(f, x, w, b, z, R).to(own)
        return relevance.squeeze(0) if is_sample else relevance

    def _in_parts(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        f, size = changed(f, made=self.memory.of(w)), self._samples_at_a_time(f, x, R)
        if x.numel() == 0 or x.dim() == 0 or size >= len(x):
            return self._redistribute(f, x, w, b, z, R)
        relevance = torch.empty_like(x)
        for part in (slice(start, start + size) for start in range(0, len(x), size)):
            of_part = changed(f, input_shape=tuple(x[part].shape))
            relevance[part] = self._redistribute(of_part, x[part], w, b, z[part], R[part])
        return relevance

    def _redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        is_gradient = self.form == "gradient"
        share = self.rule.gradient_form if is_gradient else self.rule.redistribute
        relevance: Any = share(f, x, w, b, z, R * z if self.form == "border" else R)
        if not isinstance(relevance, Tensor) or relevance.shape != x.shape:
            found = f"shape {tuple(relevance.shape)}" if isinstance(relevance, Tensor) else type(relevance).__name__
            called = f"{self.rule}.{share.__name__}()"
            raise TypeError(f"{called} returned {found}: must be a tensor of shape {tuple(x.shape)}")
        return relevance

    def _samples_at_a_time(self, f: LinearMap, x: Tensor, R: Tensor) -> int:
        """As many as the processor's memory is good at: the allocator reuses no larger pieces, nor does the cache."""
        nbytes = max(x.numel(), R.numel()) * R.element_size()
        if nbytes <= LARGE or R.device.type != "cpu" or torch.is_grad_enabled() or is_vmapped(R):
            return x.numel()
        if not (f.is_divisible() and self.rule.is_divisible(x)):
            return x.numel()
        return max(1, len(x) * PART // nbytes)


@dataclass(frozen=True, eq=False)
class Damping:
    """What a layer's outputs hand on in gradient form to its own plain gradient.

    Attributes:
        rule: the layer's rule.
        z: the outputs.
        scale: what the layer was merged with, one number a channel.
    """

    rule: Rule
    z: Tensor
    scale: Tensor | None = None

    def __call__(self, g: Tensor, f: LinearMap, *_: Any) -> Tensor:
        damped = self.rule.damp(g, self.z)
        return damped if self.scale is None else mul_(damped, f.per_output(self.scale))


@dataclass(frozen=True, eq=False)
class DampedLayer:
    """The backward of the outputs of a layer whose plain gradient is its gradient form.

    Attributes:
        f: its linear map.
        rule: its rule.
    """

    f: LinearMap
    rule: Rule
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, g: Tensor, z: Tensor) -> Tensor:
        return _shared(self.ledger.take(g, Damping(self.rule, z)), self.f)


@dataclass(frozen=True, eq=False)
class LayerRelevance:
    """The backward of a layer.

    Attributes:
        f: its linear map.
        rule: its rule.
        memory: where modifications of its weight are kept.
        name: that under which it is traced.
        thread: that of the explained forward.
        samples: of the input, weight and bias, where others than the model's forward can write into them.
        padding: the widths of the zeros around the input.
        form: what is taken and given.
    """

    f: LinearMap
    rule: Rule
    memory: Memory
    name: str | None
    thread: int
    samples: Sequence[Sample | None]
    padding: Widths = ()
    form: Form = "relevance"
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, R: Tensor, x: Tensor, w: Tensor, z: Tensor, b: Tensor | None = None) -> Tensor:
        for sample, t in zip(self.samples, (x, w, b), strict=True):
            if sample is not None and t is not None:
                sample.check(t)
        parts = self.ledger.take(R, Share(self.rule, self.memory, z, form=self.form))
        if self.padding and self.rule.counts_zeros():
            f = Padded.of(self.f, self.padding)
            relevance = f.pad(_shared(parts, f, f.inner(x), w, b))
        else:
            relevance = _shared(parts, self.f, x, w, b)
        if self.name is not None and is_recording(self.thread):
            report(self.name, x * relevance if self.form == "gradient" else relevance, self.thread)
        return relevance


@dataclass(frozen=True, eq=False)
class MergedRelevance:
    """The backward of a constant scale and shift of each channel, as a batch norm, that is merged with a layer.

    Relevance passes to the layer's output as it is, and the layer is told to share it out by the merged weights.
    These are made there, of what the layer has saved: its input, weight and bias.
    """

    rule: Rule
    memory: Memory
    is_scaled: bool
    below: Ledger
    moves: Moves
    form: Form = "relevance"
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, R: Tensor, z: Tensor, *merged: Tensor) -> Tensor:
        scale, *shift = merged if self.is_scaled else (None, *merged)
        own: Any = Share(self.rule, self.memory, z, scale, shift[0] if shift else None, self.form)
        if self.form == "damped":
            own = Damping(self.rule, z, scale)
        for part, share in self.ledger.take(self.moves.back(R), own):
            self.below.put(part, share)
        return R


@dataclass(frozen=True, eq=False)
class FunctionRelevance:
    """The backward of a function whose gradient is its relevance, taken where the values are."""

    function: Callable[..., Any]

    def __call__(self, R: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.func.vjp(self.function, *values)[1](R)
        return gradients


def _shared(parts: Sequence[Part], f: LinearMap, *layer: Tensor | None) -> Tensor:
    """The relevance of the inputs of ``f``, from all parts of that of its outputs."""
    return reduce(torch.add, (share(part, f, *layer) for part, share in parts))


def shown_to(rule: Rule, f: LinearMap, z: Tensor, form: Form) -> Tensor:
    """The output that a rule is shown: an empty one, if it does not look at it."""
    is_needed = rule.needs_output(f) if form == "relevance" else form == "border" or rule.damps or not rule.is_gradient
    return z if is_needed else z.new_empty(0)


def blank(x: Tensor) -> Tensor:
    """What stands for an input that nobody looks at: of its shape, without its memory."""
    return x.new_zeros(()).expand(x.shape)


def times(a: Tensor | None, scale: Tensor | None) -> Tensor | None:
    """``a * scale``, where there are both."""
    return a if a is None or scale is None else a * scale


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """``a + b``, or the one that there is."""
    return b if a is None else a if b is None else a + b


def relay(
    redistribute: Redistribute,
    z: Tensor,
    carriers: Sequence[Tensor],
    saved: Sequence[Tensor] = (),
    *,
    in_place: bool = False,
    differentiable: bool = False,
) -> Tensor:
    """A tensor that has the values ``z`` and passes its relevance on to the carriers.

    Args:
        redistribute: called in backward as ``redistribute(R, *saved)``; gives the relevance of each carrier.
        z: the values.
        carriers: the tensors that get relevance.
        saved: what ``redistribute`` needs.
        in_place: the first carrier has become ``z`` itself, by an operation in place, and is returned.
        differentiable: whether the relevance may be differentiated; ``saved`` then has its own autograd graph.
    """
    output: Tensor = _Relay.apply(redistribute, differentiable, in_place, len(carriers), *carriers, z, *saved)
    return output


def nearest_layers(output: Any) -> Iterator[LayerRelevance]:
    """The linear layers and convolutions that no other follows on the way to the tensors in ``output``."""
    seen: set[Node] = set()
    ahead: list[Node | None] = [t.grad_fn for t in tensors_in(output)]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(node, "redistribute", None)
        if isinstance(backward, LayerRelevance) and isinstance(backward.f, Sampled):
            yield backward
        else:
            ahead.extend(before for before, _ in node.next_functions)


class _Relay(torch.autograd.Function):
    # without setup_context(), for which torch binds the arguments by the signature of forward() in each call

    @staticmethod
    def forward(
        ctx: Any, redistribute: Redistribute, differentiable: bool, in_place: bool, n_carriers: int, *tensors: Tensor
    ) -> Tensor:
        # the carriers come first: autograd takes the first tensor for the one that an operation in place overwrites
        ctx.redistribute, ctx.differentiable, ctx.n_inputs = redistribute, differentiable, 4 + len(tensors)
        ctx.save_for_backward(*tensors[n_carriers + 1 :])
        if in_place:
            ctx.mark_dirty(tensors[0])
            return tensors[0]
        z = tensors[n_carriers].detach()
        return z.clone() if differentiable else z  # values that have a graph must not be overwritten

    @staticmethod
    def backward(ctx: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not ctx.differentiable:
            raise RuntimeError(
                "create_graph=True: this relevance cannot be differentiated; explain with "
                "forward(..., explain=True, differentiable=True)"
            )
        with without_autocast(R.device.type), _without_hooks(), _kept_account(ctx):
            relevances = ctx.redistribute(R, *ctx.saved_tensors)
        if isinstance(relevances, Tensor):
            relevances = (relevances,)
        return (*(None,) * 4, *relevances, *(None,) * (ctx.n_inputs - 4 - len(relevances)))


def _kept_account(ctx: Any) -> Any:
    """Rules note where relevance goes, if somebody keeps books."""
    account = getattr(ctx, "account", None)
    return nullcontext() if account is None else account.open()


def _without_hooks() -> Any:
    """Rules may differentiate, also where the caller keeps saved tensors elsewhere."""
    return nullcontext() if hooks_for_saving() is None else unhooked()


def without_autocast(device_type: str) -> Any:
    """Rules choose their own precision, also where the caller runs backward() under autocast."""
    is_on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if is_on else nullcontext()


def computing_dtype(R: Tensor) -> torch.dtype:
    """float16 ends at 65504, which R / 1e-6 exceeds soon: rules compute it in float32."""
    return torch.float32 if R.dtype == torch.float16 else R.dtype
