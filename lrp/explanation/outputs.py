"""Find the tensor that targets are in, in whatever a model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_NAMES = ("logits", "out")


def find(output: Any) -> Tensor:
    """The tensor that targets are in: the output itself, its logits, or the only one that there is.

    Raises:
        TypeError: it lists what the model gives.
    """
    if isinstance(output, Tensor):
        return _checked(output)
    named = dict(_parts(output))
    for name in _NAMES:
        if isinstance(named.get(name), Tensor):
            return _checked(named[name])
    tensors = [part for part in named.values() if isinstance(part, Tensor)]
    if len(tensors) == 1:
        return _checked(tensors[0])
    raise TypeError(
        f"target=: the model gives a {type(output).__name__} of {_listed(named) or 'no tensors'}; choose with a "
        "function of it that gives one number for each sample, such as target=lambda output: output[...][:, 0]"
    )


def _checked(y: Tensor) -> Tensor:
    if not y.is_floating_point():
        raise TypeError(
            f"the model gives a tensor of {y.dtype}, which nothing is relevant to: explain what it is made of"
        )
    return y


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    """What a model gives, by name or number."""
    if isinstance(output, Mapping):
        yield from ((str(key), part) for key, part in output.items())
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        yield from ((str(name), part) for name, part in zip(names, output, strict=True))
    else:
        yield from vars(output).items() if hasattr(output, "__dict__") else ()


def _listed(named: Mapping[str, Any]) -> str:
    return ", ".join(f"{name!r} {_shown(part)}" for name, part in named.items())


def _shown(part: Any) -> str:
    return f"of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"({type(part).__name__})"
