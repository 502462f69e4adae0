"""Twins of modules: the same tensors, in modules of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Twin = TypeVar("Twin", bound=nn.Module)
Classes = Mapping[type[nn.Module], type[nn.Module]]


def twin(module: nn.Module, cls: type[Twin]) -> Twin:
    """An instance of ``cls`` with the state of ``module``: the same tensors and children, in dicts of its own.

    What ``module.compile()`` made of it stays with it, as in a copy or a pickle.
    """
    copy: Twin = object.__new__(cls)
    copy.__dict__ = {
        key: value.copy() if isinstance(value, dict) else value
        for key, value in vars(module).items()
        if key != "_compiled_call_impl"  # that of ``module``, which calls the forward of its class
    }
    return copy


def twin_children(parent: nn.Module, twins: dict[nn.Module, nn.Module], classes: Classes) -> None:
    """Put twins in the place of all descendants, so that a change of mode here does not reach the originals.

    Args:
        parent: a twin itself.
        twins: the twins that are there already, by their originals: a module that is used twice has one twin.
        classes: what the twins of a class are instances of, where not of that class.
    """
    for name, child in parent._modules.items():
        if child is None:
            continue
        if child not in twins:
            twins[child] = twin(child, classes.get(type(child), type(child)))
            twin_children(twins[child], twins, classes)
        parent._modules[name] = twins[child]
