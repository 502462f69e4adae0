"""What an explained forward can be asked: inputs that can carry relevance, patterns that are patterns, and outputs.

Each error names the argument, what it was and what would be right.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from os import PathLike
from re import search
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..maps.arithmetic import is_vmapped
from .calls import parts_within, tensors_in


class GradientFormError(Exception):
    """Relevance over value cannot be carried here; relevance can."""


class RuleFormError(GradientFormError, ValueError):
    """A rule gives relevance without the input's value as a factor."""


class FunctionFormError(GradientFormError, NotImplementedError):
    """A function makes something of zero, or the value is not known."""


def check_inputs(
    inputs: Sequence[Tensor], forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise unless there are inputs that relevance can be carried to.

    Args:
        inputs: the explained inputs.
        forward: the model's forward, whose arguments have names.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        TypeError: for arguments that are no floating tensors, where no other can be explained; for complex inputs.
        ValueError: under ``torch.no_grad()``, where no input requires grad, for inputs with nans or infinities.
    """
    if not torch.is_grad_enabled():
        raise ValueError("explain=True under torch.no_grad(): relevance needs autograd; leave no_grad() to explain")
    if not inputs:
        raise _no_input(dict(_named(forward, args, kwargs)))
    for x in inputs:
        strange = _strange(x)
        if strange is not None:
            raise TypeError(f"{_name_of(x, forward, args, kwargs)} is {strange}")
        if not _is_finite(x):
            name = _name_of(x, forward, args, kwargs)
            raise ValueError(f"{name} is not finite: {_where(x)}; mask it, or explain torch.nan_to_num() of it")


def check_form(form: Any, differentiable: bool) -> None:
    """Raise unless ``form=`` is one that there is, and can do what is asked for.

    Raises:
        ValueError: for another form, and for a gradient form that shall be differentiated.
    """
    if form not in ("relevance", "gradient"):
        raise ValueError(f"form={form!r}: must be 'relevance' or 'gradient'")
    if differentiable and form == "gradient":
        raise ValueError("form='gradient' with differentiable=True: only form='relevance' can be differentiated")


def check_pattern(pattern: Any) -> None:
    """Raise unless ``pattern=`` is a list of tensors or a dict of them by layer name.

    Raises:
        TypeError: for anything else, such as the path of a file or an array.
    """
    if pattern is None:
        return
    if isinstance(pattern, (str, PathLike)):
        raise TypeError(f"pattern={pattern!r}: is a path; read the file with lrp.patterns.load(path, model)")
    is_list = hasattr(pattern, "__getitem__") and hasattr(pattern, "__len__")
    if not is_list or isinstance(pattern, Tensor) or hasattr(pattern, "__array__"):
        raise TypeError(
            f"pattern= is a {type(pattern).__name__}: must be a list with one tensor for each linear layer, or a dict "
            "by layer name, as lrp.patterns.fit_patternnet() gives it"
        )
    for key, one in pattern.items() if isinstance(pattern, Mapping) else enumerate(pattern):
        if not isinstance(one, Tensor):
            raise TypeError(f"pattern[{key!r}] is a {type(one).__name__}: must be a tensor; see torch.as_tensor()")


def check_output(output: Any, tensors: Sequence[Tensor]) -> None:
    """Raise unless tensors are found in the output of a forward.

    Args:
        output: what the forward returned.
        tensors: those found in it.

    Raises:
        ValueError: for what runs when the forward is over, where nothing is intercepted, and for what holds tensors
            where they cannot be found: its relevance would be the plain gradient.
    """
    later = _LATER if tensors else (*_LATER, Iterator, AsyncIterator, Awaitable)
    for part in parts_within(output):
        if isinstance(part, later):
            raise ValueError(
                f"the forward returns a {_kind(part)}, which runs when the forward is over and cannot be explained: "
                "return what it gives, such as list() of it"
            )
    if not tensors:
        raise ValueError(
            f"no tensors are found in the output, a {_kind(output)}: return tensors, or a tuple, list, dict, dataclass "
            "or object that has them"
        )


_LATER = (GeneratorType, CoroutineType, AsyncGeneratorType, map, filter, zip)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def run_as_python(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``forward(*args, **kwargs)``.

    Raises:
        NotImplementedError: if it calls an operator such as ``torch.cond``, which runs compiled alone.
    """
    try:
        return forward(*args, **kwargs)
    except RuntimeError as error:
        if type(error).__name__ != "UncapturedHigherOrderOpError":  # its module is imported only when it is needed
            raise
        found = search(r"Higher Order Operator: (?:torch\.ops\.higher_order\.)?(\S+)", str(error))
        name = "an operator such as torch.cond" if found is None else found[1]
        raise NotImplementedError(
            f"{name} runs compiled, where its functions cannot be seen: write the branch or the loop in Python to "
            "explain it"
        ) from error


def _no_input(arguments: Mapping[str, Any]) -> Exception:
    """Why no argument can be explained, and what to do about the first that could be meant."""
    start = "explain=True needs an input that requires grad"
    for name, value in arguments.items():
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return ValueError(f"{start}: call x.requires_grad_() before, on {name}")
        if isinstance(value, Tensor):
            return TypeError(
                f"{start}: {name} is of {value.dtype}, which carries no relevance; pass x.float().requires_grad_(), or "
                "for indices, such as tokens, explain the output of their embedding"
            )
        if hasattr(value, "__array__"):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            return TypeError(f"{start}: {name} is a {kind}; pass torch.from_numpy(x).float().requires_grad_()")
        if isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool):
            return TypeError(f"{start}: {name} is a {type(value).__name__}; pass torch.tensor(x, requires_grad=True)")
    return ValueError(f"{start}: call x.requires_grad_() before; there is no tensor among the arguments")


