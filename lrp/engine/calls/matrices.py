"""Products of two tensors, one of which may be constant, as ``torch.einsum`` writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_letters, ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from ...maps import Contraction
from .linear import LinearCall
from .lookup import named


def swapped(call: LinearCall) -> LinearCall | None:
    """The same product, with the other tensor as its weight."""
    if not isinstance(call.f, Contraction) or call.b is not None:
        return None
    return _contraction(call.w, call.x, (call.f.w, call.f.x, call.f.z))


def _contraction(x: Tensor, w: Tensor, letters: Sequence[str]) -> LinearCall | None:
    """The product, unless it is one of diagonals, or broadcasts or sums over what only one of the tensors has."""
    of_x, of_w, of_z = letters
    if (len(of_x), len(of_w)) != (x.dim(), w.dim()):
        return None
    sizes = dict(zip(of_x + of_w, (*x.shape, *w.shape), strict=True))
    for t, own, others in ((x, of_x, of_w + of_z), (w, of_w, of_x + of_z)):
        if len(set(own)) < len(own) or tuple(sizes[letter] for letter in own) != tuple(t.shape):
            return None
        if any(sizes[letter] != 1 for letter in own if letter not in others):
            return None
    f = Contraction(input_shape=tuple(x.shape), weight_shape=tuple(w.shape), x=of_x, w=of_w, z=of_z)
    return LinearCall("linear", f, x, w)


def _matmul(input: Tensor, *others: Tensor, out: Tensor | None = None, **by_name: Tensor) -> LinearCall | None:
    """``torch.matmul``, and what is the same for tensors of some dimensions."""
    if out is not None:
        return None
    (other,) = (*others, *by_name.values())
    row, column = "i" * (input.dim() > 1), "j" * (other.dim() > 1)
    of_input, of_other, batch = _broadcast(input.shape[:-2], other.shape[:-2], ascii_uppercase)
    return _contraction(input, other, (f"{of_input}{row}k", f"{of_other}k{column}", f"{batch}{row}{column}"))


def _matmul_from_left(self: Tensor, other: Tensor) -> LinearCall | None:
    return _matmul(other, self)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> LinearCall | None:
    found = _matmul(mat1, mat2)
    is_bias = input.shape == mat2.shape[1:] and not options
    return found._replace(b=input) if found is not None and is_bias else None


def _inner(input: Tensor, other: Tensor, **options: Any) -> LinearCall | None:
    return _tensordot(input, other, ([-1], [-1]), **options) if input.dim() and other.dim() else None


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: Tensor | None = None) -> LinearCall | None:
    if out is not None:
        return None
    dims = dims.tolist() if isinstance(dims, Tensor) else dims
    summed = (range(-dims, 0), range(dims)) if isinstance(dims, int) else dims
    of_a, of_b = list(ascii_letters[: a.dim()]), list(ascii_letters[a.dim() :][: b.dim()])
    for i, j in zip(*summed, strict=True):
        of_b[j] = of_a[i]
    of_z = [letter for letter in (*of_a, *of_b) if not (letter in of_a and letter in of_b)]
    return _contraction(a, b, ("".join(of_a), "".join(of_b), "".join(of_z)))


def _outer(input: Tensor, vec2: Tensor, out: Tensor | None = None) -> LinearCall | None:
    return None if out is not None else _contraction(input, vec2, ("i", "j", "ij"))


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> LinearCall | None:
    if dim != -1:
        return None
    of_x, of_y, batch = _broadcast(x.shape[:-1], y.shape[:-1], ascii_uppercase)
    return _contraction(x, y, (f"{of_x}k", f"{of_y}k", batch))


def _einsum(*args: Any) -> LinearCall | None:
    equation, tensors = _equation(*args)
    if len(tensors) != 2:
        return None
    a, b = tensors
    terms, right = _sides(equation)
    free = "".join(letter for letter in ascii_letters if letter not in equation)
    dotted = [_dotted(term, t) for term, t in zip(terms, tensors, strict=True)]
    of_a, of_b, batch = _broadcast(dotted[0], dotted[1], free)
    letters = [term.replace("...", own) for term, own in zip((*terms, right), (of_a, of_b, batch), strict=True)]
    return _contraction(a, b, letters)


def einsum_of_several(x: Tensor, *args: Any) -> LinearCall | None:
    """``torch.einsum`` of ``x`` and two or more others, whose product is its weight."""
    equation, tensors = _equation(*args)
    terms, right = _sides(equation)
    if "." in equation:
        return None
    pairs = list(zip(terms, tensors, strict=True))
    (own,) = (term for term, t in pairs if t is x)
    others = [pair for pair in pairs if pair[1] is not x]
    found = dict.fromkeys(letter for term, _ in others for letter in term if letter in own + right)
    made = "".join(found)
    w = torch.einsum(f"{','.join(term for term, _ in others)}->{made}", *(t for _, t in others))
    return _contraction(x, w, (own, made, right))


def _equation(*args: Any) -> tuple[str, Sequence[Tensor]]:
    """The equation and the operands of ``torch.einsum``, which takes lists of numbers for letters as well."""
    if isinstance(args[0], str):
        return args[0].replace(" ", ""), args[1] if isinstance(args[1], (tuple, list)) else args[1:]
    *pairs, last = args if len(args) % 2 else (*args, None)
    terms = ["".join("..." if i is Ellipsis else ascii_letters[i] for i in letters) for letters in pairs[1::2]]
    ending = "" if last is None else "->" + "".join("..." if i is Ellipsis else ascii_letters[i] for i in last)
    return ",".join(terms) + ending, pairs[::2]


def _sides(equation: str) -> tuple[list[str], str]:
    """The terms of an equation, and its right side."""
    left, arrow, right = equation.partition("->")
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in left if letter.isalpha() and left.count(letter) == 1))
        right = right if "..." in left else right[3:]
    return left.split(","), right


def _dotted(term: str, t: Tensor) -> torch.Size:
    """The sizes of the dimensions that an ellipsis stands for."""
    start, dots, end = term.partition("...")
    return t.shape[len(start) : t.dim() - len(end)] if dots else t.shape[:0]


def _broadcast(a: torch.Size, b: torch.Size, letters: str) -> tuple[str, str, str]:
    """Letters for the dimensions of two shapes and of that which they broadcast to.

    A dimension of size 1 that is broadcast has a letter of its own, which it is summed over.
    """
    shape = torch.broadcast_shapes(a, b)  # type: ignore[no-untyped-call]
    n = len(shape)

    def of(own: torch.Size, alone: str) -> str:
        common = zip(own, shape[n - len(own) :], letters[n - len(own) : n], alone, strict=False)
        return "".join(one if size == 1 != whole else shared for size, whole, shared, one in common)

    return of(a, letters[n : 2 * n]), of(b, letters[2 * n : 3 * n]), letters[:n]


PARSERS: dict[Callable[..., Any], Callable[..., LinearCall | None]] = {
    **dict.fromkeys(named("matmul", "mm", "bmm", "mv", "dot", "vdot", "__matmul__"), _matmul),
    **dict.fromkeys(named("outer", "ger"), _outer),
    **dict.fromkeys(named("vecdot"), _vecdot),
    **dict.fromkeys(named("__rmatmul__"), _matmul_from_left),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys(named("inner"), _inner),
    **dict.fromkeys(named("tensordot"), _tensordot),
    **dict.fromkeys(named("einsum"), _einsum),
}
