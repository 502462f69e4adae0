"""What a rule is, and the three that stand beside others: in proportion, unchanged, the gradient.

``R`` is relevance, ``x`` a layer's input, ``w`` and ``b`` its weight and bias, ``z`` its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..maps import LinearMap
from ..maps.arithmetic import add_, damp, divide, identity, sum_up
from ..maps.records import changed
from .accounts import current
from .numbers import check_number, range_error
from .place import Family, Place
from .totals import Parts, difference, total

Bias = Literal["absorb", "ignore", "distribute"]


# A subclass that defines one of these shares relevance out in a way of its own.
_SHARING = ("redistribute", "share", "pull", "total")
_LOOKING = (*_SHARING, "gradient_form", "damp", "stabiliser", "counted")  # at the outputs
_PROMISES = {"needs_output", "needs_input", "is_divisible", "counts_zeros", "gradient_form", "is_gradient", "damps"}


class Rule:
    """How the relevance ``R`` of a layer's outputs is shared out among its inputs.

    A rule of your own subclasses this and defines :meth:`redistribute`:

    >>> @dataclass(frozen=True)
    ... class Plain(Rule):
    ...     def redistribute(self, f, x, w, b, z, R):
    ...         return x * f.pullback(R, w)
    >>> import torch, lrp
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> lrp.functional.linear(x, torch.tensor([[1.0, 2.0]]), rule=Plain()).backward()
    >>> x.grad
    tensor([[1., 2.]])
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        """The relevance of the inputs.

        Args:
            f: the layer as a linear map, with ``f.forward``, ``f.pullback`` and ``f.weight_pullback``.
            x: the layer's input.
            w: its weight.
            b: its bias, or None.
            z: its output ``f.forward(x, w, b)``, which need not be computed again.
            R: the relevance of the outputs, of the shape of ``z``.

        Returns:
            A tensor of the shape of ``x``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define redistribute()")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(name in vars(cls) for name in _SHARING):  # what the parent promises of its own way may not be true
            for name in _PROMISES - vars(cls).keys():
                setattr(cls, name, vars(Rule)[name])
        if "is_local" not in vars(cls) and any(name in vars(cls) for name in _LOOKING):
            cls.is_local = Rule.is_local  # type: ignore[method-assign]

    def gradient_form(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, g: Tensor) -> Tensor:
        """The same rule for an explanation in gradient form, which carries ``g``, relevance over value.

        A rule that gives each input relevance with its value as a factor may define it: where the relevance of the
        outputs is ``z * g``, that of the inputs is ``x`` times what this returns. Others are for relevance form.

        Args:
            f, x, w, b, z: as for :meth:`redistribute`.
            g: what makes relevance of the outputs, of the shape of ``z``.

        Returns:
            What makes relevance of the inputs, of the shape of ``x``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient form")

    @property
    def has_gradient_form(self) -> bool:
        """Whether :meth:`gradient_form` is there."""
        return type(self).gradient_form is not Rule.gradient_form

    @property
    def is_gradient(self) -> bool:
        """Whether the gradient form is the plain gradient, which torch then computes by itself: ``W^T damp(g, z)``."""
        return False

    @property
    def damps(self) -> bool:
        """Whether :meth:`damp` makes anything else of ``g``."""
        return False

    def damp(self, g: Tensor, z: Tensor) -> Tensor:
        """What :meth:`gradient_form` is the plain gradient of, where it is one."""
        return g

    @property
    def is_local(self) -> bool:
        """Whether :meth:`gradient_form` looks at an output ``z`` for the sake of its own ``g`` alone.

        Where ``g`` is zero, it may then be shown another: what an activation has overwritten it with. Not inherited by
        a class that has a gradient form of its own.
        """
        return False

    def needs_output(self, f: LinearMap) -> bool:
        """Whether the rule looks at ``z``, in any form. One that does not is given an empty tensor, to save memory.

        Not inherited, like :meth:`is_divisible`, by a class that shares relevance out in a way of its own.
        """
        return True

    def needs_input(self, f: LinearMap) -> bool:
        """Whether :meth:`gradient_form` looks at ``x``; alike."""
        return True

    def is_divisible(self, x: Tensor) -> bool:
        """Whether :meth:`redistribute` may be called with a few samples of the batch ``x`` at a time."""
        return False

    def counts_zeros(self) -> bool:
        """Whether an input of zero has a say in what the others get.

        Zeros that the model pads the input with are then left out of it, as are those that a convolution pads it with.
        Not inherited, like :meth:`is_divisible`.
        """
        return True

    def is_plain(self) -> bool:
        """Whether the rule takes a map's weights as they are, where others ask for their signs or sizes."""
        return False

    def check_dtype(self, dtype: torch.dtype, layer: str) -> None:
        """Raise where a number of the rule has no meaning in the dtype of ``layer``."""

    @property
    def needs_pattern(self) -> bool:
        """Whether the rule still lacks the pattern of its layer."""
        return False

    def with_pattern(self, pattern: Tensor) -> Rule:
        """The same rule with the pattern that it needs."""
        return self

    def scaled(self, f: LinearMap, scale: Tensor) -> Rule:
        """The rule of the layer ``f`` merged with a batch norm, which multiplies each output channel by ``scale``."""
        return self

    def rule_for(self, place: Place) -> Rule:
        """The rule that the function at ``place`` gets, where this is the rule of a whole model."""
        return self.companion(place.family)

    def check(self, chosen: Sequence[tuple[Place, Rule]], output: Any) -> None:
        """Called after the explained forward, with the rule of each place: raise where they are not as meant."""

    def companion(self, family: Family) -> Rule:
        """The rule for the other functions of a model whose linear layers have this rule.

        Sums, means, pools and norms on their own have no weights to choose among: they share in proportion to the
        values. The winner of a max pool takes all, as its gradient does. Activations and products with constants
        pass relevance unchanged.
        """
        if family in ("linear", "conv"):
            return self
        if family in ("activation", "product"):
            return Pass()
        if family == "max_pool":
            return Gradient()
        return Proportional(epsilon=min(getattr(self, "epsilon", 1e-6), 1e-6), bias=getattr(self, "bias", "absorb"))

    def __repr__(self) -> str:
        shown = (f for f in _fields(self) if not f.kw_only or getattr(self, f.name) != f.default)
        values = (f"{f.name}={brief(getattr(self, f.name))}" for f in sorted(shown, key=lambda f: bool(f.kw_only)))
        return f"{type(self).__name__}({', '.join(values)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or vars(self).keys() != vars(other).keys():
            return NotImplemented
        return all(_same(value, getattr(other, name)) for name, value in vars(self).items())

    def __hash__(self) -> int:
        return hash((type(self), *(v.shape if isinstance(v, Tensor) else v for v in vars(self).values())))


