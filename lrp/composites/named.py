"""The named composites, and the keys that ``rule=`` takes: those of the rules and of these.

Names, layer maps and defaults are zennit's. A batch norm that does not follow a linear layer shares in proportion,
where zennit passes relevance by.

>>> EpsilonPlus()
EpsilonPlus
  conv       ZPlus()
  linear     Epsilon(epsilon=1e-06, exponent=1)
  pool       Epsilon(epsilon=1e-06, exponent=1)
  sum        Epsilon(epsilon=1e-06, exponent=1)
  otherwise  Epsilon(epsilon=1e-06, exponent=1)
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from .. import rules
from ..rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Guided, Proportional, Rule, ZBox, ZPlus
from .composite import Composite, Keyword


def _rows(conv: Proportional, linear: Rule, stabilizer: float, first: Proportional | None = None) -> dict[str, Rule]:
    """The table of a rule for convolutions, one for linear layers, and one of its own for the first layer, if any."""
    norm = Epsilon(stabilizer)
    rows: dict[str, Rule] = {} if first is None else {"first": replace(first, epsilon=stabilizer)}
    rows |= {"conv": replace(conv, epsilon=stabilizer), "linear": linear, "pool": norm, "sum": norm}
    return {Keyword(selector): rule for selector, rule in rows.items()}


class _Layered(Composite):
    """Epsilon for linear layers, ``conv`` for convolutions, and ``first`` for the first layer, if it is there."""

    conv: ClassVar[Proportional]
    first: ClassVar[Proportional | None] = None

    def __init__(self, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> None:
        linear = Epsilon(epsilon)
        super().__init__(_rows(self.conv, linear, stabilizer, self.first), default=linear)


class EpsilonPlus(_Layered):
    """Epsilon for linear layers, z+ for convolutions.

    Args:
        epsilon: of the linear layers, default 1e-6.
        stabilizer: of all other layers, default 1e-6.

    Source: Montavon et al. 2019 (LRP: an overview), section 10.3; Kohlbrenner et al. 2020 (arXiv 1910.09840).

    >>> EpsilonPlus(epsilon=0.25).table[1]
    ('linear', Epsilon(epsilon=0.25, exponent=1))
    """

    conv = ZPlus()


class EpsilonPlusFlat(EpsilonPlus):
    """Epsilon for linear layers, z+ for convolutions, flat for the first layer.

    Args:
        epsilon, stabilizer: as for :class:`EpsilonPlus`.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840).

    >>> EpsilonPlusFlat().table[0]
    ('first', Flat())
    """

    first = Flat()


class EpsilonAlpha2Beta1(_Layered):
    """Epsilon for linear layers, alpha-beta with alpha = 2 and beta = 1 for convolutions, whose bias is absorbed.

    Args:
        epsilon, stabilizer: as for :class:`EpsilonPlus`.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840).

    >>> EpsilonAlpha2Beta1().table[0]
    ('conv', AlphaBeta(alpha=2, beta=1, conserve=False, bias='absorb'))
    """

    conv = AlphaBeta(2, 1, bias="absorb")


class EpsilonAlpha2Beta1Flat(EpsilonAlpha2Beta1):
    """Epsilon for linear layers, alpha-beta with alpha = 2 and beta = 1 for convolutions, flat for the first layer.

    Args:
        epsilon, stabilizer: as for :class:`EpsilonPlus`.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840).

    >>> EpsilonAlpha2Beta1Flat().table[0]
    ('first', Flat())
    """

    first = Flat()


class EpsilonGammaBox(Composite):
    """Epsilon for linear layers, gamma for convolutions, z-box for the first one: for photographs.

    Args:
        low: smallest value that an input can have, as :class:`lrp.rules.ZBox` takes it. In the unit of the input.
        high: largest value, alike.
        epsilon: of the linear layers, default 1e-6.
        gamma: default 0.25; the generalised rule for every sample, as zennit has it.
        stabilizer: of all other layers, default 1e-6.

    Raises:
        ValueError: for low > high.

    Source: Montavon et al. 2019 (LRP: an overview), section 10.3.

    >>> EpsilonGammaBox(low=-2.2, high=2.7).table[0]
    ('first', ZBox(low=-2.2, high=2.7))
    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, epsilon: float = 1e-6, gamma: float = 0.25,
        stabilizer: float = 1e-6,
    ) -> None:  # fmt: skip
        conv, first, linear = Gamma(gamma, generalized=True), ZBox(low, high), Epsilon(epsilon)
        super().__init__(_rows(conv, linear, stabilizer, first), default=linear)


class GuidedBackprop(Composite):
    """The gradient, where activations pass only what is positive.

    Source: Springenberg et al. 2015 (arXiv 1412.6806), section 3.4.

    >>> GuidedBackprop()
    GuidedBackprop
      activation  Guided()
      otherwise   Gradient()
    """

    def __init__(self) -> None:
        super().__init__({Keyword("activation"): Guided()}, default=Gradient())


class Deconvnet(Composite):
    """The gradient, where activations pass all that is positive, and look at nothing else.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 2.1.

    >>> Deconvnet()
    Deconvnet
      activation  Deconvnet()
      otherwise   Gradient()
    """

    def __init__(self) -> None:
        super().__init__({Keyword("activation"): rules.Deconvnet()}, default=Gradient())


class ExcitationBackprop(Composite):
    """z+ for every linear layer and convolution; the gradient for activations.

    Args:
        stabilizer: of all layers, default 1e-6.

    Source: Zhang et al. 2016 (arXiv 1608.00507), section 3.2.

    >>> ExcitationBackprop().table[0]
    ('conv', ZPlus())
    """

    def __init__(self, stabilizer: float = 1e-6) -> None:
        plus = ZPlus(epsilon=stabilizer)
        super().__init__(_rows(plus, plus, stabilizer), default=Gradient())


_COMPOSITES: dict[str, Rule] = {
    "epsilon_plus": EpsilonPlus(),
    "epsilon_plus_flat": EpsilonPlusFlat(),
    "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(),
    "epsilon_alpha2_beta1_flat": EpsilonAlpha2Beta1Flat(),
    "guided_backprop": GuidedBackprop(),
    "deconvnet": Deconvnet(),
    "excitation_backprop": ExcitationBackprop(),
}
KEYS: dict[str, Rule] = {**rules.KEYS, **_COMPOSITES}
rules.register(_COMPOSITES)
