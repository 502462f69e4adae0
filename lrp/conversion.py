"""Convert a model that exists to its explainable twin."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from .layers import Explainable
from .sequential import Sequential
from .twins import twin, twin_children

_OWN = {"explain", "rule", "pattern", "differentiable", "strict", "form"}


class Converted(Explainable):
    """What :func:`convert` adds to the class of a model: the mixin of its dynamic subclass, which can be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        make, args, *state = reduced
        args = tuple(type(self).__bases__[1] if arg is type(self) else arg for arg in args)
        return _revive, (make, args), *state


class ConvertedGraph(Converted):
    """What :func:`convert` adds to a ``torch.fx.GraphModule``, which compiles the forward of its own class anew."""

    def recompile(self) -> Any:
        with self._as_graph_module():
            return self.recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with self._as_graph_module():
            copied: Any = copy.deepcopy(self, memo)
        copied.__class__ = _explainable_graph(type(copied))
        return copied

    @contextmanager
    def _as_graph_module(self) -> Iterator[None]:
        """Of the class that has the graph's forward, for what looks at the class."""
        own: Any = type(self)
        self.__class__ = own.__bases__[1]
        try:
            yield
        finally:
            self.__class__ = own


class FunctionModel(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def convert(model: nn.Module | Callable[..., Any]) -> Any:
    """The explainable twin of a model.

    The twin is an instance of the model's class, with the same attributes, state_dict and repr; it shares parameters,
    buffers and hooks. Its forward is the model's own, and takes ``explain=False``, ``rule="epsilon"``,
    ``pattern=None``, ``differentiable=False`` and ``strict=False`` besides, as :class:`lrp.Sequential` does. The model
    stays as it was; a change of mode, and a module put in the place of another, does not reach it.

    Args:
        model: any ``torch.nn.Module``, or a function of tensors.

    Returns:
        The twin: of the model's class, or of :class:`FunctionModel` for a function.

    Raises:
        TypeError: for what cannot be run as Python: a module compiled by TorchScript or ``torch.compile``, exported
            by ``torch.export`` or quantized; for ``torch.nn.DataParallel``; for a model that is sharded already; for a
            forward that has one of the arguments above itself.
        ValueError: for a model with parameters that are not initialised.

    >>> import torch, lrp
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    >>> net = lrp.convert(model)
    >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
    >>> net(x, explain=True, rule="epsilon_plus").sum().backward()
    >>> x.grad.shape
    torch.Size([1, 1, 4, 4])
    """
    is_exported = type(model).__module__.startswith("torch.export")
    is_function = callable(model) and not (isinstance(model, (nn.Module, type)) or is_exported)
    module: Any = FunctionModel(model) if is_function else model
    _check(module)
    converted = twin(module, _class_of_twin(module))
    if isinstance(converted, GraphModule):
        converted._graph = copy.deepcopy(converted._graph)
        converted._graph.owning_module = converted
    twin_children(converted, {module: converted}, {})
    return converted


def convert_vgg(model: nn.Module) -> Sequential:
    """torchvision's VGG as a flat :class:`lrp.Sequential` of lrp layers.

    Args:
        model: a ``torchvision.models.VGG``, with or without batch norm. Parameters are shared; it stays as it was.

    Raises:
        TypeError: for any other object.

    >>> import lrp, torchvision
    >>> lrp.convert_vgg(torchvision.models.vgg11())[0]
    Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    vgg = getattr(sys.modules.get("torchvision.models.vgg"), "VGG", None)
    if vgg is None or not isinstance(model, vgg) or type(model).forward not in (vgg.forward, Explainable.forward):
        raise TypeError(
            f"lrp.convert_vgg() takes a torchvision.models.VGG, not a {type(model).__name__}; "
            "lrp.convert() takes any model"
        )
    flatten = nn.Flatten().train(model.training)
    layers = nn.Sequential(*model.features, model.avgpool, flatten, *model.classifier)
    layers.training = model.training
    return Sequential.from_torch(layers)


def _class_of_twin(module: nn.Module) -> type[nn.Module]:
    if isinstance(module, GraphModule):
        cls = type(module).__bases__[1] if isinstance(module, ConvertedGraph) else type(module)
        return _explainable_graph(_graph_class(cls))
    if isinstance(module, Explainable):
        return type(module)
    return _explainable(type(module))  # type: ignore[arg-type]


def _graph_class(cls: Any) -> Any:
    """A class like that of a graph module, which holds its forward: one for each instance."""
    own: Any = type(cls.__name__, (cls.__mro__[1],), {"__qualname__": cls.__qualname__, "__module__": cls.__module__})
    own.forward, own.__call__ = cls.forward, cls.__call__
    own._wrapped_call = type(cls._wrapped_call)(own, None)
    return own


def _explainable_graph(cls: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (ConvertedGraph, cls), names)


@cache
def _explainable(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a model's class whose forward can be explained, of the same name."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Converted, cls), names)


def _revive(make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    """What unpickling makes of an explainable model, before it sets its state."""
    module = make(*args)
    is_graph = isinstance(module, GraphModule)
    module.__class__ = _explainable_graph(type(module)) if is_graph else _explainable(type(module))  # type: ignore[arg-type]
    return module


def _check(model: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        shown = f"a {name}" if type(model).__module__.startswith("torch.") else repr(model)
        raise TypeError(f"lrp.convert() takes a torch.nn.Module or a function of tensors, not {shown}")
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    for part in model.modules():
        reason = _why_unseen(part)
        if reason is not None:
            raise TypeError(f"lrp.convert(): {type(part).__name__} {reason}")
        if sharded is not None and isinstance(part, sharded):
            raise TypeError(f"lrp.convert(): {type(part).__name__} is sharded; write fully_shard(convert(model))")
    taken = _OWN & inspect.signature(type(model).forward).parameters.keys()
    if taken and not isinstance(model, Explainable):
        raise TypeError(f"lrp.convert(): the forward of {name} has arguments of lrp's names itself: {sorted(taken)}")
    if "forward" in vars(model):
        raise TypeError(f"lrp.convert(): forward was replaced on this {name} itself; convert the model before that")
    lazy = [key for key, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"lrp.convert(): {lazy[0]!r} is not initialised; call the model once before")


def _why_unseen(part: nn.Module) -> str | None:
    """Why the functions that a module calls cannot be explained, and what to do; None if they can."""
    if isinstance(part, torch.jit.ScriptModule) or hasattr(part, "_orig_mod"):
        return "is compiled, and its functions cannot be seen; convert the model before it is compiled"
    if isinstance(part, nn.DataParallel):
        return "runs in threads; write DataParallel(convert(model))"
    places = [cls.__module__ for cls in type(part).__mro__ if cls.__module__.startswith("torch.")]
    if any(place.startswith("torch.export") for place in places):
        return "was exported, and takes what it was exported for alone; convert the model before it is exported"
    if any("quantized" in place.split(".") for place in places):
        return "is quantized, and its functions have no gradient; convert the model before it is quantized"
    return None
