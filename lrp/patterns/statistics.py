"""What patterns are made of: sums over the samples of each linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..engine.backward.propagation import without_autocast
from .batches import inputs_in
from .collectives import merge_over_processes
from .files import Path, Shapes, check_fits, linear_map, read, reading, remember, settings_of, write
from .moments import Kind, Moments
from .observation import Observation, Observed, evaluating


class PatternStatistics:
    """What patterns are made of: sums over the samples of each linear layer, in one pass over the data.

    A sample of a neuron is one position of its output: the inputs x that it meets there (padding included), and
    ``y = w^T x``, without the bias. It is positive where the activation with its bias is: what the activation
    function sees, after a constant that is added or the batch norm if one follows in eval mode.

    In memory, the sums take 8 bytes a weight for linear patterns, 16 for positive ones, 24 for all kinds. The samples
    of linear layers are kept instead, as long as they take less than 6.

    Args:
        model: any model; its linear layers, convolutions of any geometry and products with constant tensors are seen,
            also those called as functions.
        kinds: what :meth:`patterns` shall give; fewer kinds take less time and memory.

    Raises:
        TypeError: if the model is no ``torch.nn.Module``.
        ValueError: for an unknown kind.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), section 4.

    >>> import torch
    >>> statistics = PatternStatistics(torch.nn.Linear(3, 2))
    >>> statistics.update(torch.randn(10, 3)).merge(statistics).patterns("linear")[0].shape
    torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, kinds: Iterable[Kind] = get_args(Kind)) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r}: must be a torch.nn.Module")
        self.model, self.kinds = model, frozenset(_kind(kind) for kind in kinds)
        self._layers: dict[str, Moments] = {}

    @property
    def names(self) -> list[str]:
        """The names of the layers that were seen, in the order of the forward."""
        return list(self._layers)

    def update(self, batch: Any) -> PatternStatistics:
        """Take in a batch of data. If it raises, the statistics are what they were.

        Args:
            batch: a tensor; a tuple or list such as ``(x, y)``, of which the model gets as many as its forward
                requires; or a dict, of which it gets what its forward names.

        Raises:
            TypeError: for a batch of another type.
            ValueError: for a batch that is not finite, or on another device than the model, or that makes a layer's
                output infinite; for a model that calls no linear layer.
        """
        args, kwargs = inputs_in(batch, self.model)
        layers: dict[str, Moments] = {}

        def report(seen: Observed) -> None:
            name, f, x, z = seen.name, seen.f, seen.x, seen.z
            known = layers.get(name) or self._layers.get(name)
            if known is None or known.is_empty():
                layers[name] = Moments.centred(f, seen.w, self.kinds, x, z)
            elif name not in layers:
                _check_shape(name, seen.w, known)
                layers[name] = known.like()
            with without_autocast(x.device.type):
                layers[name].add(f, x, z, seen.activation > 0)

        with evaluating(self.model), Observation(self.model, (args, kwargs), report):
            self.model(*args, **kwargs)
        _check_layers(layers)
        self._take(layers)
        return self

    def merge(self, other: PatternStatistics) -> PatternStatistics:
        """Take in all samples of other statistics of the same model, and return these.

        Raises:
            ValueError: if the layers or the kinds differ; it names the first layer that does.
        """
        if self.kinds != other.kinds:
            raise ValueError(f"kinds differ: {sorted(self.kinds)} here, {sorted(other.kinds)} there")
        if self._layers and other._layers:
            _check_same(_shapes(self._layers), _shapes(other._layers))
        self._take(other._layers)
        return self

    def all_reduce(self) -> PatternStatistics:
        """Merge the statistics of all processes of the default group of ``torch.distributed``, in each of them.

        To be called once, when all is updated: what it gives to each process counts as its own from then on.
        """
        self._layers = merge_over_processes(self._layers, _device(self.model))
        return self

    def patterns(self, kind: Kind = "linear") -> list[Tensor]:
        """The patterns, one for each layer in the order of the forward, of the shape of its weight.

        Where a pattern is 0/0, for a neuron that is constant, never positive or without a sample, it is 0.

        Args:
            kind: ``"linear"``: ``a = cov[x, y] / (w^T cov[x, y])``. ``"positive"``, the two-component estimator:
                ``a = (E+[x y] - E+[x] E[y]) / (w^T E+[x y] - w^T E+[x] E[y])``, where E+ is the mean over the
                positive samples and E that over all (as in iNNvestigate and TorchLRP); ``"negative"`` alike.

        Raises:
            ValueError: for an unknown kind, one that was not asked for, and where there were no data.
        """
        if _kind(kind) not in self.kinds:
            raise ValueError(f"kind={kind!r}: these statistics were made for {sorted(self.kinds)}")
        if all(moments.is_empty() for moments in self._layers.values()):
            raise ValueError("there are no statistics: call update() with a batch of data before")
        patterns = [moments.pattern(kind) for moments in self._layers.values()]
        for name, pattern in zip(self.names, patterns, strict=True):
            remember(pattern, name)
        return patterns

    def save(self, path: Path) -> None:
        """Write the statistics to a safetensors file, from which :meth:`load` goes on."""
        tensors: dict[str, Tensor] = {}
        maps = {}
        for name, moments in self._layers.items():
            moments.settle()
            own = {"w": moments.w, "x_centre": moments.x_centre, "y_centre": moments.y_centre, **moments.sums}
            tensors |= {f"{name}:{key}": t for key, t in own.items()}
            maps[name] = settings_of(moments.f)
        write(path, tensors, {"kinds": sorted(self.kinds), "maps": maps})

    @classmethod
    def load(cls, path: Path, model: nn.Module) -> PatternStatistics:
        """The statistics that :meth:`save` has written, to be updated further.

        Raises:
            ValueError: if the file is damaged, or of another model; it names the first layer that differs.
        FileNotFoundError: if there is none.
        """
        with reading(path):
            tensors, about = read(path, "maps")
            statistics, device = cls(model, about["kinds"]), _device(model)
            for name, settings in about["maps"].items():
                own = {
                    key.rpartition(":")[2]: t.to(device) for key, t in tensors.items() if key.rpartition(":")[0] == name
                }
                w, centres = own.pop("w"), (own.pop("x_centre"), own.pop("y_centre"))
                moments = Moments(linear_map(**settings), w, statistics.kinds, *centres)
                moments.sums = own
                statistics._layers[name] = moments
        check_fits(_shapes(statistics._layers), model)
        return statistics

    def _take(self, layers: Mapping[str, Moments]) -> None:
        for name, moments in layers.items():
            known = self._layers.get(name)
            if known is None or known.is_empty():  # the first samples bring the centre
                self._layers[name] = known = moments.like()
            known.merge(moments)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _kind(kind: Kind) -> Kind:
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(map(repr, get_args(Kind)))}")
    return kind


def _shapes(layers: Mapping[str, Moments]) -> Shapes:
    return {name: tuple(moments.w.shape) for name, moments in layers.items()}


def _check_layers(layers: Mapping[str, Moments]) -> None:
    if not layers:
        raise ValueError("the model calls no linear layer and no convolution with the data: it has no patterns")
    for name, moments in layers.items():
        if not moments.is_finite():
            raise ValueError(f"layer {name!r}: its output for this batch is not finite: it has infinities or nans")


def _check_shape(name: str, w: Tensor, known: Moments | None) -> None:
    if known is not None and w.shape != known.w.shape:
        shapes = tuple(w.shape), tuple(known.w.shape)
        raise ValueError(f"layer {name!r}: has a weight of shape {shapes[0]} now; the statistics are of {shapes[1]}")


def _check_same(shapes: Shapes, others: Shapes) -> None:
    for (name, shape), (other, there) in zip_longest(shapes.items(), others.items(), fillvalue=("none", ())):
        if (name, shape) != (other, there):
            raise ValueError(f"the layers differ: {name!r} of shape {shape} here, {other!r} of {there} there")
