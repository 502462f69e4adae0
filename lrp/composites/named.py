"""The named composites, and the keys of all rules.

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

from torch import Tensor

from .. import rules
from ..rules.dividing import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Guided, ZBox, ZPlus
from ..rules.rule import Rule
from .composite import Composite


class _Layered(Composite):
    """A rule for convolutions, epsilon for linear layers, and one of its own for the first layer, if any."""

    def __init__(self, conv: Rule, epsilon: float, stabilizer: float, first: Rule | None = None) -> None:
        norm = Epsilon(stabilizer)
        table: list[tuple[str, Rule]] = [
            ("conv", conv),
            ("linear", Epsilon(epsilon)),
            ("pool", norm),
            ("sum", norm),
        ]
        super().__init__(table if first is None else [("first", first), *table], default=Epsilon(epsilon))


class EpsilonPlus(_Layered):
    """Epsilon for linear layers, z+ for convolutions.

    Args:
        epsilon: of the linear layers, default 1e-6.
        stabilizer: of all other layers, default 1e-6.

    Source: Montavon et al. 2019 (LRP: an overview), section 10.3; Kohlbrenner et al. 2020 (arXiv 1910.09840).

    >>> EpsilonPlus(epsilon=0.25).table[1]
    ('linear', Epsilon(epsilon=0.25, exponent=1))
    """

    def __init__(self, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> None:
        super().__init__(ZPlus(epsilon=stabilizer), epsilon, stabilizer)


class EpsilonPlusFlat(_Layered):
    """Epsilon for linear layers, z+ for convolutions, flat for the first layer.

    Args:
        epsilon: of the linear layers, default 1e-6.
        stabilizer: of all other layers, default 1e-6.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840), section III.

    >>> EpsilonPlusFlat().table[0]
    ('first', Flat())
    """

    def __init__(self, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> None:
        super().__init__(ZPlus(epsilon=stabilizer), epsilon, stabilizer, Flat(epsilon=stabilizer))


class EpsilonAlpha2Beta1(_Layered):
    """Epsilon for linear layers, alpha-beta with alpha = 2 and beta = 1 for convolutions, whose bias is absorbed.

    Args:
        epsilon: of the linear layers, default 1e-6.
        stabilizer: of all other layers, default 1e-6.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840), section III.

    >>> EpsilonAlpha2Beta1().table[0]
    ('conv', AlphaBeta(alpha=2, beta=1, conserve=False, bias='absorb'))
    """

    def __init__(self, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> None:
        super().__init__(AlphaBeta(2, 1, bias="absorb", epsilon=stabilizer), epsilon, stabilizer)


class EpsilonAlpha2Beta1Flat(_Layered):
    """Epsilon for linear layers, alpha-beta with alpha = 2 and beta = 1 for convolutions, flat for the first layer.

    Args:
        epsilon: of the linear layers, default 1e-6.
        stabilizer: of all other layers, default 1e-6.

    Source: Kohlbrenner et al. 2020 (arXiv 1910.09840), section III.

    >>> EpsilonAlpha2Beta1Flat().table[0]
    ('first', Flat())
    """

    def __init__(self, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> None:
        conv = AlphaBeta(2, 1, bias="absorb", epsilon=stabilizer)
        super().__init__(conv, epsilon, stabilizer, Flat(epsilon=stabilizer))


class EpsilonGammaBox(_Layered):
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
        conv = Gamma(gamma, generalized=True, epsilon=stabilizer)
        super().__init__(conv, epsilon, stabilizer, ZBox(low, high, epsilon=stabilizer))


class GuidedBackprop(Composite):
    """The gradient, where activations pass only what is positive.

    Source: Springenberg et al. 2015 (arXiv 1412.6806), section 3.4.

    >>> GuidedBackprop()
    GuidedBackprop
      activation  Guided()
      otherwise   Gradient()
    """

    def __init__(self) -> None:
        super().__init__({"activation": Guided()}, default=Gradient())


class Deconvnet(Composite):
    """The gradient, where activations pass all that is positive, and look at nothing else.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 2.1.

    >>> Deconvnet()
    Deconvnet
      activation  Deconvnet()
      otherwise   Gradient()
    """

    def __init__(self) -> None:
        super().__init__({"activation": rules.Deconvnet()}, default=Gradient())


class ExcitationBackprop(Composite):
    """z+ for every linear layer and convolution; the gradient for activations.

    Args:
        stabilizer: of all layers, default 1e-6.

    Source: Zhang et al. 2016 (arXiv 1608.00507), section 3.2.

    >>> ExcitationBackprop().table[0]
    ('conv', ZPlus())
    """

    def __init__(self, stabilizer: float = 1e-6) -> None:
        plus, norm = ZPlus(epsilon=stabilizer), Epsilon(stabilizer)
        super().__init__({"conv": plus, "linear": plus, "pool": norm, "sum": norm}, default=Gradient())


KEYS: dict[str, Rule] = {
    **rules.KEYS,
    "epsilon_plus": EpsilonPlus(),
    "epsilon_plus_flat": EpsilonPlusFlat(),
    "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(),
    "epsilon_alpha2_beta1_flat": EpsilonAlpha2Beta1Flat(),
    "guided_backprop": GuidedBackprop(),
    "deconvnet": Deconvnet(),
    "excitation_backprop": ExcitationBackprop(),
}


def get(rule: str | Rule) -> Rule:
    """The rule or composite that ``rule=`` names, as :func:`lrp.rules.get` does.

    >>> get("guided_backprop") == GuidedBackprop()
    True
    """
    return rules.get(rule, KEYS)
