"""The two streams of an explained forward: the values, as torch computes them, and beside them the relevance.

A tensor that depends on the explained inputs is *live*. The model sees its carrier: a tensor with the right values,
whose autograd graph leads relevance back to the inputs. Parameters and all that is made of them alone are constants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..maps import LinearMap
from ..rules import Family, Rule
from .assignment import Assignment
from .calls import tensors_in
from .checkpoints import Checkpoint, Replayed
from .facts import UNKNOWN, Facts, Known, Layer, LiveCall, inherited
from .kept import Keeper, Kept, layout, memory
from .moves import Moves
from .origins import Origins
from .propagation import FunctionRelevance, LayerRelevance, MergedRelevance, Redistribute, relay


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
        self.known = Known()
        self.origins = Origins(inputs, self.known, assignment)
        self.is_live = self.origins.is_live
        self.checkpoint: Checkpoint | None = None
        self.is_again = False
        self._merged: list[tuple[Layer, ReferenceType[Tensor], int]] = []
        for x in inputs:
            self.origins.note(x, Facts(x if differentiable else None, data=True))

    def facts(self, t: Tensor) -> Facts:
        """What is known of a live tensor as it is now."""
        facts = self.known.of(t)
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
        if call.target is None or memory(t) != memory(call.target) or (self.differentiable and self.is_live(t)):
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
        self, call: LiveCall, f: LinearMap, rule: Rule, name: str | None, values: Sequence[Tensor | None],
        carrier: Tensor, z: Tensor, *, total: Tensor | None = None, **facts: Any,
    ) -> Tensor:  # fmt: skip
        """What the call of a linear map returns: ``z``, with the layer's rule as its backward.

        Args:
            values: those of x, w and b.
            carrier: that of x.
            total: what the rule is shown for the map's output, where that is not what the call returns.
        """
        self._use_all(call)
        backward = LayerRelevance(f, rule, name, threading.get_ident())
        return self._layer(call, backward, values, carrier, z, z if total is None else total, facts)

    def merge(self, call: LiveCall, x: Tensor, scale: Tensor, shift: Tensor, z: Tensor) -> Tensor:
        """What ``x * scale + shift`` returns, one number a channel, which belongs to the layer whose output x is."""
        layer = call.facts_of(x).layer
        assert layer is not None
        self._release(layer, x)
        rule = layer.rule.scaled(layer.f, scale)
        w, b = layer.f.scale_channels(layer.w, scale), shift if layer.b is None else layer.b * scale + shift
        layer.ledger.merge()
        backward = MergedRelevance(layer.f, rule, layer.ledger, layer.moves)
        values = layer.x.release(), w, b
        return self._layer(call, backward, values, x, z, z, {"data": False, "gate": False}, layer.moves)

    def follow(self, call: LiveCall, is_identity: bool = False, is_rearranged: bool = False, **facts: Any) -> Any:
        """What the call returns, in the stream of relevance, where the function's gradient is its relevance.

        Args:
            is_identity: whether an output of the input's shape has its values in their places.
            is_rearranged: whether the output has all the values of the first argument, each once.
            facts: what the function makes known of its output, besides what it inherits.
        """
        values = self.evaluate(call) if self.differentiable else None
        edges = [get_gradient_edge(t) for t in call.live]
        outputs = call.run(self.carrier)
        live = call.target if call.target is not None else outputs
        is_used = False
        for output, value in zip(tensors_in(live), tensors_in(live if values is None else values), strict=True):
            if not output.requires_grad or (call.target is None and any(output is t for t in call.live)):
                continue
            sources = _sources(output, edges, call)
            known = Facts(**{**inherited([f for _, f in sources]), **facts})
            if len(sources) == 1 and (is_identity or call.target is None):
                ((source, of_source),) = sources
                if _is_same(source, output, is_identity):
                    known = of_source
                elif is_rearranged and of_source.layer is not None:
                    layer = of_source.layer
                    known = replace(known, layer=layer._replace(moves=layer.moves.then(call, source)))
            is_used |= known.layer is None
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
        return outputs

    def rescue(self, target: Tensor) -> Tensor | None:
        """Keep what backward needs from a write to ``target``, as :meth:`Keeper.rescue` does."""
        for t in (target, target._base):
            facts = None if t is None else self.known.of(t)
            if t is not None and facts is not None and facts.layer is not None:
                self._use(facts.layer, t)
        if self.checkpoint is not None and not self.is_again:
            self.checkpoint.overwrites(target)
        return self.keeper.rescue(target)

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

    def _layer(
        self, call: LiveCall, backward: LayerRelevance | MergedRelevance, values: Sequence[Any], carrier: Tensor,
        z: Tensor, total: Tensor, facts: Mapping[str, Any], moves: Moves | None = None,
    ) -> Tensor:  # fmt: skip
        x, w, b = values
        moves = moves or Moves(tuple(z.shape))
        needed = moves.back(total) if backward.rule.needs_output(backward.f) else None
        saved = [x, w, z.new_empty(0) if needed is None else needed, *([] if b is None else [b])]
        output, kept = self._relay(call, z, [carrier], backward, saved)
        layer = None
        if backward.f.channel() is not None:
            of_x, of_z = (kept[0], kept[2]) if kept else (self.keeper.keep(x), None)
            of_z = None if needed is None else of_z
            backward.ledger.belongs_to(output)
            layer = Layer(backward.f, backward.rule, of_x, w, b, backward.ledger, of_z, moves)
        return self._note(output, z, Facts(**{**inherited(call.facts), "layer": layer, **facts}), call)

    def _relay(
        self, call: LiveCall, z: Tensor, carriers: Sequence[Tensor], redistribute: Redistribute, saved: Sequence[Tensor]
    ) -> tuple[Tensor, list[Kept]]:
        if self.checkpoint is not None:
            saved = self.checkpoint.saved(saved, self.is_again)
        with self.keeper.saving(self.checkpoint is None) as kept:
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
        if layer.z is not None and not layer.ledger.is_direct and not self.differentiable:
            layer.z.drop()
            self._merged.append((layer, ref(t), t._version))

    def _use(self, layer: Layer, t: Tensor) -> None:
        """Note that the layer's output ``t`` is used by something that is not merged with it."""
        layer.ledger.use()
        if layer.z is not None and layer.z.is_dropped:
            layer.z.hold(layer.moves.back(t.detach()))

    def _use_all(self, call: LiveCall) -> None:
        for t, facts in zip(call.live, call.facts, strict=True):
            if facts.layer is not None:
                self._use(facts.layer, t)

    def _note(self, t: Tensor, value: Tensor, facts: Facts, call: LiveCall | None = None) -> Tensor:
        self.origins.note(t, replace(facts, value=value) if self.differentiable else facts)
        if call is not None and call.target is not None:
            self.origins.wrote(call.target)
            self._note_base(call.target, facts)
        return t

    def _note_base(self, target: Tensor, facts: Facts) -> None:
        """What a view was written to is live in all its views, and is data or a gate only if all of it is."""
        base = target._base
        if base is not None and base.requires_grad:
            before = self.known.last(base)
            self.origins.note(base, Facts(**inherited([facts] if before is None else [facts, before])))
            self.origins.note(target, facts)


def _sources(output: Tensor, edges: Sequence[GradientEdge], call: LiveCall) -> Sequence[tuple[Tensor, Facts]]:
    """The live tensors whose values enter the output, as its autograd graph tells: a shape alone does not."""
    known = list(zip(call.live, call.facts, strict=True))
    if len(edges) < 2:
        return known
    of_edge = {(edge.node, edge.output_nr): source for edge, source in zip(edges, known, strict=True)}
    found: list[tuple[Tensor, Facts]] = []
    seen = set()
    ahead = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        for edge in node.next_functions if node is not None else ():
            if edge in seen:
                continue
            seen.add(edge)
            if edge in of_edge:
                found.append(of_edge[edge])
            else:
                ahead.append(edge[0])
    return found or [(output, UNKNOWN)]


def _is_same(t: Tensor, output: Tensor, is_identity: bool) -> bool:
    """Whether the output has the values of ``t`` in their places: as its function says, or as a view of all of it."""
    if t.shape != output.shape or t.dtype != output.dtype:
        return False
    return is_identity or (memory(t) == memory(output) and layout(t) == layout(output))


Handler = Callable[[Streams, LiveCall], Any]
