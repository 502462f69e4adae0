"""Sums over the processes of ``torch.distributed``."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from .moments import Moments

Layers = dict[str, Moments]


def merge_over_processes(layers: Layers, device: torch.device) -> Layers:
    """The moments of all processes together, in each of them; without a process group, those that are given.

    Args:
        layers: this process' moments by layer name; none, if it had no data.
        device: where the process group can sum.

    Raises:
        ValueError: in all processes, if some have other layers than others.
        RuntimeError: if a process has called :func:`report_failure` instead.
    """
    if not _in_group():
        return layers
    for moments in layers.values():
        moments.settle()
    described = _gather({name: _describe(moments) for name, moments in layers.items()})
    for rank, description in enumerate(described):
        if isinstance(description, str):
            raise RuntimeError(f"process {rank} has no statistics: {description}")
    source = next((rank for rank, description in enumerate(described) if description), 0)
    for rank, description in enumerate(described):
        if description and description.keys() != described[source].keys():
            raise ValueError(f"process {rank} has the layers {[*description]}, process {source} {[*described[source]]}")
    sources = {name: _with_samples(name, described, source) for name in described[source]}
    return {name: _merged(layers.get(name), described[rank][name], rank, device) for name, rank in sources.items()}


def _with_samples(name: str, described: list[Any], otherwise: int) -> int:
    """The first process that has samples of the layer."""
    ranks = (rank for rank, description in enumerate(described) if description and description[name]["sums"])
    return next(ranks, otherwise)


def report_failure(error: Exception) -> None:
    """Tell the processes that wait for this one to merge that it will not; without a process group, nothing."""
    if _in_group():
        _gather(repr(error))


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _gather(own: Any) -> list[Any]:
    """What each process gives."""
    all_of_them: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(all_of_them, own)
    return all_of_them


def _describe(moments: Moments) -> dict[str, Any]:
    """What a process without data needs to take part."""
    shapes = {key: t.shape for key, t in moments.sums.items()}
    centres = moments.x_centre.cpu(), moments.y_centre.cpu()
    return {
        "f": moments.f, "kinds": moments.kinds, "centres": centres, "sums": shapes,
        "shape": moments.w.shape, "dtype": moments.w.dtype,
    }  # fmt: skip


def _merged(own: Moments | None, source: dict[str, Any], rank: int, device: torch.device) -> Moments:
    """One layer's moments, around the centre of the process of this rank."""
    w = torch.empty(source["shape"], dtype=source["dtype"], device=device) if own is None else own.w.contiguous()
    distributed.broadcast(w, rank)
    total = Moments(source["f"], w, source["kinds"], *(centre.to(device) for centre in source["centres"]))
    sums = {} if own is None else own.moved(total.x_centre, total.y_centre)
    for key, shape in source["sums"].items():
        total.sums[key] = sums[key].clone() if key in sums else torch.zeros(shape, dtype=torch.float64, device=device)
        distributed.all_reduce(total.sums[key])
    return total
