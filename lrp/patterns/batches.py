"""What a data loader gives, and what of it a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.calls import substitute, tensors_in
from ..layers import Explainable


def inputs_in(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for the model's forward in a batch of data.

    Args:
        batch: a tensor; a tuple or list, of which the model gets as many as its forward requires; or a dict, of which
            it gets what its forward names.
        model: the model.

    Raises:
        TypeError: for a batch of another type.
        ValueError: if the batch has nothing for the model, is not finite, or lies on another device.
    """
    args, kwargs = _arguments(batch, model)
    tensors = list(tensors_in((args, kwargs)))
    if not tensors:
        raise ValueError(f"batch={batch!r}: has no tensor that the forward of {type(model).__name__} takes")
    devices = {p.device for p in model.parameters()}
    for t in tensors:
        if devices and t.device not in devices:
            raise ValueError(
                f"the batch is on {t.device}, the model on {', '.join(map(str, devices))}: move one of them with .to()"
            )
        if t.is_floating_point() and not t.isfinite().all():
            raise ValueError(f"a batch of shape {tuple(t.shape)} is not finite: it has infinities or nans")
    return args, kwargs


def on_device(batch: Any, device: torch.device | str) -> Any:
    """The batch, with its tensors on the device."""
    return substitute(batch, lambda t: t.to(device))


def _arguments(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Tensor):
        return (batch,), {}
    parameters = inspect.signature(_forward(model)).parameters.values()
    if isinstance(batch, Mapping):
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters}
        return (), {key: value for key, value in batch.items() if takes_all or key in names}
    if isinstance(batch, (tuple, list)):
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = sum(p.default is p.empty for p in positional)
        return tuple(batch[: max(1, required)]), {}
    raise TypeError(
        f"a batch must be a tensor, a tuple or list such as (x, y), or a dict; the loader gave a {type(batch).__name__}"
    )


def _forward(model: nn.Module) -> Any:
    """The model's own forward, bound to it."""
    own: Any = next(cls for cls in type(model).__mro__ if "forward" in vars(cls) and cls is not Explainable)
    return own.forward.__get__(model)
