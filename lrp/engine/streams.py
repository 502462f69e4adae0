"""The two streams of an explained forward: the values, as torch computes them, and beside them the relevance.

A tensor that depends on the explained inputs is *live*. The model sees its carrier: a tensor with the right values,
whose autograd graph leads relevance back to the inputs. Parameters and all that is made of them alone are constants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..maps import LinearMap
from ..maps.padding import Widths
from ..maps.storage import Box, layout, place_of
from ..maps.weights import Made, Memory
from ..rules import Family, Rule
from .assignment import Assignment
from .backward.kept import Keeper, Kept
from .backward.propagation import FunctionRelevance, LayerRelevance, MergedRelevance, Redistribute, plus, relay, times
from .backward.samples import Sample
from .calls import tensors_in
from .checkpoints import Checkpoint, Replayed
from .facts import CONSTANT, UNKNOWN, Facts, Known, Layer, LiveCall, inherited, written
from .moves import Moves
from .origins import Origins


class Streams:
    """The live tensors of one explained forward.

    Args:
        inputs: the explained inputs.
        assignment: which layer has which name and rule.
        differentiable: whether to keep the values' autograd graph, so that relevance can be differentiated.
    """

    def __init__(self, inputs: Sequence[Tensor], assignment: Assignment, differentiable: bool = False) -> None:
        self.assignment = assignment
        self.differentiable = differentiable
        self.keeper = Keeper()
        self.memory = Memory()
        self.known = Known()
        self.origins = Origins(inputs, self.known, assignment, self._use)
        self.is_live = self.origins.is_live
        self.checkpoint: Checkpoint | None = None
        self.is_again = False
        self._merged: list[tuple[Layer, ReferenceType[Tensor], int]] = []
        for x in inputs:
            self.origins.note(x, Facts(x if differentiable else None, data=True))

    def facts(self, t: Tensor) -> Facts:
        """What is known of a live tensor as it is now."""
        facts = self.known.of(t) or self._of_base(t)
        if facts is not None and (facts.value is not None or not self.differentiable):
            return facts
        if self.differentiable:
            raise RuntimeError(
                "differentiable=True: a tensor was modified in place through another view of its memory, or made by a "
                f"function that lrp does not see; its shape is {tuple(t.shape)}"
            )
        return UNKNOWN

    def value(self, t: Tensor) -> Tensor:
        """The tensor in the stream of values."""
        if not self.differentiable:
            return t.detach()
        return self.facts(t).value if self.is_live(t) else t  # type: ignore[return-value]

    def value_before(self, call: LiveCall, t: Tensor) -> Tensor:
        """The value of a tensor before the call, which may overwrite it or what shares its memory."""
        if call.target is None or place_of(t) != place_of(call.target) or (self.differentiable and self.is_live(t)):
            return self.value(t)
        return call.rescued if t is call.target and call.rescued is not None else t.detach().clone()

    def carrier(self, t: Tensor) -> Tensor:
        """The tensor in the stream of relevance, where constants carry none."""
        return t if not t.requires_grad or self.is_live(t) else t.detach()

    def evaluate(self, call: LiveCall) -> Any:
        """What the call returns, in the stream of values."""
        if not self.differentiable or call.target is None:
            return call.run(self.value)
        fresh = self.value(call.target).clone()  # the derivative may need what would be overwritten
        call.run(lambda t: fresh if t is call.target else self.value(t))
        return fresh

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> LiveCall:
        """A call of the handler's own."""
        live = [t for t in tensors_in((args, kwargs)) if self.is_live(t)]
        return LiveCall(function, args, kwargs, live, [self.facts(t) for t in live])

    def rule(
        self, family: Family, call: LiveCall, x: Tensor, parameters: Sequence[Tensor | None] = ()
    ) -> tuple[str, Rule]:
        """The name of what the call calls, and its rule."""
        return self.assignment.choose(family, call.function, x.dtype, parameters, call.facts_of(x).data)

    def relay(
        self,
        call: LiveCall,
        z: Tensor,
        carriers: Sequence[Tensor],
        redistribute: Redistribute,
        saved: Sequence[Tensor] = (),
        **facts: Any,
    ) -> Tensor:
        """What the call returns, in the stream of relevance: ``z``, with ``redistribute`` as its backward."""
        self._use_all(call)
        output, _ = self._relay(call, z, carriers, redistribute, saved)
        return self._note(output, z, Facts(**{**inherited(call.facts), **facts}), call)

    def relay_layer(
        self, call: LiveCall, f: LinearMap, rule: Rule, name: str | None, values: tuple[Tensor, Tensor, Tensor | None],
        carrier: Tensor, z: Tensor, *, total: Tensor | None = None, padding: Widths = (),
        has_parameters: bool = False, **facts: Any,
    ) -> Tensor:  # fmt: skip
        """What the call of a linear map returns: ``z``, with the layer's rule as its backward.

        Args:
            values: those of x, w and b.
            carrier: that of x.
            total: what the rule is shown for the map's output, where that is not what the call returns.
            padding: the zeros around x, where the map's outputs meet several inputs: they are none of these.
            has_parameters: whether w and b are the model's own, and not made for this call.
        """
        self._use_all(call)
        x, w, b = values
        is_data = call.facts_of(carrier).data
        samples = [Sample.of(t) for t in (x if is_data else None, *((w, b) if has_parameters else (None, None)))]
        backward = LayerRelevance(f, rule, self.memory, name, threading.get_ident(), samples, padding)
        shown = _shown(rule, f, z if total is None else total)
        saved = [t for t in (x, w, shown, b) if t is not None]
        output, kept = self._relay(call, z, [carrier], backward, saved, self.memory.of(w))
        backward.ledger.belongs_to(output)
        of_z = kept[2] if kept and shown is z else None
        layer = Layer(f, rule, None, None, backward.ledger, of_z, Moves(tuple(z.shape)))
        return self._note(output, z, Facts(**{**inherited(call.facts), "layer": layer, **facts}), call)

    def merge(
        self, call: LiveCall, x: Tensor, scale: Tensor | None, shift: Tensor | None, z: Tensor, **facts: Any
    ) -> Tensor:
        """What ``x * scale + shift`` returns, one number a channel, which belongs to the layer whose output x is."""
        layer = call.facts_of(x).layer
        assert layer is not None
        self._release(layer, x)
        rule = layer.rule if scale is None else layer.rule.scaled(layer.f, scale)
        shift = plus(times(layer.shift, scale), shift)
        scale = scale if layer.scale is None else times(layer.scale, scale)
        layer.ledger.merge()
        shown = _shown(rule, layer.f, layer.moves.back(z))
        backward = MergedRelevance(rule, self.memory, scale is not None, layer.ledger, layer.moves)
        output, kept = self._relay(call, z, [x], backward, [t for t in (shown, scale, shift) if t is not None])
        backward.ledger.belongs_to(output)
        of_z = kept[0] if kept and rule.needs_output(layer.f) else None
        merged = Layer(layer.f, rule, scale, shift, backward.ledger, of_z, layer.moves)
        known = {"shifted": call.facts_of(x).shifted, **facts}
        return self._note(output, z, Facts(layer=merged, **known), call)

    def follow(
        self,
        call: LiveCall,
        is_identity: bool = False,
        is_rearranged: bool = False,
        is_part: bool = False,
        **facts: Any,
    ) -> Any:
        """What the call returns, in the stream of relevance, where the function's gradient is its relevance.

        Args:
            is_identity: whether an output of the input's shape has its values in their places.
            is_rearranged: whether the output has all the values of the first argument, each once.
            is_part: whether each output has some of the values of the first argument, each once.
            facts: what the function makes known of its output, besides what it inherits.
        """
        values = self.evaluate(call) if self.differentiable else None
        edges = [get_gradient_edge(t) for t in call.live] if len(call.live) > 1 else []
        outputs = call.run(self.carrier)
        live = call.target if call.target is not None else outputs
        is_used = False
        pairs = zip(tensors_in(live), tensors_in(live if values is None else values), strict=True)
        for number, (output, value) in enumerate(pairs):
            if not output.requires_grad or (call.target is None and any(output is t for t in call.live)):
                continue
            sources = _sources(output, edges)
            known = Facts(**{**inherited([call.facts[i] for i in sources] or [UNKNOWN]), **facts})
            if len(sources) == 1 and (is_identity or call.target is None):
                source, of_source = call.live[sources[0]], call.facts[sources[0]]
                if _is_same(source, output, is_identity):
                    known = of_source
                elif (is_rearranged or is_part) and of_source.layer is not None:
                    layer = self._keep(of_source.layer, source) if is_part else of_source.layer
                    nth = None if isinstance(outputs, Tensor) else number
                    known = replace(known, layer=layer._replace(moves=layer.moves.then(call, source, nth, not is_part)))
            if call.target is None and output._base is not None and (of_base := self._of_base(output)) is not None:
                known = replace(known, **inherited([of_base]))
            is_used |= known.layer is None or (call.target is not None and call.target._base is not None)
            self._note(output, value, known, call)
        if is_used:
            self._use_all(call)
        return outputs

    def gradient(self, call: LiveCall, **facts: Any) -> Any:
        """What the call returns, in the stream of relevance, where a rule takes the function's gradient.

        A relevance that shall be differentiated needs the gradient at the values, which have a graph of their own.
        """
        if not self.differentiable:
            return self.follow(call, **facts)
        values = [self.value(t) for t in call.live]

        def function(*several: Tensor) -> Any:
            places = iter(several)
            return call.run(lambda t: next(places).clone() if any(t is x for x in call.live) else self.value(t))

        return self.relay(call, self.evaluate(call), call.live, FunctionRelevance(function), values, **facts)

    def follow_unsupported(self, call: LiveCall, name: str) -> Any:
        """What the call returns, with its gradient for want of a rule: where relevance reaches it, the user is told."""
        outputs = self.gradient(call) if call.target is not None else self.follow(call)
        live = [t for t in tensors_in(outputs if call.target is None else call.target) if self.is_live(t)]
        if live and self.differentiable and call.target is None:
            if not isinstance(outputs, Tensor):
                raise NotImplementedError(f"differentiable=True: {name} has no rule, and several outputs")
            outputs = self.gradient(call)
            live = [outputs]
        for t in live:
            self.origins.take_gradient(name, t)
        if not live and (isinstance(outputs, (float, list)) or any(True for _ in tensors_in(outputs))):
            self.origins.end(name)
            self.known.vary(outputs)
        return outputs

    def follow_vmapped(self, call: LiveCall) -> Any:
        """What the call returns within ``torch.vmap``, which no relay can take part in: with its gradient.

        Where it is mapped over constants, its output is seen again outside alone: what is merged with a layer cannot
        know of this use.
        """
        self._use_all(call)
        return self.follow_unsupported(call, f"{call.name} within torch.vmap")

    def rescue(self, target: Tensor) -> Tensor | None:
        """Keep what backward needs from a write to ``target``, as :meth:`Keeper.rescue` does."""
        layer = self._layer_of(target)
        if layer is not None:
            self._hold(layer, target)
        if target._base is not None:
            self.leave(target._base)
        if self.checkpoint is not None and not self.is_again:
            self.checkpoint.overwrites(target)
        return self.keeper.rescue(target)

    def leave(self, t: Tensor) -> None:
        """Note that something which is not merged with it makes another tensor of ``t``."""
        layer = self._layer_of(t)
        if layer is not None:
            self._use(layer, t)

    def lend(self, t: Tensor) -> None:
        """Note that others than torch may write to the memory of ``t`` from now on."""
        if self.known.has_memory(t):
            self.keeper.lend(t)
            self.known.lend(t)

    def again(self, checkpoint: Checkpoint, arguments: Any) -> Streams:
        """The streams of the recomputation of a checkpoint, which has these arguments."""
        streams = copy(self)
        streams.assignment = Replayed(self.assignment.chosen[checkpoint.start :])
        streams.keeper, streams.checkpoint, streams.is_again = Keeper(), checkpoint.begin(self.known, arguments), True
        return streams

    def settle(self, outputs: Sequence[Tensor]) -> None:
        """After the forward: keep what a backward from anywhere may need, whatever is done to the outputs."""
        for layer, carrier, version in self._merged:
            output, t = layer.ledger.output(), carrier()
            if output is not None:
                self._use(layer._replace(moves=Moves(tuple(output.shape))), output)
            elif t is not None and t._version == version:
                self._use(layer, t)
        for t in outputs:
            self.keeper.rescue(t)

    def _relay(
        self, call: LiveCall, z: Tensor, carriers: Sequence[Tensor], redistribute: Redistribute,
        saved: Sequence[Tensor], made: Made | None = None,
    ) -> tuple[Tensor, list[Kept]]:  # fmt: skip
        if self.checkpoint is not None:
            saved = self.checkpoint.saved(saved, self.is_again)
        with self.keeper.saving(made, self.checkpoint is None) as kept:
            output = relay(
                redistribute, z, carriers, saved,
                in_place=call.target is not None, differentiable=self.differentiable,
            )  # fmt: skip
        if call.target is not None and self.differentiable:  # the values were computed beside it: see evaluate()
            self.keeper.rescue(call.target)
            call.target.detach().copy_(z)
        return output, kept

    def _release(self, layer: Layer, t: Tensor) -> None:
        """Keep the layer's own output no longer, unless something else than what is merged with it needs it."""
        if layer.z is not None and not (layer.ledger.is_direct or layer.ledger.is_parted or self.differentiable):
            layer.z.drop()
            self._merged.append((layer, ref(t), t._version))

    def _use(self, layer: Layer, t: Tensor) -> None:
        """Note that the layer's output ``t`` is used by something that is not merged with it."""
        layer.ledger.use()
        self._hold(layer, t)

    def _keep(self, layer: Layer, t: Tensor) -> Layer:
        """The layer, whose own output is kept from now on, for a part of it may be used by something else."""
        layer.ledger.is_parted = True
        if layer.moves.is_whole:
            self._hold(layer, t)
        return layer

    def _hold(self, layer: Layer, t: Tensor) -> None:
        """Keep the layer's own output again, which is ``t`` as it was rearranged."""
        if layer.z is not None and layer.z.is_dropped:
            self.keeper.hold(layer.z, layer.moves.back(t.detach()))

    def _layer_of(self, t: Tensor) -> Layer | None:
        facts = self.known.of(t)
        return None if facts is None else facts.layer

    def _use_all(self, call: LiveCall) -> None:
        for t, facts in zip(call.live, call.facts, strict=True):
            if facts.layer is not None:
                self._use(facts.layer, t)

    def _note(self, t: Tensor, value: Tensor, facts: Facts, call: LiveCall | None = None) -> Tensor:
        part = None if call is None else _assigned(call)
        if part is not None and t._base is None:
            facts = written(t, self.known.last(t), *part)
        self.origins.note(t, replace(facts, value=value) if self.differentiable else facts)
        if call is not None and call.target is not None:
            self.origins.wrote(call.target)
            self._note_base(call.target, facts, *(part or (call.target, facts)))
        return t

    def _note_base(self, target: Tensor, facts: Facts, part: Tensor, of_part: Facts) -> None:
        """What a view was written to is live in all its views, and is data or a gate only if all of it is."""
        base = target._base
        if base is not None and base.requires_grad:
            self.origins.note(base, written(base, self.known.last(base), part, of_part))
            self.origins.note(target, facts)

    def _of_base(self, t: Tensor) -> Facts | None:
        """What is known of a view by what was written to its base, through it or others."""
        base = t._base
        facts = None if base is None else self.known.of(base)
        if base is None or facts is None or place_of(base) != place_of(t):
            return None
        return facts.of_part(Box.of(t, base)) if facts.parts else Facts(**inherited([facts]))


