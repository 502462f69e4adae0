"""Copies of frozen dataclasses, of which an explanation makes several for each function."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def changed(record: T, **changes: Any) -> T:
    """``dataclasses.replace(record, **changes)`` in a tenth of its time, where nothing is checked."""
    copy = object.__new__(type(record))
    vars(copy).update(vars(record), **changes)
    return copy
