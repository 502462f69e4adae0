"""What a program means for relevance: two readings of its steps that know nothing of the library.

:class:`Relevance` takes each rule as the dense formula of :mod:`oracles.reference`, layer by layer, with batch norms
merged by hand. :class:`GradientTimesInput` is torch's own gradient, with gates detached: what epsilon -> 0 gives where
a program has but linear maps, relus, sums, maxima and moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from oracles import reference
from oracles.cases import CASES, Case
from oracles.norms import Norm, merged
from torch import Tensor, nn
from torch.nn import functional as F

from .program import Program

__all__ = ["CASES", "Case", "GradientTimesInput", "Reading", "Relevance"]


class Reading:
    """One run of a program's meanings."""

    def __init__(self, program: Program, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.model = model
        self.values: dict[str, Tensor] = {f"x{i}": x for i, x in enumerate(inputs)}
        self.values["n"] = len(inputs[0])  # type: ignore[assignment]
        self.data = {f"x{i}" for i in range(len(inputs))}
        self.met_unseen = False
        self.may_refuse = False
        self.is_cut = False
        for step in program.steps:
            kind, *arguments = step.meaning
            self.step = step.name
            self.values[step.name] = getattr(self, kind)(*arguments)
        self.output = self.values[program.output]

    def eval(self, expression: str, **values: Tensor) -> Any:
        with torch.no_grad() if not values else torch.enable_grad():
            return eval(expression, {"torch": torch, "F": F, "nn": nn, "self": self.model}, {**self.values, **values})

    def live(self, expression: str) -> Tensor:
        """The expression with torch's own gradient."""
        result: Tensor = eval(
            expression, {"torch": torch, "F": F, "nn": nn, "self": _Constants(self.model)}, self.values
        )
        return result

    def stays_data(self, *names: str) -> None:
        if all(name in self.data for name in names):
            self.data.add(self.step)

    def folded(self, norm: str, part: str, dims: int) -> tuple[Tensor, Tensor]:
        m = getattr(self.model, norm)
        scale = m.weight.detach() * (m.running_var + m.eps).rsqrt() if part != "shift" else torch.ones_like(m.weight)
        shift = m.bias.detach() - m.running_mean * scale if part != "scale" else torch.zeros_like(m.bias)
        return scale.detach(), shift.detach()

    # meanings that are the same in both readings

    def same(self, name: str) -> Tensor:
        self.stays_data(name)
        return self.values[name]

    def moves(self, expression: str, *names: str) -> Tensor:
        self.stays_data(*names)
        return self.live(expression)

    def cut(self, expression: str) -> Tensor:
        self.is_cut = True
        result: Tensor = self.eval(expression)
        return result.detach()

    def masked(self, mask: str, x: str) -> Tensor:
        m, t = self.eval(mask), self.values[x]
        if t.requires_grad:
            t.register_hook(lambda R: R * m)
        return t

    def weighs(self, expression: str) -> Tensor:
        result: Tensor = self.eval(expression)
        return result.detach()


class _Constants:
    """A model whose parameters are constants."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        return value.detach() if isinstance(value, Tensor) else value


class GradientTimesInput(Reading):
    """Torch's gradient, with constants and gates detached. What is data for the first layer counts as the input.

    Attributes:
        is_gradient: False where a function makes something of a zero, which no gradient can hand on.
    """

    is_gradient = True

    def layer(self, module: str, x: str) -> Tensor:
        result: Tensor = torch.func.functional_call(
            getattr(self.model, module), _detached(getattr(self.model, module)), (self.values[x],)
        )
        return result

    def affine(self, norm: str, x: str, part: str) -> Tensor:
        t = self.values[x]
        scale, shift = (v.reshape(-1, *[1] * (t.dim() - 2)) for v in self.folded(norm, part, t.dim()))
        if x in self.data:
            self.stays_data(x)
            return self._handed_on(t, t * scale + shift)
        return t * scale + shift

    def norm(self, module: str, x: str) -> Tensor:
        self.stays_data(x)
        norm = Norm.of(getattr(self.model, module), self.values[x].detach())
        return norm(self.values[x]) + norm.bias

    def passes(self, expression: str, x: str) -> Tensor:
        self.stays_data(x)
        z = self.eval(expression).detach()
        return self._handed_on(self.values[x], z)

    def term(self, expression: str, x: str) -> Tensor:
        t, c = self.values[x], self.eval(expression).detach()
        is_unit = x in self.data and varies_along_one_dimension(c)
        self.stays_data(x)
        return self._handed_on(t, t + c) if is_unit else t + c

    def factor(self, expression: str, x: str) -> Tensor:
        self.stays_data(x)
        return self.values[x] * self.eval(expression).detach()

    def fixed(self, expression: str, x: str) -> Tensor:
        return self.live(expression)

    adds = fixed

    def total(self, terms: Sequence[tuple[str, float]]) -> Tensor:
        self.stays_data(*(name for name, _ in terms))
        return sum(weight * self.values[name] for name, weight in terms)  # type: ignore[return-value]

    def gated(self, x: str, g: str) -> Tensor:
        return self.values[x] * self.values[g].detach()

    def mixed(self, g: str, x: str, y: str) -> Tensor:
        z = self.values[g].detach()
        return (1 - z) * self.values[x] + z * self.values[y]

    def half_each(self, x: str, y: str) -> Tensor:
        a, b = self.values[x], self.values[y]
        return (a * b.detach() + a.detach() * b) / 2

    def softmax(self, x: str) -> Tensor:
        return self.values[x].softmax(-1)

    def _handed_on(self, t: Tensor, z: Tensor) -> Tensor:
        """``z``, which hands relevance on to ``t`` unchanged: gradient * input is the same for both."""
        self.is_gradient = self.is_gradient and not bool(((t == 0) & (z != 0)).any())
        ratio = reference.divide(z.detach(), t.detach())
        result: Tensor = _Node.apply(lambda R: [R * ratio], z, t)
        return result


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


class Relevance(Reading):
    """The relevance of each step by its formula."""

    def __init__(self, program: Program, model: nn.Module, inputs: Sequence[Tensor], case: Case) -> None:
        self.case = case
        # the layer that gave a value, what it was given, and the masks of what was merged, each of which comes to have
        self.layers: dict[str, tuple[nn.Module, str, list[list[Tensor]]]] = {}
        super().__init__(program, model, inputs)

    def relevance(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The relevance of the inputs, where it starts at the output; None where nothing leads there."""
        y = self.output
        if not y.requires_grad or not bool(y.isfinite().all()):
            return None
        found = torch.autograd.grad(y, inputs, y.detach(), allow_unused=True)
        return [torch.zeros_like(x) if R is None else R for x, R in zip(inputs, found, strict=True)]

    def node(self, z: Tensor, names: Sequence[str], backward: Callable[[Tensor], Sequence[Tensor]]) -> Tensor:
        result: Tensor = _Node.apply(backward, z.detach(), *(self.values[name] for name in names))
        return result

    def value(self, name: str) -> Tensor:
        return self.values[name].detach()

    def share(self, contribution: Tensor, z: Tensor, R: Tensor) -> Tensor:
        return contribution * reference.divide(R, z)

    def layer(self, module: str, x: str) -> Tensor:
        return self._layer(getattr(self.model, module), x)

    def _layer(self, m: nn.Module, x: str, masks: Sequence[list[Tensor]] = ()) -> Tensor:
        self.layers[self.step] = m, x, [*masks, []]
        t, first = self.value(x), x in self.data

        def backward(R: Tensor) -> list[Tensor]:
            return [self.case.layer(m, t, prod((mask for several in masks for mask in several), start=R), first)]

        return self.node(m(t), [x], backward)

    def masked(self, mask: str, x: str) -> Tensor:
        if x in self.layers:
            self.layers[x][2][-1].append(self.eval(mask))
        return super().masked(mask, x)

    def norm(self, module: str, x: str) -> Tensor:
        self.stays_data(x)
        t, m = self.value(x), getattr(self.model, module)

        def backward(R: Tensor) -> list[Tensor]:
            samples = zip(t.split(1), R.split(1), strict=True)
            return [torch.cat([Norm.of(m, x).relevance(x, R, self.case.bias) for x, R in samples])]

        return self.node(m(t), [x], backward)

    def affine(self, norm: str, x: str, part: str) -> Tensor:
        t = self.value(x)
        scale, shift = self.folded(norm, part, t.dim())
        scale, shift = (v.reshape(1, -1, *[1] * (t.dim() - 2)) for v in (scale, shift))
        scales, shifts = (self._of_channels(v, x) for v in (scale, shift))
        if scales is not None and shifts is not None:
            return self._merge(x, scales, shifts)
        z = t * scale + shift
        if x in self.data:
            self.stays_data(x)
            return self.node(z, [x], lambda R: [R])
        if part == "scale" or (part == "shift" and not self.case.absorbs):
            return self.node(z, [x], lambda R: [R])
        contribution = z if self.case.bias == "distribute" else t * scale
        total = z if self.case.absorbs else contribution
        return self.node(z, [x], lambda R: [self.share(contribution, total, R)])

    def _merge(self, x: str, scale: Tensor, shift: Tensor) -> Tensor:
        layer, of_layer, masks = self.layers[x]
        return self._layer(merged(layer, scale, shift), of_layer, masks)

    def same(self, name: str) -> Tensor:
        if name in self.layers:
            self.layers[self.step] = self.layers[name]
        return super().same(name)

    def passes(self, expression: str, x: str) -> Tensor:
        self.stays_data(x)
        return self.node(self.eval(expression), [x], lambda R: [R])

    def term(self, expression: str, x: str) -> Tensor:
        t, c = self.value(x), self.eval(expression).detach()
        of_channels = self._of_channels(c, x)
        if of_channels is not None:
            return self._merge(x, torch.ones_like(of_channels), of_channels)
        z, unchanged = t + c, not self.case.absorbs or (x in self.data and varies_along_one_dimension(c))
        self.stays_data(x)
        return self.node(z, [x], lambda R: [R if unchanged else self.share(t, z, R)])

    def factor(self, expression: str, x: str) -> Tensor:
        c = self.eval(expression).detach()
        of_channels = self._of_channels(c, x)
        if of_channels is not None:
            return self._merge(x, of_channels, torch.zeros_like(of_channels))
        self.stays_data(x)
        return self.node(self.value(x) * c, [x], lambda R: [R])

    def _of_channels(self, c: Tensor, x: str) -> Tensor | None:
        """A constant as one number for each channel of the layer whose output ``x`` is, if it is that."""
        if x not in self.layers:
            return None
        t, channel = self.value(x), -1 if isinstance(self.layers[x][0], nn.Linear) else 1
        n = t.shape[channel]
        if c.numel() == 1:
            return c.double().reshape(1).expand(n)
        return c.double().flatten() if c.numel() == n == c.shape[channel] else None

    def fixed(self, expression: str, x: str) -> Tensor:
        return self._linear(expression, x, self.case.has_factor)

    def adds(self, expression: str, x: str) -> Tensor:
        return self._linear(expression, x, True)

    def _linear(self, expression: str, x: str, has_factor: bool) -> Tensor:
        t = self.value(x)

        def backward(R: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                leaf = (t if has_factor else torch.ones_like(t)).clone().requires_grad_()
                z = self.eval(expression, **{x: leaf})
                return [leaf.detach() * torch.autograd.grad(z, leaf, reference.divide(R, z.detach()))[0]]

        return self.node(self.eval(expression), [x], backward)

    def total(self, terms: Sequence[tuple[str, float]]) -> Tensor:
        names = [name for name, _ in terms]
        self.stays_data(*names)
        weighted = [self._weighted(name, weight) for name, weight in terms]
        self.layers.pop(self.step, None)
        z = sum(term.detach() for term in weighted)
        result: Tensor = _Node.apply(lambda R: [self.share(term.detach(), z, R) for term in weighted], z, *weighted)
        return result

    def _weighted(self, name: str, weight: float) -> Tensor:
        """A term with its factor, which belongs to the layer, if the term is the output of one."""
        factors = None if weight == 1 else self._of_channels(torch.tensor(weight), name)
        if factors is not None:
            return self._merge(name, factors, torch.zeros_like(factors))
        return self.node(weight * self.value(name), [name], lambda R: [R])

    def gated(self, x: str, g: str) -> Tensor:
        return self.node(self.value(x) * self.value(g), [x], lambda R: [R])

    def mixed(self, g: str, x: str, y: str) -> Tensor:
        gate = self.value(g)
        terms = [(1 - gate) * self.value(x), gate * self.value(y)]
        z = sum(terms)
        return self.node(z, [x, y], lambda R: [self.share(term, z, R) for term in terms])  # type: ignore[arg-type]

    def half_each(self, x: str, y: str) -> Tensor:
        return self.node(self.value(x) * self.value(y), [x, y], lambda R: [R / 2, R / 2])

    def hidden(self, expression: str, x: str) -> Tensor:
        """A write that is named, even where what goes on was made of the tensor before."""
        self.may_refuse = True
        return self.unseen(expression, x)

    def unseen(self, expression: str, x: str) -> Tensor:
        def backward(R: Tensor) -> list[Tensor]:
            self.met_unseen = True
            return [R]

        return self.node(self.eval(expression), [x], backward)

    def softmax(self, x: str) -> Tensor:
        t = self.value(x)
        z = t.softmax(-1)
        return self.node(z, [x], lambda R: [t * (R - z * R.sum(-1, keepdim=True))])


class _Node(torch.autograd.Function):
    """A value, and what it does to relevance."""

    @staticmethod
    def forward(ctx: Any, backward: Callable[[Tensor], Sequence[Tensor]], z: Tensor, *inputs: Tensor) -> Tensor:
        ctx.backward_of = backward
        return z.detach().clone()

    @staticmethod
    def backward(ctx: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.backward_of(R)


def varies_along_one_dimension(c: Tensor) -> bool:
    return c.numel() == max(c.shape, default=1)
