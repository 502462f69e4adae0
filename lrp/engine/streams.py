"""The two streams of an explained forward: the values, as torch computes them, and beside them the relevance.

A tensor that depends on the explained inputs is *live*. The model sees its carrier: a tensor with the right values,
whose autograd graph leads relevance back to the inputs. Parameters and all that is made of them alone are constants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from ..maps.weights import Made, Memory
from ..rules import Family, Rule
from .assignment import Assignment
from .calls import Call, tensors_in
from .facts import Facts, Known, Layer
from .kept import Keeper, Sample
from .propagation import LayerRelevance, Redistribute, relay


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
        self.unsupported: list[str] = []
        self.known = Known()
        self._roots = {get_gradient_edge(x).node for x in inputs}
        for x in inputs:
            self._note(x, x, data=True)

    def is_live(self, t: Tensor) -> bool:
        """Whether ``t`` depends on the explained inputs."""
        if not t.requires_grad:
            return False
        if t in self.known:
            return True
        return not t.is_leaf and (self.known.inherits(t) or self._reaches_inputs(t))

    def facts(self, t: Tensor) -> Facts:
        """What is known of a live tensor as it is now."""
        facts = self.known.of(t)
        if facts is not None:
            return facts
        if self.differentiable:
            raise RuntimeError(
                "differentiable=True: a tensor was modified in place through another view of its memory, or made by a "
                f"function that lrp does not see; its shape is {tuple(t.shape)}"
            )
        return Facts(t._version)

    def value(self, t: Tensor) -> Tensor:
        """The tensor in the stream of values."""
        if not self.differentiable:
            return t.detach()
        return self.facts(t).value if self.is_live(t) else t  # type: ignore[return-value]

    def carrier(self, t: Tensor) -> Tensor:
        """The tensor in the stream of relevance, where constants carry none."""
        return t if not t.requires_grad or self.is_live(t) else t.detach()

    def evaluate(self, call: Call) -> Any:
        """What the call returns, in the stream of values."""
        if not self.differentiable or call.target is None:
            return call.run(self.value)
        fresh = self.value(call.target).clone()  # the derivative may need what would be overwritten
        call.run(lambda t: fresh if t is call.target else self.value(t))
        return fresh

    def rule(self, family: Family, call: Call, x: Tensor, parameters: Sequence[Tensor | None] = ()) -> tuple[str, Rule]:
        """The name of what the call calls, and its rule."""
        return self.assignment.choose(family, call.function, x.dtype, parameters, self.facts(x).data)

    def relay(
        self,
        call: Call,
        z: Tensor,
        carriers: Sequence[Tensor],
        redistribute: Redistribute,
        saved: Sequence[Tensor] = (),
        made: Made | None = None,
        **facts: Any,
    ) -> Tensor:
        """What the call returns, in the stream of relevance: ``z``, with ``redistribute`` as its backward.

        What is ``made`` of a weight is kept as long as what is saved.
        """
        facts = {"data": self._is_data(carriers), **facts}
        with self.keeper.saving(made):
            output = relay(
                redistribute, z, carriers, saved,
                in_place=call.target is not None, differentiable=self.differentiable,
            )  # fmt: skip
        if call.target is not None and self.differentiable:  # the values were computed beside it: see evaluate()
            self.keeper.rescue(call.target)
            call.target.detach().copy_(z)
        self._note(output, z, **facts)
        return output

    def relay_layer(
        self, call: Call, layer: Layer, z: Tensor, *, total: Tensor | None = None, has_parameters: bool = False,
        **facts: Any,
    ) -> Tensor:  # fmt: skip
        """What the call of a linear map returns: ``z``, with the layer's rule as its backward.

        Args:
            call: the call.
            layer: the linear map, and what it is called with.
            z: what the call returns.
            total: the map's output that the rule is shown, where that is not ``z``.
            has_parameters: whether the layer's weight and bias are the model's own, and not made for this call.
            facts: what is known of the output.
        """
        samples = (
            Sample.of(layer.x) if self._is_data([layer.carrier]) else None,
            *(Sample.of(t) if has_parameters else None for t in (layer.w, layer.b)),
        )
        backward = LayerRelevance(layer.f, layer.rule, layer.name, threading.get_ident(), self.memory, samples)
        total = z if total is None else total
        output = total if layer.rule.needs_output(layer.f) else z.new_empty(0)
        saved = [layer.x, layer.w, output, *([] if layer.b is None else [layer.b])]
        made = self.memory.of(layer.w)
        return self.relay(call, z, [layer.carrier], backward, saved, made, layer=layer, **facts)

    def follow(self, call: Call, keeps: bool = False, **facts: Any) -> Any:
        """What the call returns, in the stream of relevance, where the function's gradient is its relevance.

        If it ``keeps`` values as they are, it also keeps what is known of them.
        """
        tensors = list(tensors_in((call.args, call.kwargs)))
        facts = {"data": self._is_data(tensors), **facts}
        if keeps:
            facts |= self.known.kept(tensors)
        values = self.evaluate(call) if self.differentiable else None
        outputs = call.run(self.carrier)
        live = call.target if call.target is not None else outputs
        for output, value in zip(tensors_in(live), tensors_in(live if values is None else values), strict=True):
            if output.requires_grad:
                self._note(output, value, **facts)
        return outputs

    def take_gradient(self, function: str) -> None:
        """Note that the plain gradient stands in for the relevance of this function, for want of a rule."""
        last = self.assignment.last_name
        self.unsupported.append(f"{function} ({'before the first layer' if last is None else f'after layer {last!r}'})")

    def _is_data(self, tensors: Sequence[Tensor]) -> bool:
        return all(self.facts(t).data for t in tensors if self.is_live(t))

    def _note(self, t: Tensor, value: Tensor, **facts: Any) -> None:
        self.known.note(t, value if self.differentiable else None, **facts)

    def _reaches_inputs(self, t: Tensor) -> bool:
        """Whether a tensor that no known function made depends on the inputs: a custom autograd function made it."""
        seen: set[Node] = set()
        ahead: list[Node | None] = [t.grad_fn]
        while ahead:
            node = ahead.pop()
            if node in self._roots:
                self.take_gradient(f"the autograd function {t.grad_fn.name() if t.grad_fn else None}")
                self._note(t, t)
                return True
            if node is not None and node not in seen:
                seen.add(node)
                ahead.extend(following for following, _ in node.next_functions)
        return False


Handler = Callable[[Streams, Call], Any]
