"""In which form a stream carries relevance: as it is, or over the value; see :mod:`lrp.engine.backward.gradient_form`.

In gradient form the data stay in relevance form, for the rules that look at them alone: ``g`` becomes relevance where
it comes to them, and relevance becomes ``g`` at the model's outputs. All else is one engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Any, Literal

from torch import Tensor

from ..maps.records import changed
from ..rules import Family, Gradient, Pass, Rule
from .backward.gradient_form import Border, Form, GradientForm, Start
from .backward.recording import is_recording
from .calls import plain_name, substitute
from .calls.by_tensor import ByTensor
from .checks import FunctionFormError, RuleFormError
from .facts import Facts, Layer, LiveCall

Asked = Literal["relevance", "gradient"]


class Forms:
    """The forms of one explained forward.

    Args:
        asked: that which was asked for.
        convert: gives a tensor that has the value of another, and this backward.
        note: notes what is known of it.
        is_recorded: whether somebody records the relevance of hidden layers; by default that is looked up.

    Attributes:
        asked, is_recorded: alike.
        place: the checkpoint that the model is in, whose recomputation needs borders of its own.
    """

    def __init__(
        self, asked: Asked, convert: Callable[[Tensor, GradientForm], Tensor], note: Callable[[Tensor, Facts], None],
        is_recorded: bool | None = None,
    ) -> None:  # fmt: skip
        self.asked, self._convert, self._note = asked, convert, note
        self.is_recorded = is_recording(threading.get_ident()) if is_recorded is None else is_recorded
        self.place: Any = None
        self._borders: ByTensor[tuple[int, Any, Tensor]] = ByTensor()

    def is_gradient(self, call: LiveCall) -> bool:
        """Whether what flows back from what the call returns is relevance over value."""
        return self.asked == "gradient" and not call.is_data

    def check(self, call: LiveCall, family: Family, name: str, rule: Rule) -> None:
        """Raise where a rule has no form that can be carried.

        Raises:
            ValueError: it names the layer and the rule.
        """
        if not self.is_gradient(call) or rule.has_gradient_form:
            return
        if not isinstance(rule, {"activation": Pass, "product": Pass, "max_pool": Gradient}.get(family, ())):
            raise RuleFormError(
                f"form='gradient': the rule of {name!r}, {rule}, gives relevance without the input's value as a "
                "factor, which only the first layers may; take form='relevance'"
            )

    def adds_up(self, rule: Rule, call: LiveCall) -> bool:
        """Whether the plain gradient of a function that adds up is what it hands on, by this rule.

        In gradient form it is, whatever the stabiliser, for nothing is divided.
        """
        if not self.is_gradient(call):
            return isinstance(rule, Gradient)
        return rule.is_plain() and getattr(rule, "bias", "absorb") == "absorb"

    def follows(self, rule: Rule) -> bool:
        """Whether a linear map with this rule need not be seen in backward: it hands on its plain gradient."""
        return self.asked == "gradient" and not self.is_recorded and rule.has_gradient_form and rule.is_gradient

    def rectifies(self, function: Callable[..., Any], target: Tensor, layer: Layer) -> bool:
        """Whether this function overwrites the output of a layer only where nothing comes back to it."""
        if self.asked == "relevance" or plain_name(function).strip("_") != "relu":
            return False
        return layer.rule.is_local and layer.ledger.is_alone and not target._backward_hooks

    def of_layer(self, call: LiveCall, rule: Rule, is_data: bool) -> Form:
        """What a linear map takes and gives; ``is_data`` where its output still is data."""
        if self.asked == "relevance" or is_data:
            return "relevance"
        return "gradient" if rule.has_gradient_form else "border"

    def levelled(self, call: LiveCall) -> LiveCall:
        """The call with all that is live in one form: data beside what is none get a border of their own.

        Raises:
            NotImplementedError: for a write of what layers have made among the data.
        """
        if len(call.facts) < 2 or not self.is_gradient(call):
            return call
        if call.target is not None and call.facts_of(call.target).data:
            raise FunctionFormError(
                f"form='gradient': {call.name} writes what layers have made among the data; take form='relevance'"
            )
        return self.lifted(call)

    def lifted(self, call: LiveCall) -> LiveCall:
        """The call with borders at the data, above which the stream is in gradient form."""
        if True not in [facts.data for facts in call.facts]:
            return call
        lifted = {id(t): self.border(t, facts) for t, facts in zip(call.live, call.facts, strict=True) if facts.data}
        args, kwargs = (substitute(part, lambda t: lifted.get(id(t), t)) for part in (call.args, call.kwargs))
        live = [lifted.get(id(t), t) for t in call.live]
        facts = [_above_border(facts) if facts.data else facts for facts in call.facts]
        return changed(call, args=args, kwargs=kwargs, live=live, facts=facts)

    def border(self, t: Tensor, facts: Facts) -> Tensor:
        """The data ``t``, whose relevance comes in gradient form."""
        kept = self._borders.get(t)
        if kept is None or kept[:2] != (t._version, self.place):
            kept = self._borders[t] = t._version, self.place, self._convert(t, Border())
            self._note(kept[2], _above_border(facts))
        return kept[2]

    def started(self, y: Tensor, facts: Facts) -> Tensor:
        """The output ``y`` of the model, which relevance comes to as it is."""
        if self.asked == "relevance" or facts.data:
            return y
        return self._convert(y, Start(threading.get_ident(), self.is_recorded))


def _above_border(facts: Facts) -> Facts:
    """What is known of data that are carried as what is none: within whatever bounds they are, they weigh nothing."""
    return changed(facts, data=False, top=inf)
