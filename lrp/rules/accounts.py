"""Where relevance goes that reaches no input: rules note it for whoever keeps account.

An account is open while the backward of one call runs, in the thread that it runs in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..maps import LinearMap

_local = threading.local()


class Account:
    """What the bias and the stabiliser of a layer have absorbed.

    Attributes:
        bias: what would be the relevance of the bias, were it an input.
        stabiliser: what the total lacks when the stabiliser is added to it.
        follows_weights: whether what flows through each weight is noted, too.
        weights: that, of the weight's shape.
    """

    def __init__(self) -> None:
        self.bias = self.stabiliser = 0.0
        self.follows_weights = False
        self.weights: Tensor | None = None
        self._weight = 1.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within this context, rules note in this account."""
        before = current()
        _local.account = self
        try:
            yield
        finally:
            _local.account = before

    def note(self, R: Tensor, total: Tensor, s: Tensor, bias: Tensor | None) -> None:
        """Note one division of relevance by a total.

        Args:
            R: the relevance.
            total: the contributions of the inputs and the bias, without a stabiliser.
            s: the quotient, that of each unit of contribution.
            bias: the contribution of the bias, which broadcasts to the total, if it is absorbed.
        """
        s = s.detach().double()
        self.stabiliser += self._weight * float((R.detach().double() - s * total.detach().double()).sum())
        if bias is not None:
            self.bias += self._weight * float((s * bias.detach().double()).sum())

    def follow(self, f: LinearMap, x: Tensor, w: Tensor, s: Tensor) -> None:
        """Note what flows through each weight: ``w x s``, summed over all its uses.

        Args:
            f: the map.
            x: the inputs, modified as the rule has it; one sample may stand for all.
            w: the weights, alike.
            s: the relevance of each unit of contribution.
        """
        if self.follows_weights:
            several = x.expand(len(s), *x.shape[1:]) if len(x) == 1 else x
            through = self._weight * (w * f.weight_pullback(several, s)).detach().sum_to_size(w.shape)
            self.weights = through if self.weights is None else self.weights + through


def current() -> Account | None:
    """The account that is open in this thread."""
    return getattr(_local, "account", None)


@contextmanager
def weighed(weight: float) -> Iterator[None]:
    """Within this context, what is noted counts this much: of a rule that adds several quotients up."""
    account = current()
    if account is None:
        yield
        return
    before, account._weight = account._weight, account._weight * weight
    try:
        yield
    finally:
        account._weight = before
