"""The two streams of an explained forward: the values, as torch computes them, and beside them the relevance.

A tensor that depends on the explained inputs is *live*. The model sees its carrier: a tensor with the right values,
whose autograd graph leads relevance back to the inputs. Parameters and all that is made of them alone are constants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..maps import LinearMap
from ..maps.padding import Widths
from ..maps.records import changed
from ..maps.storage import Box, is_given_back, layout, place_of
from ..maps.weights import Memory
from ..rules import Family, Rule
from .assignment import Assignment
from .backward.gradient_form import Converted, GradientForm
from .backward.ledger import Ledger
from .backward.moves import Moves
from .backward.propagation import (
    DampedLayer,
    FunctionRelevance,
    LayerRelevance,
    MergedRelevance,
    Redistribute,
    blank,
    plus,
    shown_to,
    times,
)
from .backward.samples import Sample
from .calls import tensors_in, tensors_of
from .checkpoints import Checkpoint, Replayed
from .checks import FunctionFormError
from .facts import SIGNAL, UNKNOWN, Facts, Known, Layer, LiveCall, assigned_part, inherited, written
from .forms import Asked, Forms
from .origins import Origins, sources_of
from .relays import Relays


class Streams:
    """The live tensors of one explained forward.

    Args:
        inputs: the explained inputs.
        assignment: which layer has which name and rule.
        differentiable: whether to keep the values' autograd graph, so that relevance can be differentiated.
        form: in which relevance is carried.
    """

    def __init__(
        self, inputs: Sequence[Tensor], assignment: Assignment, differentiable: bool = False, form: Asked = "relevance"
    ) -> None:
        self.assignment = assignment
        self.differentiable = differentiable
        self.relays = Relays(differentiable)
        self.memory = Memory()
        self.known = Known()
        self.origins = Origins(self.known, assignment, self.relays.keeper)
        self.is_live = self.origins.is_live
        self.forms = Forms(form, self.relays.convert, self.origins.note)
        self._merged: list[tuple[Layer, ReferenceType[Tensor], int]] = []
        for x in inputs:
            self.begin(x)

    def begin(self, x: Tensor) -> None:
        """Note an explained input."""
        self.origins.begin(x)
        self.origins.note(x, Facts(x if self.differentiable else None, data=True))

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
        if self.forms.asked == "gradient" and t in self.known:
            raise FunctionFormError(
                f"form='gradient': a tensor of shape {tuple(t.shape)} was written to where lrp does not see it, and "
                "relevance over its value is unknown; take form='relevance'"
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

    def call(
        self, function: Callable[..., Any], *args: Any, overwritten: Tensor | None = None, **kwargs: Any
    ) -> LiveCall:
        """A call of the handler's own, which overwrites this tensor."""
        live = [t for t in tensors_of(args, kwargs) if self.is_live(t)]
        return self.forms.levelled(LiveCall(function, args, kwargs, live, [self.facts(t) for t in live], overwritten))

    def rule(
        self, family: Family, call: LiveCall, x: Tensor, parameters: Sequence[Tensor | None] = ()
    ) -> tuple[str, Rule]:
        """The name of what the call calls, and its rule."""
        name, rule = self.assignment.choose(family, call.function, x.dtype, parameters, call.facts_of(x).data)
        self.forms.check(call, family, name, rule)
        return name, rule

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
        if self.forms.is_gradient(call) and not isinstance(redistribute, GradientForm):
            if not getattr(redistribute, "is_multiplicative", False):
                return self.lacks_form(call, **facts)  # type: ignore[no-any-return]
            saved = [z, *(self.value_before(call, t) for t in carriers), *saved]
            redistribute = Converted(redistribute, len(carriers))
        output, _ = self.relays.make(z, carriers, redistribute, saved, call.target)
        return self._note(output, z, Facts(**{**inherited(call.facts), **facts}), call)

    def relay_layer(
        self, call: LiveCall, f: LinearMap, rule: Rule, name: str | None, values: tuple[Tensor, Tensor, Tensor | None],
        carrier: Tensor, z: Tensor, *, padding: Widths = (), has_parameters: bool = False, **facts: Any,
    ) -> Tensor:  # fmt: skip
        """What the call of a linear map returns: ``z``, with the layer's rule as its backward.

        Args:
            values: those of x, w and b.
            carrier: that of x.
            padding: the zeros around x, where the map's outputs meet several inputs: they are none of these.
            has_parameters: whether w and b are the model's own, and not made for this call.
        """
        self._use_all(call)
        x, w, b = values
        facts = {**inherited(call.facts), **facts}
        is_data, form = call.facts_of(carrier).data, self.forms.of_layer(call, rule, facts["data"])
        if form == "gradient":
            carrier = self.forms.border(carrier, call.facts_of(carrier)) if is_data else carrier
            x = x if self.forms.is_recorded or rule.needs_input(f) else blank(x)
        samples = [Sample.of(t) for t in (x if is_data else None, *((w, b) if has_parameters else (None, None)))]
        backward = LayerRelevance(f, rule, self.memory, name, threading.get_ident(), samples, padding, form)
        shown = shown_to(rule, f, z, form)
        saved = [t for t in (x, w, shown, b) if t is not None]
        output, kept = self.relays.make(z, [carrier], backward, saved, call.target, self.memory.of(w))
        backward.ledger.belongs_to(output)
        of_z = kept[2] if kept and shown is z else None
        layer = Layer(f, rule, None, None, backward.ledger, of_z, Moves(tuple(z.shape)), form)
        return self._note(output, z, Facts(**{"layer": layer, **facts}), call)

    def follow_layer(self, call: LiveCall, f: LinearMap, rule: Rule) -> Any:
        """What the call of a linear map returns, in gradient form, where its plain gradient is its relevance."""
        z = self.follow(self.forms.lifted(call))
        ledger, of_z = Ledger(), None
        if rule.damps:
            backward = DampedLayer(f, rule)
            z, kept = self.relays.make(z.detach(), [z], backward, [z.detach()], call.target)
            ledger, of_z = backward.ledger, kept[0] if kept else None
            ledger.belongs_to(z)
        layer = Layer(f, rule, None, None, ledger, of_z, Moves(tuple(z.shape)), "damped")
        return self._note(z, z, Facts(**SIGNAL, layer=layer), call)

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
        shown = shown_to(rule, layer.f, layer.moves.back(z), layer.form)
        backward = MergedRelevance(rule, self.memory, scale is not None, layer.ledger, layer.moves, layer.form)
        saved = [t for t in (shown, scale, shift) if t is not None]
        output, kept = self.relays.make(z, [x], backward, saved, call.target)
        backward.ledger.belongs_to(output)
        of_z = kept[0] if kept and shown.numel() else None
        merged = Layer(layer.f, rule, scale, shift, backward.ledger, of_z, layer.moves, layer.form)
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
        with self.relays.saving() if self.forms.is_gradient(call) else nullcontext():
            outputs = call.run(self.carrier)
        live = call.target if call.target is not None else outputs
        is_used = False
        pairs = zip(tensors_in(live), tensors_in(live if values is None else values), strict=True)
        for number, (output, value) in enumerate(pairs):
            if not output.requires_grad or (call.target is None and any(output is t for t in call.live)):
                continue
            sources = sources_of(output, edges)
            known = Facts(**{**inherited([call.facts[i] for i in sources] or [UNKNOWN]), **facts})
            if len(sources) == 1 and (is_identity or call.target is None):
                source, of_source = call.live[sources[0]], call.facts[sources[0]]
                if _is_same(source, output, is_identity):
                    known = of_source
                elif (is_rearranged or is_part) and of_source.layer is not None:
                    layer = self._keep(of_source.layer, source) if is_part else of_source.layer
                    nth = None if isinstance(outputs, Tensor) else number
                    known = changed(known, layer=layer._replace(moves=layer.moves.then(call, source, nth, not is_part)))
            if call.target is None and output._base is not None and (of_base := self._of_base(output)) is not None:
                known = changed(known, **inherited([of_base]))
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

    def lacks_form(self, call: LiveCall, **facts: Any) -> Any:
        """What the call returns, for want of a gradient form: an error, where relevance reaches it."""
        outputs = self.follow(call, **facts)
        for t in tensors_in(outputs if call.target is None else call.target):
            if self.is_live(t):
                self.origins.lacks_form(call.name, t)
        return outputs

    def follow_vmapped(self, call: LiveCall) -> Any:
        """What the call returns within ``torch.vmap``, which no relay can take part in: with its gradient.

        Where it is mapped over constants, its output is seen again outside alone: what is merged with a layer cannot
        know of this use.
        """
        self._use_all(call)
        return self.follow_unsupported(call, f"{call.name} within torch.vmap")

    def rescue(self, target: Tensor, function: Callable[..., Any] | None = None) -> Tensor | None:
        """Keep what backward needs from a write to ``target``, as :meth:`Relays.rescue` does.

        Args:
            target: the tensor.
            function: what is about to overwrite it.
        """
        layer = self._layer_of(target)
        if layer is not None:
            layer.hold(target, self.relays.keeper)
        if target._base is not None:
            self.leave(target._base)
        is_spared = layer is not None and function is not None and self.forms.rectifies(function, target, layer)
        return self.relays.rescue(target, layer.z if layer is not None and is_spared else None)

    def leave(self, t: Tensor) -> None:
        """Note that something which is not merged with it makes another tensor of ``t``."""
        layer = self._layer_of(t)
        if layer is not None:
            layer.use(t, self.relays.keeper)

    def lend(self, t: Tensor) -> None:
        """Note that others than torch may write to the memory of ``t`` from now on, or take it again."""
        if is_given_back(t):
            self.relays.keeper.taken_again(t)
        if self.known.has_memory(t):
            self.relays.keeper.lend(t)
            self.known.lend(t)

    def enter(self, checkpoint: Checkpoint | None) -> None:
        """Note which checkpoint the model is in."""
        self.relays.checkpoint = self.forms.place = checkpoint

    def again(self, checkpoint: Checkpoint, arguments: Any) -> Streams:
        """The streams of the recomputation of a checkpoint, which has these arguments."""
        streams = copy(self)
        streams.assignment = Replayed(self.assignment.chosen[checkpoint.start :])
        streams.relays = self.relays.again(checkpoint.begin(self.known, arguments))
        streams.forms = Forms(self.forms.asked, streams.relays.convert, self.origins.note, self.forms.is_recorded)
        streams.forms.place = checkpoint
        return streams

    def started(self, y: Tensor) -> Tensor:
        """An output of the model, which relevance comes to as it is, whatever is carried."""
        return self.forms.started(y, self.facts(y)) if self.is_live(y) else y

    def settle(self, outputs: Sequence[Tensor]) -> None:
        """After the forward: keep what a backward from anywhere may need, whatever is done to the outputs."""
        keeper = self.relays.keeper
        for layer, carrier, version in self._merged:
            output, t = layer.ledger.output(), carrier()
            if output is not None:
                layer._replace(moves=Moves(tuple(output.shape))).use(output, keeper)
            elif t is not None and t._version == version:
                layer.use(t, keeper)
        for t in outputs:
            keeper.rescue(t)

    def _release(self, layer: Layer, t: Tensor) -> None:
        """Keep the layer's own output no longer, unless something else than what is merged with it needs it."""
        if layer.z is not None and not (layer.ledger.is_direct or layer.ledger.is_parted or self.differentiable):
            layer.z.drop()
            self._merged.append((layer, ref(t), t._version))

    def _keep(self, layer: Layer, t: Tensor) -> Layer:
        """The layer, whose own output is kept from now on, for a part of it may be used by something else."""
        layer.ledger.is_parted = True
        if layer.moves.is_whole:
            layer.hold(t, self.relays.keeper)
        return layer

    def _layer_of(self, t: Tensor) -> Layer | None:
        facts = self.known.of(t)
        return None if facts is None else facts.layer

    def _use_all(self, call: LiveCall) -> None:
        for t, facts in zip(call.live, call.facts, strict=True):
            if facts.layer is not None:
                facts.layer.use(t, self.relays.keeper)

    def _note(self, t: Tensor, value: Tensor, facts: Facts, call: LiveCall | None = None) -> Tensor:
        part = None if call is None else assigned_part(call)
        if part is not None and t._base is None:
            facts = written(t, self.known.last(t), *part)
        self.origins.note(t, changed(facts, value=value) if self.differentiable else facts)
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


def _is_same(t: Tensor, output: Tensor, is_identity: bool) -> bool:
    """Whether the output has the values of ``t`` in their places: as its function says, or as a view of all of it."""
    if t.is_nested or output.is_nested or t.shape != output.shape or t.dtype != output.dtype:
        return False  # a nested tensor has no shape
    return is_identity or (place_of(t) == place_of(output) is not None and layout(t) == layout(output))


Handler = Callable[[Streams, LiveCall], Any]
