"""How much of a neuron's signal a pattern finds: the quality measure of patterns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..maps import Linear, Sampled
from .batches import inputs_in, on_device
from .observation import Observation, Observed, evaluating

LARGEST = 2**12  # weights of a neuron; the square of it is what covariances take
PART = 2**25  # numbers


class _Covariance:
    """The covariance of the inputs that the neurons of a layer meet, group by group, in float64."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, met: Tensor) -> None:
        if met.shape[1] == 0:
            return
        if self.n == 0:
            self.centre = met.mean(1, keepdim=True)
            self.sums = torch.zeros_like(self.centre)
            self.products = self.centre.new_zeros(len(met), met.shape[2], met.shape[2])
        met = met - self.centre
        self.n += met.shape[1]
        self.sums += met.sum(1, keepdim=True)
        self.products.baddbmm_(met.transpose(1, 2), met)

    def value(self) -> Tensor:
        mean = self.sums / self.n
        return self.products / self.n - mean.transpose(1, 2) @ mean


class _Layer:
    """What is seen of a layer: of every other sample to fit readouts to, and of the others to measure them on."""

    def __init__(self, f: Sampled, w: Tensor) -> None:
        self.f, self.w, self.samples = f, w, 0
        self.halves = _Covariance(), _Covariance()

    def add(self, f: Sampled, x: Tensor) -> None:
        if not f.is_divisible():  # the samples are not those of a batch: each by itself
            met = f.patches(x.double())
            for i, half in enumerate(self.halves):
                half.add(met[:, (self.samples + i) % 2 :: 2])
            self.samples += met.shape[1]
            return
        for i, half in enumerate(self.halves):
            chosen = x[(self.samples + i) % 2 :: 2].double()
            for part in torch.split(chosen, _samples_at_a_time(f, self.w, x)) if len(chosen) else ():
                half.add(f.of_samples(len(part)).patches(part))
        self.samples += len(x)

    def quality(self, pattern: Tensor) -> float:
        fitted, measured = (half.value() for half in self.halves)
        w, a = (self.f.rows(t.to(self.w.device).double()) for t in (self.w, pattern))
        groups = [_quality(*group) for group in zip(fitted, measured, w, a, strict=True)]
        return torch.cat(groups).nanmean().item()


def _samples_at_a_time(f: Sampled, w: Tensor, x: Tensor) -> int:
    """As many as have a moderate number of inputs met: at most one position for each element of the input."""
    met = x[0].numel() if isinstance(f, Linear) else x[0].numel() * f.rows(w).shape[2]
    return max(1, PART // met)


def quality(
    model: nn.Module,
    loader: Iterable[Any],
    patterns: Sequence[Tensor] | Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The quality of patterns, rho, layer by layer: 1 is best, 0 worst.

    ``rho = 1 - max_v corr(w^T x, v^T (x - a w^T x))``: one minus the highest correlation between a neuron's output
    and a linear readout ``v`` of what the pattern ``a`` leaves of its input as distractor, the mean over the layer's
    neurons. The readout is fitted to every other sample, the correlation measured on the others. Patterns are scaled
    so that ``w^T a = 1``, as fitted ones are: the weights themselves become the pattern ``w / w^T w``.

    Args:
        model: any model, on ``device``. It is run in eval mode, and put back.
        loader: gives batches as :meth:`lrp.patterns.PatternStatistics.update` takes them.
        patterns: a list with one for each layer in the order of the forward, or a dict by layer name.
        device: where the batches are put, default ``"cpu"``.

    Returns:
        rho by layer name. A neuron whose output is constant does not count; a layer of such neurons has nan. Layers
        whose neurons have more than 4096 weights are left out, with a warning.

    Raises:
        ValueError: if the patterns do not fit the model, and for fewer than two samples.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), equation 1 and figure 3.

    >>> import torch, lrp
    >>> model, data = torch.nn.Linear(3, 2), torch.randn(100, 3) * torch.tensor([1.0, 2.0, 3.0])
    >>> patterns = lrp.patterns.fit_patternnet(model, [data])
    >>> quality(model, [data], patterns)["Linear"] > quality(model, [data], [model.weight])["Linear"]
    True
    """
    layers: dict[str, _Layer | None] = {}

    def report(seen: Observed) -> None:
        if seen.name not in layers:
            layers[seen.name] = _Layer(seen.f, seen.w) if seen.f.rows(seen.w).shape[2] <= LARGEST else None
        layer = layers[seen.name]
        if layer is not None:
            layer.add(seen.f, seen.x)

    for batch in loader:
        args, kwargs = inputs_in(on_device(batch, device), model)
        with evaluating(model), Observation(model, (args, kwargs), report):
            model(*args, **kwargs)
    chosen = _by_name(patterns, layers)
    large = [name for name, layer in layers.items() if layer is None]
    if large:
        warnings.warn(f"no quality for {', '.join(large)}: more than {LARGEST} weights a neuron", stacklevel=2)
    return {name: layer.quality(chosen[name]) for name, layer in layers.items() if layer is not None}


def _by_name(
    patterns: Sequence[Tensor] | Mapping[str, Tensor], layers: Mapping[str, _Layer | None]
) -> Mapping[str, Tensor]:
    if any(layer is not None and layer.samples < 2 for layer in layers.values()) or not layers:
        raise ValueError("loader: quality needs two samples or more, and a model with a linear layer")
    if len(patterns) != len(layers):
        raise ValueError(f"patterns has {len(patterns)} for {len(layers)} layers: {list(layers)}")
    named = patterns if isinstance(patterns, Mapping) else dict(zip(layers, patterns, strict=True))
    for name, layer in layers.items():
        if name not in named or (layer is not None and named[name].shape != layer.w.shape):
            raise ValueError(f"patterns has none of the shape of the weight for layer {name!r}")
    return named


def _quality(fitted: Tensor, measured: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """rho of the neurons of a group, from two covariances of their inputs.

    ``v^T (x - a w^T x) = u^T x`` for any ``u`` with ``u^T a = 0``. Of these, ``u = w - C^-1 a / (a^T C^-1 a)`` tells
    most of ``w^T x``, where C is the covariance of x.
    """
    a = a / (w * a).sum(1, keepdim=True)
    values, vectors = torch.linalg.eigh(fitted)
    along, seen = a @ vectors, values > 1e-10 * values.max()
    told = (along * torch.where(seen, 1 / values, 0.0)) @ vectors.T
    unseen = (along * ~seen) @ vectors.T  # what never varied is the readout's to use
    free = unseen.norm(dim=1, keepdim=True) > 1e-6 * a.norm(dim=1, keepdim=True)
    change = torch.where(free, unseen, told)
    u = w - change / (change * a).sum(1, keepdim=True)
    variance, signal = ((t @ measured * t).sum(1) for t in (u, w))
    correlation = (u @ measured * w).sum(1) / (variance * signal).sqrt()
    correlation = torch.where(variance > 1e-20 * signal, correlation.clamp(min=0), 0.0)
    correlation = torch.where(a.isfinite().all(1), correlation, 1.0)  # a pattern of no signal leaves it all
    return torch.where(signal > 0, 1 - correlation, torch.nan)
