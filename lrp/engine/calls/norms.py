"""The arguments of torch's norms in torch's order, to be bound by Python itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def batch_norm_arguments(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> tuple[Any, ...]:  # fmt: skip
    """Input, statistics, weight, bias, whether it is training, and eps."""
    return input, running_mean, running_var, weight, bias, training, eps


def instance_norm_arguments(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:  # fmt: skip
    """Input, statistics, weight, bias, whether the statistics are the input's, and eps."""
    return input, running_mean, running_var, weight, bias, use_input_stats, eps


def layer_norm_arguments(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any, **__: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Input, shape of what is normalised, weight, bias, eps."""
    return input, normalized_shape, weight, bias, eps


def group_norm_arguments(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *_: Any, **__: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Input, number of groups, weight, bias, eps."""
    return input, num_groups, weight, bias, eps


def rms_norm_arguments(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> tuple[Any, ...]:
    """Input, shape of what is normalised, weight, eps."""
    return input, normalized_shape, weight, eps
