"""The sums over a layer's samples that patterns are made of.

A sample of a neuron is one position of its output: the inputs ``x`` that its weights meet there, and ``y = w^T x``.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any, Literal

import torch
from torch import Tensor

from ..maps import Linear, Sampled

Kind = Literal["linear", "positive", "negative"]
Sums = dict[str, Tensor]

PER_NEURON = ("n", "y", "n+", "y+")
_BLOCK = 2**20  # elements of a weight that sums are made of at a time
_PART = 2**23  # bytes of samples at a time: what is made of them fits in memory that is used again


class Moments:
    """Sums over the samples of one layer: additive, in float64, of inputs and outputs less a fixed centre.

    The sums of ``x``, ``y``, ``x y`` and their number ``n``: over all samples, and (``+``) over those with a positive
    activation. The samples of a linear layer wait as they are, as long as they are small beside their sums.

    Args:
        f: the layer.
        w: its weight.
        kinds: the kinds of patterns that are wanted.
        x_centre: what is taken off the inputs, in the shape of the weight of one output.
        y_centre: what is taken off each output.
    """

    def __init__(self, f: Sampled, w: Tensor, kinds: Set[Kind], x_centre: Tensor, y_centre: Tensor) -> None:
        self.f, self.w, self.kinds, self.x_centre, self.y_centre = f, w.detach(), kinds, x_centre, y_centre
        self.sums: Sums = {}
        self._waiting: list[tuple[Tensor, ...]] = []

    @classmethod
    def centred(cls, f: Sampled, w: Tensor, kinds: Set[Kind], x: Tensor, z: Tensor) -> Moments:
        """No samples yet, with the centre that the first ones shall have; if there are none, any will do."""
        if z.numel() == 0:
            x, z = (t.new_zeros([max(1, size) for size in t.shape]) for t in (x, z))
        y_centre = f.output_sums(z)
        y_centre /= z.numel() // len(y_centre)
        return cls(f, w, kinds, *(c.to(z.dtype).double() for c in (f.centre(x), y_centre)))

    def like(self) -> Moments:
        """No samples yet, with the same centre."""
        return Moments(self.f, self.w, self.kinds, self.x_centre, self.y_centre)

    def add(self, f: Sampled, x: Tensor, z: Tensor, fired: Tensor) -> None:
        """Take in the samples of one call: inputs, outputs, and where the activation is positive."""
        if z.numel() == 0:
            return
        x, z = (t if t.dtype.itemsize >= 4 else t.float() for t in (x, z))
        if isinstance(f, Linear):  # copies, for the model may overwrite what it has used
            samples = (t.reshape(-1, t.shape[-1]) for t in (x.clone(), z.clone(), fired))
            self._waiting.append(tuple(samples))
            return
        for part in _parts(f, x, z):
            shifted = f.of_samples(len(x[part])).shifted(x[part], self.x_centre.to(x.dtype))
            self._take(self._sums(*shifted, z[part], fired[part]))

    def merge(self, other: Moments) -> None:
        """Take in all samples of another, of the same layer."""
        self._take(other.moved(self.x_centre, self.y_centre))
        self._waiting += other._waiting
        if sum(part.nbytes for parts in self._waiting for part in parts) > 6 * self.w.numel():
            self.settle()

    def settle(self) -> None:
        """Sum up the samples that wait."""
        for samples in self._shifted():
            for rows in self._blocks():
                self._take(self._sums_of(*samples, rows), rows)
        self._waiting = []

    def moved(self, x_centre: Tensor, y_centre: Tensor) -> Sums:
        """The sums with another centre."""
        if (torch.equal(x_centre, self.x_centre) and torch.equal(y_centre, self.y_centre)) or not self.sums:
            return self.sums
        x, y = self.x_centre - x_centre, self.y_centre - y_centre
        sums = dict(self.sums)
        for end in ("", "+"):
            if f"xy{end}" in sums:
                n, of_y = self.sums[f"n{end}"], self.sums[f"y{end}"]
                of_x = self._all(self.sums[f"x{end}"])
                scaled = self.f.scale_channels
                sums[f"xy{end}"] = (
                    self.sums[f"xy{end}"] + scaled(of_x, y) + scaled(self._all(x), of_y) + scaled(self._all(x), n * y)
                )
                sums[f"x{end}"] = self.sums[f"x{end}"] + (scaled(self._all(x), n) if end else x * n[0])
            if f"n{end}" in sums:
                sums[f"y{end}"] = self.sums[f"y{end}"] + self.sums[f"n{end}"] * y
        return sums

    def is_empty(self) -> bool:
        """Whether there was no sample."""
        return not (self.sums or self._waiting)

    def is_finite(self) -> bool:
        """Whether no sample had an infinity or a nan."""
        values = [t for t in (self.sums.get("y"), *(z for _, z, _ in self._waiting)) if t is not None]
        return all(bool(t.isfinite().all()) for t in values)

    def pattern(self, kind: Kind) -> Tensor:
        """The pattern, of the shape and in the dtype of the weight."""
        if self.is_empty():
            return torch.zeros_like(self.w)
        pattern = torch.empty_like(self.w)
        for rows in self._blocks():
            sums = {key: t if key == "x" else t[rows] for key, t in self.sums.items()}
            for samples in self._shifted():
                for key, more in self._sums_of(*samples, rows).items():
                    sums[key] = sums[key] + more if key in sums else more
            pattern[rows] = self._estimate(kind, sums, self.w[rows].double(), rows).to(pattern.dtype)
        return pattern

    def _estimate(self, kind: Kind, sums: Sums, w: Tensor, rows: slice) -> Tensor:
        """``a = s / (w^T s)``, where ``s`` is the covariance of x and y, or the two-component estimate of it."""
        scaled, n, mean_y = self.f.scale_channels, sums["n"], sums["y"] / sums["n"]
        if kind == "linear":
            terms = [scaled(sums["xy"], 1 / n), scaled(self._all(sums["x"], w), -mean_y / n)]
        else:
            n, of_y, of_x, of_xy = self._of_sign(kind, sums, w)
            share = torch.where(n > 0, 1 / n, 0.0)
            shift = torch.where(n > 0, of_y * share - mean_y, 0.0)
            terms = [scaled(of_xy, share), scaled(of_x, -mean_y * share), scaled(self._all(self.x_centre, w), shift)]
        signal = sum(terms[1:], terms[0])
        norm = self.f.neuron_sums(w * signal)
        vanishes = norm.abs() <= self._rounding(terms, w, rows)
        return scaled(signal, torch.where(vanishes, 0.0, 1 / norm))

    def _rounding(self, terms: list[Tensor], w: Tensor, rows: slice) -> Tensor:
        """How large a denominator can be by rounding alone: of its terms, and of what was centred."""
        tolerance = 64 * torch.finfo(self.w.dtype).eps
        magnitudes = self.f.neuron_sums(w.abs() * torch.stack([t.abs() for t in terms]).sum(0))
        centres = self.f.neuron_sums((w * self._all(self.x_centre, w)).abs()) * self.y_centre[rows].abs()
        return tolerance * magnitudes + tolerance**2 * centres

    def _of_sign(self, kind: Kind, sums: Sums, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Number, sum of y, of x and of x y, over the samples whose activation has the sign of the kind."""
        plus = sums["n+"], sums["y+"], sums["x+"], sums["xy+"]
        if kind == "positive":
            return plus
        n, y, x, xy = (
            total - part
            for total, part in zip((sums["n"], sums["y"], self._all(sums["x"], w), sums["xy"]), plus, strict=True)
        )
        return n, y, x, xy

    def _sums(self, f: Sampled, x: Tensor, z: Tensor, fired: Tensor, rows: slice = slice(None)) -> Sums:
        """The sums over some samples, from inputs that are centred."""
        y, mask = z - f.per_output(self.y_centre[rows].to(z.dtype)), fired.to(z.dtype)
        of_y = f.output_sums(y)
        sums, outputs = {"n": torch.full_like(of_y, y.numel() // len(of_y)), "y": of_y}, {}
        if self.kinds & {"linear", "negative"}:
            sums["x"], outputs["xy"] = f.input_sums(x, z), y
        if self.kinds & {"positive", "negative"}:
            outputs |= {"x+": mask, "xy+": y * mask}
            sums |= {"n+": f.output_sums(mask), "y+": f.output_sums(outputs["xy+"])}
        pulled = f.weight_pullbacks(x, [*outputs.values()])
        return sums | dict(zip(outputs, pulled, strict=True))

    def _sums_of(self, x: Tensor, z: Tensor, fired: Tensor, rows: slice) -> Sums:
        """The sums over samples of a linear layer, for some of its outputs."""
        return self._sums(self.f, x, z[:, rows].double(), fired[:, rows], rows)

    def _shifted(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The samples that wait, with centred inputs in float64, as many at a time as are good for the memory."""
        together: list[tuple[Tensor, ...]] = []
        for number, samples in enumerate(self._waiting, start=1):
            together.append(samples)
            if number == len(self._waiting) or sum(x.numel() for x, _, _ in together) > 4 * _BLOCK:
                x, z, fired = (torch.cat(parts) for parts in zip(*together, strict=True))
                yield self.f.shifted(x.double(), self.x_centre)[1], z, fired
                together = []

    def _take(self, sums: Sums, rows: slice = slice(None)) -> None:
        for key, t in sums.items():
            if key not in self.sums:
                self.sums[key] = self._zeros(key, t)
            if key != "x":
                self.sums[key][rows] += t
            elif rows.start in (None, 0):  # the same for all outputs
                self.sums[key] += t

    def _zeros(self, key: str, t: Tensor) -> Tensor:
        shape = self.y_centre.shape if key in PER_NEURON else t.shape if key == "x" else self.w.shape
        return torch.zeros(shape, dtype=torch.float64, device=self.w.device)

    def _blocks(self) -> Iterator[slice]:
        """Rows of the weight, as many as are good for the memory; all, where they are no neurons."""
        if not isinstance(self.f, Linear):
            yield slice(None)
            return
        step = max(1, _BLOCK // self.w[0].numel())
        for start in range(0, len(self.w), step):
            yield slice(start, start + step)

    def _all(self, t: Tensor, w: Tensor | None = None) -> Tensor:
        """What is the same for all outputs, in the shape of the weight."""
        w = self.w if w is None else w
        return t if t.shape == w.shape else self.f.for_all_outputs(t).expand(w.shape)


def _parts(f: Sampled, x: Tensor, z: Tensor) -> Iterator[Any]:
    """Indices of as many samples at a time as are good for the memory."""
    if not f.is_divisible():
        yield ...
        return
    size = max(1, len(x) * _PART // max(1, x.nbytes, z.nbytes))
    for start in range(0, len(x), size):
        yield slice(start, start + size)