def _name_of(x: Tensor, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    return next((name for name, value in _named(forward, args, kwargs) if value is x), "an input")


def _named(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments, and the tensors in them, each with the name that the forward gives it."""
    try:
        parameters = [*inspect.signature(forward).parameters.values()]
    except (TypeError, ValueError):  # torch's builtins have no signature
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for i, value in enumerate(args):
        yield from _parts(repr(names[i]) if i < len(names) else f"argument {i + 1}", value)
    for key, value in kwargs.items():
        yield from _parts(repr(key), value)


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors in nested tuples, lists and dicts; what has none is one argument."""
    if isinstance(value, Tensor) or next(tensors_in(value), None) is None:
        yield name, value
        return
    for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _parts(f"{name}[{key!r}]", part)


def _strange(x: Tensor) -> str | None:
    """What no rule is made for, and what to do about it; None for a tensor of the usual kind."""
    if x.is_complex():
        return "complex, and relevance is real: explain a real tensor that it is made of"
    if x.is_nested:
        return "nested: explain its parts one by one, or padded"
    if x.layout is not torch.strided:
        return "sparse: explain x.to_dense()"
    return f"of {x.dtype}, which torch does not compute in: cast it" if x.dtype.itemsize == 1 else None


def _is_finite(x: Tensor) -> bool:
    """Whether no element is a nan or an infinity, as far as can be read.

    A sum is not finite if one element is not: one fast pass, which only a sum that overflows has to repeat. On a GPU
    it waits once for the input, before the forward is under way; an assertion there would end the process instead.
    """
    return not _is_readable(x) or bool(x.detach().sum().isfinite()) or bool(x.detach().isfinite().all())


def _is_readable(x: Tensor) -> bool:
    """Whether the values are there: not while a graph is traced or captured, nor on the meta device."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or x.layout is not torch.strided:
        return False
    if x.is_meta or is_vmapped(x) or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _where(x: Tensor) -> str:
    """How many elements are not finite, and the first of them."""
    wrong = (~x.detach().isfinite()).nonzero()
    first = tuple(wrong[0].tolist())
    return f"{len(wrong)} of {x.numel()} elements are not, the first {x[first].item()} at {list(first)}"