def _shown(rule: Rule, f: LinearMap, z: Tensor) -> Tensor:
    """The output that a rule is shown: an empty one, if it does not look at it."""
    return z if rule.needs_output(f) else z.new_empty(0)


def _assigned(call: LiveCall) -> tuple[Tensor, Facts] | None:
    """The part of its target that an assignment to slices wrote to, and what is known of it."""
    if call.target is None or call.function is not Tensor.__setitem__:
        return None
    _, index, source = call.args
    indices = index if isinstance(index, tuple) else (index,)
    if any(type(i) not in (int, slice, type(None), type(...)) for i in indices):
        return None  # the elements of no view
    facts = call.facts_of(source) if any(source is t for t in call.live) else CONSTANT
    return call.target.detach()[index], Facts(**inherited([facts]))


def _sources(output: Tensor, edges: Sequence[GradientEdge]) -> list[int]:
    """Which of several tensors have values that enter the output: its autograd graph tells, where shapes do not.

    Args:
        edges: where they are in the graph; the only one has values that enter.
    """
    if len(edges) < 2:
        return [0]
    places = {(edge.node, edge.output_nr): i for i, edge in enumerate(edges)}
    found, seen = set(), set()
    ahead = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        for edge in node.next_functions if node is not None else ():
            if edge in places:
                found.add(places[edge])
            elif edge not in seen:
                seen.add(edge)
                ahead.append(edge[0])
    return sorted(found)


def _is_same(t: Tensor, output: Tensor, is_identity: bool) -> bool:
    """Whether the output has the values of ``t`` in their places: as its function says, or as a view of all of it."""
    if t.is_nested or output.is_nested or t.shape != output.shape or t.dtype != output.dtype:
        return False  # a nested tensor has no shape
    return is_identity or (place_of(t) == place_of(output) is not None and layout(t) == layout(output))


Handler = Callable[[Streams, LiveCall], Any]
