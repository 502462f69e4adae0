"""Files of patterns and of what they are fitted from: tensors by layer name, in the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary

from ..engine.calls import plain_name
from ..engine.calls.parsing import PARSERS
from ..maps import Contraction, Convolution, Linear, Sampled

Path = str | PathLike[str]
Shapes = Mapping[str, tuple[int, ...]]

_FUNCTIONS = {plain_name(function).strip("_") for function in PARSERS}

# The layer that a fitted pattern belongs to, as long as the pattern lives: a list of tensors has no room for names.
_layers = WeakTensorKeyDictionary()


def remember(pattern: Tensor, name: str) -> None:
    """Note the layer that a pattern belongs to."""
    _layers[pattern] = name


def save(path: Path, patterns: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
    """Write patterns to a safetensors file, with the names and shapes of their layers.

    Args:
        path: the file.
        patterns: what a fit has returned; or another list, whose layers are called "0", "1", ...; or a dict by name.
    """
    named: dict[str, Tensor]
    if isinstance(patterns, Mapping):
        named = dict(patterns)
    else:
        named = {_layers.get(t, str(i)): t for i, t in enumerate(patterns)}  # type: ignore[no-untyped-call]
    write(path, named, {"names": list(named), "list": not isinstance(patterns, Mapping)})


def load(path: Path, model: nn.Module | None = None) -> list[Tensor] | dict[str, Tensor]:
    """The patterns that :func:`save` has written, as a list or a dict as they were.

    Args:
        path: the file.
        model: the model that they shall be for; default None checks nothing.

    Raises:
        ValueError: if the file is damaged or holds no patterns, or those of another model; it names the first layer
            that differs.
        FileNotFoundError: if there is none.
    """
    with reading(path):
        tensors, about = read(path, "names")
        patterns = {name: tensors[name] for name in about["names"]}
        is_list = bool(about["list"])
    if model is not None:
        check_fits({name: tuple(pattern.shape) for name, pattern in patterns.items()}, model)
    for name, pattern in patterns.items():
        remember(pattern, name)
    return list(patterns.values()) if is_list else patterns


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors by name, and what JSON can say about them."""
    from safetensors.torch import save_file

    save_file(dict(_unshared(tensors)), path, {"lrp": json.dumps(about)})


def _unshared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU, each with memory of its own, which most have without a copy."""
    used = set()
    for key, t in tensors.items():
        t = t.detach().cpu().contiguous()
        memory = t.untyped_storage()
        is_own = memory.data_ptr() not in used and memory.nbytes() == t.nbytes
        used.add(memory.data_ptr())
        yield key, t if is_own else t.clone()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a file is a ValueError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is damaged, or no file of lrp.patterns: {error!r}") from error


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write` has written; ``key`` must be among what it says."""
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("lrp", "{}"))
        if key not in about:
            raise ValueError(f"{path}: was not written by the function of lrp.patterns that belongs to this one")
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def check_fits(shapes: Shapes, model: nn.Module) -> None:
    """Raise and name the first layer, if a model has no layers of these names with weights of these shapes.

    What cannot be told without data is let through: functions without parameters, and weights that are made of others.
    """
    layers = {name or type(layer).__name__: layer for name, layer in model.named_modules()}
    for name, shape in shapes.items():
        owner, _, used_again = name.partition("#")
        layer = layers.get(owner)
        if (layer is None and owner not in _FUNCTIONS) or (layer is not None and not layer.state_dict()):
            raise _misfit(name, shape, model, "not there")
        if isinstance(layer, (nn.Linear, _ConvNd)) and not used_again and layer.weight.shape != shape:
            raise _misfit(name, shape, model, f"of shape {tuple(layer.weight.shape)}")


def _misfit(name: str, shape: tuple[int, ...], model: nn.Module, found: str) -> ValueError:
    return ValueError(f"layer {name!r} has a pattern of shape {shape}; in {type(model).__name__} it is {found}")


def settings_of(f: Sampled) -> dict[str, Any]:
    """A linear map as JSON: its type and its fields, less what is known of one call alone."""
    return {"type": type(f).__name__, **{field.name: getattr(f, field.name) for field in fields(f) if field.compare}}


def linear_map(type: str, **settings: Any) -> Sampled:
    """The linear map with these fields, as JSON has them."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return _MAPS[type](**values)


_MAPS: dict[str, Callable[..., Sampled]] = {f.__name__: f for f in (Linear, Convolution, Contraction)}
