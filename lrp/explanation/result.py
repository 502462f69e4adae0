"""What an explanation is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..engine import Asked
from ..rules import Rule
from . import audit, files, randomization, weights
from .inputs import mapped
from .running import Question

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Features(NamedTuple):
    """The most relevant features of each sample.

    Attributes:
        values: their relevance, ``(N, k)``, largest first.
        indices: where they are in the sample: ``(N, k)`` for one dimension, ``(N, k, d)`` for ``d``.
    """

    values: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What :func:`lrp.explain` gives: the relevance of a batch, and how it came about.

    Attributes:
        relevance: in the structure of the inputs, ``(N, ...)``; of K targets ``(N, K, ...)``. In the unit of the
            output, unless it was started otherwise.
        output: the model's output; what the model gives, where the target is a function.
        target: what was explained: the index of each sample ``(N,)`` or ``(N, K)``, or what was asked for.
        initial_relevance: what each map started with, ``(N,)`` or ``(N, K)``: what it adds up to, if nothing is
            absorbed.
        layers: the relevance at modules, by name.
        rules: which rule was where, by name, in the order of the forward.
        form: in which form relevance was carried.
        inputs: what was explained.
        rule: what was asked for, or decided.
    """

    relevance: Any
    output: Any
    target: Any
    initial_relevance: Tensor
    layers: Mapping[str, Tensor]
    rules: Mapping[str, Rule | str]
    form: Asked
    inputs: Any
    rule: Rule | str
    _n: int = field(default=1, kw_only=True)
    _questions: Sequence[Question] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Explanation:
        """Sample ``i``, whose tensors keep dimension 0."""
        if not -self._n <= i < self._n:
            raise IndexError(f"sample {i}: there are {self._n}")
        one = slice(i % self._n, i % self._n + 1)

        def of(t: Tensor) -> Tensor:
            return t[one] if t.dim() > 0 and len(t) == self._n else t

        parts = {name: mapped(getattr(self, name), of) for name in _BY_SAMPLE}
        return replace(self, **parts, _n=1, _questions=())

    def map(self) -> Any:
        """The relevance of each place: summed over the channels, where samples have more dimensions than one."""
        lead = 1 + (self.initial_relevance.dim() == 2)
        return mapped(self.relevance, lambda R: R.sum(lead) if R.dim() > lead + 1 else R)

    def numpy(self) -> Any:
        """The relevance as arrays."""
        return mapped(self.relevance, lambda R: R.detach().cpu().float().numpy() if R.dtype in _SHORT else _array(R))

    def top(self, k: int) -> Features:
        """The ``k`` features with the most relevance, of each sample.

        Raises:
            TypeError: for several inputs, or several targets.
        """
        if not isinstance(self.relevance, Tensor) or self.initial_relevance.dim() == 2:
            raise TypeError("top(): for one input and one target; take torch.topk() of the relevance")
        shape = self.relevance.shape[1:]
        values, places = self.relevance.flatten(1).topk(min(k, shape.numel()), dim=1)
        return Features(values, places if len(shape) < 2 else torch.stack(torch.unravel_index(places, shape), -1))

    @property
    def share(self) -> Tensor:
        """The share of the initial relevance that reached the inputs: of each map."""
        return self.reached / self.initial_relevance

    @property
    def reached(self) -> Tensor:
        """The relevance that reached the inputs: of each map."""
        lead = self.initial_relevance.dim()
        parts: list[Tensor] = []
        mapped(self.relevance, parts.append)
        sums = [R.detach().double().flatten(lead).sum(lead) if R.dim() > lead else R.double() for R in parts]
        return torch.stack(sums).sum(0)

    def plot(self) -> Figure:
        """A picture of the maps, a row a sample and a column a target; of features, bars. Needs matplotlib.

        Raises:
            TypeError: for several inputs, and for maps of more than two dimensions.
        """
        from ..plot import maps  # here, for `import lrp` needs torch alone

        lead = self.initial_relevance.dim()
        found = self.map()
        if not isinstance(found, Tensor) or not lead < found.dim() <= lead + 2:
            raise TypeError(
                "plot(): draws one input, whose map has one or two dimensions; see map() and lrp.plot.maps()"
            )
        rows = found.detach().cpu().float().unsqueeze(1) if lead == 1 else found.detach().cpu().float()
        return maps([[*row.numpy()] for row in rows])

    def audit(self) -> audit.Audit:
        """Where relevance went, call by call; see :class:`~lrp.explanation.audit.Audit`.

        It is explained again, in relevance form, with the model as it is now.

        Raises:
            RuntimeError: for an explanation that was read from a file, or is of one sample of several, and where the
                model no longer gives this output.
        """
        return audit.audit(self._asked(), self.rule, self.output)  # type: ignore[arg-type]

    def randomized(self, seed: int = 0) -> randomization.Randomization:
        """How much the map depends on what the model has learned; see :class:`~lrp.explanation.Randomization`.

        The layers of a copy are drawn anew, one after another from the top, and each time it is explained again.

        Args:
            seed: of the weights; the same seed gives the same numbers.

        Raises:
            RuntimeError: as for :meth:`audit`.
            TypeError: for a model whose weights cannot be drawn.
        """
        return randomization.randomized(self._asked(), self.rule, seed)  # type: ignore[arg-type]

    def weights(self, layer: str) -> Tensor:
        """The relevance that flows through each weight of a layer, summed over the batch: of the weight's shape.

        It adds up to the relevance of the layer's inputs; that of a filter is ``.flatten(1).sum(1)``. A batch norm
        after the layer counts with it. It is explained again, in relevance form.

        Args:
            layer: its name.

        Raises:
            RuntimeError: as for :meth:`audit`.
            ValueError: for a name that is not there, and a rule that does not share out by weights.
        """
        return weights.weights(self._asked(), self.rule, layer)  # type: ignore[arg-type]

    def _asked(self) -> Sequence[Question]:
        if not self._questions:
            raise RuntimeError("the model is not known here: audit the whole explanation, as lrp.explain() gave it")
        return self._questions

    def save(self, path: str | Path) -> None:
        """Write it to a file of safetensors, with what is needed to say what it is.

        Args:
            path: of the file; folders must be there.

        Raises:
            TypeError: for outputs and targets that are not made of tensors, numbers and words.
        """
        files.save(path, {name: getattr(self, name) for name in files.FIELDS})

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Read what :meth:`save` has written; rules are shown by their names.

        Raises:
            ValueError: for another file.
        """
        return cls(**files.load(path))

    def __repr__(self) -> str:
        tensors: list[Tensor] = []
        mapped(self.relevance, tensors.append)
        shapes = ", ".join(str(tuple(R.shape)) for R in tensors)
        started = float(self.initial_relevance.sum())
        lines = [f"Explanation of shape {shapes} by {str(self.rule).splitlines()[0]}"]
        lines.append(f"  {float(self.reached.sum()):.4g} of {started:.4g} reached the input, in {self.form} form")
        doubt = self._doubt(tensors)
        return "\n".join([*lines, *([f"  looks wrong: {doubt}"] if doubt else [])])

    def _doubt(self, tensors: list[Tensor]) -> str | None:
        """The first thing that looks wrong."""
        size = sum(float(R.detach().abs().sum()) for R in tensors)
        reached, started = abs(float(self.reached.sum())), abs(float(self.initial_relevance.sum()))
        if not size < float("inf"):
            return "relevance is not finite"
        if size == 0:
            return "no relevance reached the input"
        if size > _NOISE * max(reached, started):
            return f"positive and negative relevance cancel: absolute values add up to {size:.3g}"
        if started > 0 and reached < _LITTLE * started:
            return "almost all relevance was absorbed"
        return None


_BY_SAMPLE = ("relevance", "output", "target", "initial_relevance", "layers", "inputs")
_SHORT = {torch.bfloat16}
_NOISE, _LITTLE = 100, 0.01


def _array(R: Tensor) -> Any:
    return R.detach().cpu().numpy()
