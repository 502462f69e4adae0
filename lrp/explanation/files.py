"""Explanations in files of safetensors: tensors by number, and how they belong together as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FIELDS = (
    "relevance", "output", "target", "initial_relevance", "layers", "rules", "form", "inputs", "rule", "_n",
)  # fmt: skip
_FORMAT = "lrp explanation 1"


def save(path: str | Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of an explanation."""
    from safetensors.torch import save_file  # here, for `import lrp` needs torch alone

    tensors: dict[str, Tensor] = {}
    shown = {**fields, "rule": _shown(fields["rule"]), "rules": {n: _shown(r) for n, r in fields["rules"].items()}}
    header = {name: _packed(name, value, tensors) for name, value in shown.items()}
    save_file(tensors, path, {"format": _FORMAT, "fields": json.dumps(header)})


def load(path: str | Path) -> dict[str, Any]:
    """The fields of an explanation.

    Raises:
        ValueError: for another file.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: is no explanation that lrp has saved")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: _unpacked(value, tensors) for name, value in json.loads(metadata["fields"]).items()}


def _shown(rule: Any) -> str:
    return rule if isinstance(rule, str) else repr(rule)


def _packed(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value in what JSON has, its tensors put aside."""
    if isinstance(value, Tensor):
        key = f"{name}.{len(tensors)}"
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dict": [[str(key), _packed(name, part, tensors)] for key, part in value.items()]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__ if type(value) is list else "tuple": [_packed(name, v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(part, tensors) for key, part in content}
    return (list if kind == "list" else tuple)(_unpacked(part, tensors) for part in content)
