"""Fit patterns in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .batches import on_device
from .collectives import report_failure
from .moments import Kind
from .statistics import PatternStatistics


def fit_patternnet(
    model: nn.Module,
    loader: Iterable[Any],
    max_iter: int | None = None,
    device: torch.device | str = "cpu",
    *,
    statistics: PatternStatistics | None = None,
) -> list[Tensor]:
    """Linear patterns of a model, in one pass over the data.

    Args:
        model: any model, on ``device``. It is run in eval mode, and put back.
        loader: gives batches as :meth:`PatternStatistics.update` takes them. In a process group of
            ``torch.distributed`` each process has its own part of the data, and all get the patterns of all data.
        max_iter: how many batches to use, default all.
        device: where the batches are put, default ``"cpu"``.
        statistics: those that are updated; they go on from what they have, and keep what they get if a batch raises.

    Returns:
        A list of tensors of the shapes of the layers' weights, in the order of the forward: for ``pattern=``.

    Raises:
        ValueError: for an empty loader, and as :meth:`PatternStatistics.update` does.
        RuntimeError: if another process of the group has raised; it names the process and the error.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), equation 4.

    >>> import torch
    >>> [a.shape for a in fit_patternnet(torch.nn.Linear(3, 2), [torch.randn(9, 3)])]
    [torch.Size([2, 3])]
    """
    return _fit(model, loader, max_iter, device, "linear", statistics)


def fit_patternnet_positive(
    model: nn.Module,
    loader: Iterable[Any],
    max_iter: int | None = None,
    device: torch.device | str = "cpu",
    *,
    statistics: PatternStatistics | None = None,
) -> list[Tensor]:
    """Two-component patterns of the positive side of a model's neurons; all else is as in :func:`fit_patternnet`.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), equation 6.

    >>> import torch
    >>> [a.shape for a in fit_patternnet_positive(torch.nn.Linear(3, 2), [torch.randn(9, 3)])]
    [torch.Size([2, 3])]
    """
    return _fit(model, loader, max_iter, device, "positive", statistics)


def _fit(
    model: nn.Module, loader: Iterable[Any], max_iter: int | None, device: torch.device | str, kind: Kind,
    statistics: PatternStatistics | None,
) -> list[Tensor]:  # fmt: skip
    from tqdm import tqdm  # here, for `import lrp` needs torch alone

    statistics = PatternStatistics(model, [kind]) if statistics is None else statistics
    batches = tqdm(islice(loader, max_iter), total=max_iter or _length(loader), disable=None, desc="patterns")
    try:
        for batch in batches:
            statistics.update(on_device(batch, device))
    except Exception as error:
        report_failure(error)
        raise
    statistics.all_reduce()
    if not statistics.names:
        raise ValueError(f"loader={loader!r}: gave no batch")
    return statistics.patterns(kind)


def _length(loader: Any) -> int | None:
    return len(loader) if hasattr(loader, "__len__") else None