@dataclass(frozen=True, eq=False, repr=False)
class Gradient(Rule):
    """The gradient: ``W^T R``. As the rule of a model it gives the model's plain gradient.

    Source: Simonyan et al. 2014 (arXiv 1312.6034), section 3.

    >>> Gradient()
    Gradient()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return f.pullback(R, w)

    def needs_output(self, f: LinearMap) -> bool:
        return False

    def is_divisible(self, x: Tensor) -> bool:
        return True

    def counts_zeros(self) -> bool:
        return False

    def companion(self, family: Family) -> Rule:
        return self


@dataclass(frozen=True, eq=False, repr=False)
class Pass(Rule):
    """Unchanged: ``R``. For activations, and for other functions whose input and output have one shape.

    Raises:
        ValueError: in backward, where input and output have different shapes.

    Source: Bach et al. 2015 (PLoS ONE 10(7):e0130140): an activation's output brings its relevance to its input.

    >>> Pass()
    Pass()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        if x.shape != R.shape:
            raise ValueError(f"Pass(): takes a layer of one shape; this one's are {tuple(x.shape)}, {tuple(R.shape)}")
        return R

    def needs_output(self, f: LinearMap) -> bool:
        return False

    def is_divisible(self, x: Tensor) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Proportional(Rule):
    """Relevance in proportion to contributions, over their sum: what all dividing rules have in common.

    By itself it is the rule of sums, means and pools: ``R_in = x * W^T (R / stabilize(z, epsilon))``.

    Args:
        epsilon: stabiliser of the denominator, in the unit of the outputs; 0 or more. Default 1e-6.
        bias: what becomes of the bias' share. ``"absorb"``: it is in the denominator and its share is lost (the
            default); ``"ignore"``: it is left out, and takes no relevance; ``"distribute"``: it is in, and its share
            is spread evenly over the inputs (Bach et al. 2015, PLoS ONE 10(7):e0130140).

    Raises:
        ValueError: for a negative or non-finite epsilon and for an unknown bias policy.
    """

    epsilon: float = field(default=1e-6, kw_only=True)
    bias: Bias = field(default="absorb", kw_only=True)

    def __post_init__(self) -> None:
        check_number(self, "epsilon", at_least=0)
        if self.bias not in get_args(Bias):
            raise ValueError(f"bias={self.bias!r}: choose one of {', '.join(map(repr, get_args(Bias)))}")

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        s = self.divided(R, self.counted(f, x, w, b, z), self.stabiliser(z), None if b is None else f.per_output(b))
        return self.pull(f, [(x, identity)], w, b, s)

    def is_divisible(self, x: Tensor) -> bool:
        return True

    def counts_zeros(self) -> bool:
        return self.bias == "distribute"

    def is_plain(self) -> bool:
        return type(self) is Proportional

    def gradient_form(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, g: Tensor) -> Tensor:
        if self.is_gradient:
            return f.pullback(self.damp(g, z), w)
        return self.redistribute(changed(f, bare=x), x, w, b, z, g * z)

    @property
    def has_gradient_form(self) -> bool:
        return self.bias != "distribute" and super().has_gradient_form

    @property
    def is_gradient(self) -> bool:
        return self.bias == "absorb"

    @property
    def damps(self) -> bool:
        return self.epsilon != 0

    @property
    def is_local(self) -> bool:
        return True

    def damp(self, g: Tensor, z: Tensor) -> Tensor:
        return damp(g, z, self.stabiliser(z))

    def needs_input(self, f: LinearMap) -> bool:
        return self.bias == "ignore"

    def check_dtype(self, dtype: torch.dtype, layer: str) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            error = range_error(f.name, value, dtype) if isinstance(value, (int, float)) else None
            if error is not None:
                raise ValueError(f"{f.name}={value!r}: {error}; the layer is {layer!r}, its rule {self}")

    def share(
        self,
        f: LinearMap,
        parts: Parts,
        w: Tensor,
        b: Tensor | None,
        R: Tensor,
        total: Tensor | None = None,
        sign: int = 0,
    ) -> Tensor:
        """Relevance in proportion to the contributions ``x_p w_p`` of all parts, and the bias ``b`` if it counts.

        Args:
            f: the linear map.
            parts: pairs of a modified input and an elementwise modification of the weight.
            w: the layer's own weight.
            b: the bias that is absorbed, or None.
            R: the relevance of the outputs.
            total: the sum of all contributions with ``b``, where it is there already.
            sign: +1 or -1 where all contributions have that sign; a ``total`` may then be overwritten.

        Returns:
            The relevance of the inputs.
        """
        if total is None:
            total = self.total(f, parts, w, b)
        s = self.divided(R, total, self.epsilon, None if b is None else f.per_output(b), sign)
        return self.pull(f, parts, w, b, s)

    def divided(
        self, R: Tensor, total: Tensor, epsilon: float | Tensor, bias: Tensor | None = None, sign: int = 0
    ) -> Tensor:
        """The relevance of each unit of contribution, ``R / stabilize(total, epsilon)``, of which account is kept.

        Args:
            bias: what of the total is the bias', if anything.
            sign: as for :meth:`share`.
        """
        account = current()
        if account is None:
            return divide(R, total, epsilon, sign)
        s = divide(R, total.clone(), epsilon, sign)
        account.note(R, total, s, bias if self.bias == "absorb" else None)
        return s

    def pull(self, f: LinearMap, parts: Parts, w: Tensor, b: Tensor | None, s: Tensor) -> Tensor:
        """The relevance of the inputs, where an output gives ``s`` to each unit of contribution."""
        if (account := current()) is not None:
            for x_p, make in parts:
                account.follow(f, x_p, make(w), s)
        relevance = sum_up(f.weigh(x_p, f.pullback_modified(s, make, w)) for x_p, make in parts)
        if self.bias == "distribute" and b is not None:
            relevance = add_(relevance, f.spread(s * f.per_output(b), w))
        return relevance

    def total(self, f: LinearMap, parts: Parts, w: Tensor, b: Tensor | None) -> Tensor:
        """The sum of all contributions; with the bias ``b``, unless it is ignored."""
        return total(f, parts, w, None if self.bias == "ignore" else b)

    def stabiliser(self, z: Tensor) -> float | Tensor:
        """What keeps the denominators of the outputs ``z`` from zero, where contributions are those of the map."""
        return self.epsilon

    def counted(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor) -> Tensor:
        """The output ``z``; without the bias ``b``, if it is ignored."""
        if b is None or self.bias != "ignore":
            return z
        return difference(f, [(x, identity)], w, None, z, [f.per_output(b)], 0.0)  # its sign counts, too


def _fields(rule: Rule) -> tuple[Field[Any], ...]:
    return fields(rule) if is_dataclass(rule) else ()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool((a == b).all())
    return type(a) is type(b) and bool(a == b) if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)


def brief(value: Any) -> str:
    """The value as a message shows it: a large tensor by its shape."""
    return f"<tensor of shape {tuple(value.shape)}>" if isinstance(value, Tensor) and value.numel() > 1 else repr(value)
