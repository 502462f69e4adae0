"""Functions that move values about, in all the ways in which a program can: their gradient is their relevance."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .program import READ_ONLY, Builder, Value

Shape = tuple[int, ...]
Move = tuple[str, Callable[[Shape], Shape], str]

ANY: dict[
    str, Move
] = {  # expression, shape after it, and whether that is a view, a copy, or a view that nobody may write into
    "flip": ("{x}.flip(-1)", lambda s: s, "copy"),
    "roll": ("{x}.roll(1, -1)", lambda s: s, "copy"),
    "flatten": ("{x}.flatten(1)", lambda s: (prod(s),), "view"),
    "reshape": ("{x}.reshape(n, -1)", lambda s: (prod(s),), "view"),
    "[..., 1:]": ("{x}[..., 1:]", lambda s: (*s[:-1], s[-1] - 1), "view"),
    "narrow": ("{x}.narrow(1, 0, 1)", lambda s: (1, *s[1:]), "view"),
    "[:, [0, 0]]": ("{x}[:, [0, 0]]", lambda s: (2, *s[1:]), "copy"),
    "index_select": ("{x}.index_select(1, torch.tensor([1, 0]))", lambda s: (2, *s[1:]), "copy"),
    "gather": ("{x}.gather(1, torch.ones_like({x}, dtype=torch.int64))", lambda s: s, "copy"),
    "repeat_interleave": ("{x}.repeat_interleave(2, 1)", lambda s: (2 * s[0], *s[1:]), "copy"),
    "chunk": ("torch.cat({x}.chunk(2, 1)[::-1], 1)", lambda s: s, "copy"),
    "split": ("{x}.split([1, {rest}], 1)[1]", lambda s: (s[0] - 1, *s[1:]), "frozen"),
    "unbind": ("torch.stack({x}.unbind(1)[::-1], 1)", lambda s: s, "copy"),
    "tile": ("torch.tile({x}, (1, 2) + (1,) * {rank})", lambda s: (2 * s[0], *s[1:]), "copy"),
    "pad": ("F.pad({x}, (1, 0))", lambda s: (*s[:-1], s[-1] + 1), "copy"),
    "pad with number": ("F.pad({x}, (0, 1), value=-1.0)", lambda s: (*s[:-1], s[-1] + 1), "copy"),
}
PLACED: dict[str, Move] = {
    "transpose": ("{x}.transpose(1, 2)", lambda s: (s[1], s[0], *s[2:]), "view"),
    "movedim": ("{x}.movedim(1, -1)", lambda s: (*s[1:], s[0]), "view"),
    "expand": ("{x}[:, :1].expand(-1, 3, {ones})", lambda s: (3, *s[1:]), "frozen"),
    "flatten 2": ("{x}.flatten(2)", lambda s: (s[0], prod(s[1:])), "view"),
}
SEQUENCE: dict[str, Move] = {
    "reflect": ("F.pad({x}, (1, 1), mode='reflect')", lambda s: (*s[:-1], s[-1] + 2), "copy"),
}
IMAGE: dict[str, Move] = {
    "pixel_shuffle": ("F.pixel_shuffle({x}.repeat_interleave(4, 1), 2)", lambda s: (s[0], 2 * s[1], 2 * s[2]), "copy"),
    "nearest": ("F.interpolate({x}, scale_factor=2)", lambda s: (s[0], 2 * s[1], 2 * s[2]), "copy"),
    "permute": ("{x}.permute(0, 2, 1, 3)", lambda s: (s[1], s[0], s[2]), "view"),
}
PADS = ("pad", "pad with number")
WHOLE_ON_DATA = ("flip", "roll", "[..., 1:]", "pad", "[:, [0, 0]]", "narrow")
LARGEST = 80


def move(b: Builder) -> None:
    """A move of one tensor."""
    x = b.pick(lambda value: min(value.shape) > 1)
    moves = {1: ANY, 2: ANY | PLACED | SEQUENCE, 3: ANY | PLACED | IMAGE}[len(x.shape)]
    if x.is_data:
        moves = {name: moves[name] for name in WHOLE_ON_DATA}
    if x.is_data or not b.has_factor:  # the zeros of a pad are no inputs for some rules
        moves = {name: move for name, move in moves.items() if name != "pad"}
    fitting = {name: m for name, m in moves.items() if prod(m[1](x.shape)) <= LARGEST}
    if fitting:
        line, shape, view = b.spell("move", fitting, x.kind if x.kind == "gate" else "")
        ones = ", ".join("-1" for _ in x.shape[1:])
        line = line.format(x=x.name, rest=x.shape[0] - 1, rank=len(x.shape) - 1, ones=ones)
        memory = {"view": x.memory, "copy": None, "frozen": READ_ONLY}[view]
        _moved(b, [x], shape(x.shape), ["{out} = " + line], line, memory)


def padded(b: Builder) -> None:
    """A pad, by zeros or by a number."""
    x = b.pick(lambda value: value.kind in ("layer", "signal") and prod(value.shape) < LARGEST / 2)
    line, shape, _ = b.spell("move", {name: ANY[name] for name in PADS if b.has_factor or name != "pad"})
    line = line.format(x=x.name)
    _moved(b, [x], shape(x.shape), ["{out} = " + line], line, None)


def joined(b: Builder) -> None:
    """Two tensors side by side: concatenated, or written into a buffer."""
    x = b.pick(lambda value: value.kind != "gate")
    y = b.pick(lambda value: value.shape[1:] == x.shape[1:] and value.kind != "gate")
    if prod(x.shape) + prod(y.shape) > LARGEST:
        return
    k, shape = x.shape[0], (x.shape[0] + y.shape[0], *x.shape[1:])
    full = f"n, {', '.join(map(str, shape))}"
    meaning = f"torch.cat([{x.name}, {y.name}], 1)"
    zeros = f"{{out}} = torch.zeros({full}, dtype=torch.float64)"
    left, right, h, more = f"{{out}}[:, :{k}]", f"{{out}}[:, {k}:]", x.name, y.name
    into = [f"{left} = {h}", f"{right} = {more}"]
    at = f"torch.arange({k}), {h}", f"torch.arange({k}, {shape[0]}), {more}"
    spellings = {
        "cat": [f"{{out}} = {meaning}"],
        "hstack": [f"{{out}} = torch.hstack([{h}, {more}])"],
        "into zeros": [zeros, *into],
        "into empty": [zeros.replace("zeros", "empty"), *into],
        "into new_zeros": [f"{{out}} = {h}.new_zeros({full})", *into],
        "narrow.copy_": [zeros, f"{{out}}.narrow(1, 0, {k}).copy_({h})", f"{right}.copy_({more})"],
        "+= into zeros": [zeros, f"{left} += {h}", f"{right} += {more}"],
        "index_copy": [f"{zeros}.index_copy(1, {at[0]})", f"{{out}}.index_copy_(1, {at[1]})"],
    }
    if not b.has_factor:  # of a sum, a zero has no share
        del spellings["+= into zeros"]
    lines = b.spell("join", spellings, "data" if x.is_data or y.is_data else "")
    _moved(b, [x, y], shape, lines, meaning, None)


def padded_batch(b: Builder) -> None:
    """Images that are copied into a larger batch of zeros, as detectors do."""
    x = b.pick(lambda value: value.kind != "gate" and len(value.shape) > 1)
    if prod(x.shape) * 2 > LARGEST:
        return
    shape = (*x.shape[:-1], x.shape[-1] + 1)
    zeros = f"{{out}} = torch.zeros((n, {', '.join(map(str, shape))}), dtype=torch.float64)"
    name, w = x.name, x.shape[-1]
    spellings = {
        "F.pad": [f"{{out}} = F.pad({name}, (0, 1))"],
        "[...] =": [zeros, f"{{out}}[..., :{w}] = {name}"],
        "copy_": [zeros, f"{{out}}[..., :{w}].copy_({name})"],
        "copy_ one by one": [zeros, "for i in range(n):", f"    {{out}}[i, ..., :{w}].copy_({name}[i])"],
    }  # fmt: skip
    if x.is_data or not b.has_factor:  # whose zeros are no inputs, and those of a buffer are
        del spellings["F.pad"]
    lines = b.spell("padded batch", spellings, "data" if x.is_data else "")
    _moved(b, [x], shape, lines, f"F.pad({name}, (0, 1))", None)


def token(b: Builder) -> None:
    """A parameter that takes a place beside the values: a class token."""
    x = b.pick(lambda value: value.kind != "gate" and len(value.shape) > 1)
    if prod(x.shape) * 2 > LARGEST:
        return
    shape = (x.shape[0] + 1, *x.shape[1:])
    sizes = ", ".join(map(str, shape[1:]))
    tok = "self." + b.module("tok", f"nn.Parameter(torch.randn(1, 1, {sizes}))")
    name, ones = x.name, ", ".join("-1" for _ in shape)
    repeats = f"n, {shape[0]}, {', '.join('1' for _ in shape[1:])}"
    meaning = f"torch.cat([{tok}.expand(n, {ones}), {name}], 1)"
    spellings = {
        "cat": [f"{{out}} = {meaning}"],
        "repeat": [f"{{out}} = {tok}.repeat({repeats})", f"{{out}}[:, 1:] = {name}"],
        "expand.clone": [f"{{out}} = {tok}.expand({repeats.replace(' 1', ' -1')}).clone()", f"{{out}}[:, 1:] = {name}"],
        "repeat.copy_": [f"{{out}} = {tok}.repeat({repeats})", f"{{out}}[:, 1:].copy_({name})"],
        "slice_scatter": [f"{{out}} = {tok}.repeat({repeats}).slice_scatter({name}, 1, 1)"],
        "[:, :1] = tok": [f"{{out}} = F.pad({name}, {(0, 0) * (len(shape) - 1) + (1, 0)})", f"{{out}}[:, :1] = {tok}"],
    }
    lines = b.spell("token", spellings, "data" if x.is_data else "")
    _moved(b, [x], shape, lines, meaning, None)


def slice_written(b: Builder) -> None:
    """A part of a tensor is overwritten by what is made of another part, or of another tensor."""
    x = b.pick(lambda value: value.kind in ("layer", "signal") and value.writable and value.shape[0] > 1)
    y = b.pick(lambda v: v.shape[1:] == x.shape[1:] and v.kind != "gate" and v.memory != x.memory)
    meaning = f"torch.cat([{y.name}[:, :1], {x.name}[:, 1:]], 1)"
    spellings = {
        "[:, :1] =": [f"{{out}} = {x.name}", f"{{out}}[:, :1] = {y.name}[:, :1]"],
        "copy_": [f"{x.name}[:, :1].copy_({y.name}[:, :1])", f"{{out}} = {x.name}"],
        "view": [f"{x.name}.select(1, 0).copy_({y.name}.select(1, 0))", f"{{out}} = {x.name}"],
    }
    lines = b.spell("write into slice", spellings)
    b.overwrite(x)
    _moved(b, [x, y], x.shape, lines, meaning, x.memory)


def _moved(b: Builder, parts: list[Value], shape: Shape, lines: list[str], meaning: str, memory: int | None) -> None:
    kinds = {value.kind for value in parts}
    kind = kinds.pop() if kinds in ({"data"}, {"gate"}) else "signal"
    sure = all(value.kind != "layer" and value.sure for value in parts)
    b.note(shape, lines, ("moves", meaning, *(value.name for value in parts)), kind=kind, memory=memory, sure=sure)
