"""Sums of several tensors, and linear functions with weights of their own."""

from __future__ import annotations

from .program import Builder, Skip, Value

Spellings = dict[str, list[str]]


INDEXED = ("index_put_", "index_put repeated", "index_add", "index_add_", "scatter_add")


def indexed(b: Builder) -> None:
    """A sum by a function that puts its terms where an index says."""
    terms = _terms(b)
    if not b.has_factor:
        raise Skip
    spellings = _plain([t.name for t in terms], terms[0])
    lines = b.spell("sum", {name: spellings[name] for name in INDEXED}, "data" if terms[0].is_data else "")
    kind = "data" if all(t.is_data for t in terms) else "signal"
    b.note(terms[0].shape, lines, ("total", tuple((t.name, 1.0) for t in terms)), kind=kind)


def total(b: Builder) -> None:
    """A sum of two or three tensors: a residual."""
    terms = _terms(b)
    first, names = terms[0], [t.name for t in terms]
    signs = [1.0, *(b.choose([1.0, -1.0, 2.0, 0.5]) if b.flag() else 1.0 for _ in terms[1:])]
    is_plain = set(signs) == {1.0}
    fresh = _plain(names, first) if is_plain else _weighted(names, signs)
    if not b.has_factor:  # one function of all the terms is a pool there, which has a rule of its own
        fresh = {name: line for name, line in fresh.items() if name in ("+", "torch.add", "* +", "alpha", "sub", "-")}
    writable = first.writable and all(t.memory != first.memory for t in terms[1:])
    in_place = _in_place(names, signs) if writable else {}
    lines = b.spell("sum" if is_plain else "weighted sum", fresh | in_place, "data" if first.is_data else "")
    overwrites = lines in in_place.values()
    if overwrites:
        b.overwrite(first)
    kind = "data" if all(t.is_data for t in terms) else "signal"
    meaning = ("total", tuple(zip(names, signs, strict=True)))
    b.note(first.shape, lines, meaning, kind=kind, memory=first.memory if overwrites else None)


def _terms(b: Builder) -> list[Value]:
    first = b.pick(lambda value: value.kind != "gate")
    others = b.integer(1, 2)
    return [first, *(b.pick(lambda value: value.shape == first.shape and value.kind != "gate") for _ in range(others))]


def _plain(names: list[str], first: Value) -> Spellings:
    a, listed, k = names[0], ", ".join(names), len(names)
    shape = ", ".join(map(str, first.shape))
    buffer = f"{{out}} = torch.zeros(n, {shape}, dtype=torch.float64)"
    # each term is a row, and all rows meet in one
    row, rows = f"torch.zeros(1, {a}.numel(), dtype=torch.float64)", f"torch.cat([{listed}]).reshape({k}, -1)"
    zeros, back = f"torch.zeros({k}, dtype=torch.int64)", f"{{out}} = {{out}}.reshape(n, {shape})"
    halves = [f"{{out}}[:, {part}] += {name}[:, {part}]" for name in names for part in (":1", "1:")]
    return {
        "+": [f"{{out}} = {' + '.join(names)}"],
        "torch.add": [f"{{out}} = {a}", *(f"{{out}} = torch.add({{out}}, {name})" for name in names[1:])],
        "stack.sum": [f"{{out}} = torch.stack([{listed}]).sum(0)"],
        "stack(1).sum": [f"{{out}} = torch.stack([{listed}], dim=1).sum(dim=1)"],
        "stack.mean": [f"{{out}} = torch.stack([{listed}]).mean(0) * {k}"],
        "sum([])": [f"{{out}} = sum([{listed}])"],
        "zeros +=": [buffer, *(f"{{out}} += {name}" for name in names)],
        "zeros_like.add_": [f"{{out}} = torch.zeros_like({a})", *(f"{{out}}.add_({name})" for name in names)],
        "zeros[:] +=": [buffer, *(f"{{out}}[:] += {name}" for name in names)],
        "zeros[:, :1] +=": [buffer, *halves],
        "cumsum": [f"{{out}} = torch.stack([{listed}]).cumsum(0)[-1]"],
        "index_put_": [
            buffer,
            *(f"{{out}}.index_put_((torch.arange(n),), {name}, accumulate=True)" for name in names),
        ],
        "index_put repeated": [f"{{out}} = {row}.index_put(({zeros},), {rows}, accumulate=True)", back],
        "index_add": [f"{{out}} = {row}.index_add(0, {zeros}, {rows})", back],
        "index_add_": [f"{{out}} = {row}", f"{{out}}.index_add_(0, {zeros}, {rows})", back],
        "scatter_add": [
            f"index = torch.zeros({k}, {a}.numel(), dtype=torch.int64)",
            f"{{out}} = {row}.scatter_add(0, index, {rows})",
            back,
        ],
    }


def _weighted(names: list[str], signs: list[float]) -> Spellings:
    a, rest = names[0], list(zip(names[1:], signs[1:], strict=True))
    start, listed = f"{{out}} = {a}", ", ".join(f"{sign} * {name}" for name, sign in zip(names, signs, strict=True))
    return {
        "* +": [f"{start} " + " ".join(f"+ {sign} * {name}" for name, sign in rest)],
        "alpha": [start, *(f"{{out}} = torch.add({{out}}, {name}, alpha={sign})" for name, sign in rest)],
        "sub": [start, *(f"{{out}} = torch.sub({{out}}, {name}, alpha={-sign})" for name, sign in rest)],
        "-": [start, *(f"{{out}} = {{out}} - {-sign} * {name}" for name, sign in rest)],
        "stack.sum": [f"{{out}} = torch.stack([{listed}]).sum(0)"],
    }


def _in_place(names: list[str], signs: list[float]) -> Spellings:
    start, rest = f"{{out}} = {names[0]}", list(zip(names[1:], signs[1:], strict=True))
    spellings = {
        "add_(alpha)": [start, *(f"{{out}}.add_({name}, alpha={sign})" for name, sign in rest)],
        "sub_(alpha)": [start, *(f"{{out}}.sub_({name}, alpha={-sign})" for name, sign in rest)],
    }
    if set(signs) == {1.0}:
        halves = [f"{{out}}[:, {part}] += {name}[:, {part}]" for name, _ in rest for part in (":1", "1:")]
        spellings |= {"+=": [start, *(f"{{out}} += {name}" for name, _ in rest)], "[:, :1] +=": [start, *halves]}
    return spellings


POOLS = {
    "avg_pool1d": (2, "F.avg_pool1d({x}, 2)", lambda s: (s[0], s[1] // 2)),
    "avg_pool2d": (3, "F.avg_pool2d({x}, 2, 1)", lambda s: (s[0], s[1] - 1, s[2] - 1)),
    "nn.AvgPool2d": (3, "nn.AvgPool2d(2)({x})", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "avg_pool2d divisor": (3, "F.avg_pool2d({x}, 2, divisor_override=3)", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "negative divisor": (3, "F.avg_pool2d({x}, 2, divisor_override=-3)", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "adaptive": (3, "F.adaptive_avg_pool2d({x}, 1)", lambda s: (s[0], 1, 1)),
    "mean": (2, "{x}.mean(-1)", lambda s: s[:-1]),
    "mean keepdim": (3, "torch.mean({x}, (2, 3), keepdim=True)", lambda s: (s[0], 1, 1)),
    "sum": (2, "{x}.sum(-1)", lambda s: s[:-1]),
    "mean channels": (2, "{x}.mean(1, keepdim=True)", lambda s: (1, *s[1:])),
    "interpolate": (3, "F.interpolate({x}, scale_factor=2, mode='bilinear')", lambda s: (s[0], 2 * s[1], 2 * s[2])),
}  # fmt: skip
SUMS = {"cumsum": (1, "{x}.cumsum(-1)", lambda s: s)}  # in proportion to the terms, whatever the rule
WINNERS = {
    "max_pool1d": (2, "F.max_pool1d({x}, 2)", lambda s: (s[0], s[1] // 2)),
    "max_pool2d": (3, "F.max_pool2d({x}, 2, 1)", lambda s: (s[0], s[1] - 1, s[2] - 1)),
    "nn.MaxPool2d": (3, "nn.MaxPool2d(2)({x})", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "max_pool2d padded": (3, "F.max_pool2d({x}, 2, 2, padding=1)", lambda s: (s[0], s[1] // 2 + 1, s[2] // 2 + 1)),
    "amax": (2, "{x}.amax(-1)", lambda s: s[:-1]),
    "max": (2, "{x}.max(-1).values", lambda s: s[:-1]),
}


def average(b: Builder) -> None:
    """A linear function whose weights are its own: in proportion to the values."""
    _pool(b, "pool", POOLS, "fixed")


def divided(b: Builder) -> None:
    """An average with a divisor of its own."""
    _pool(b, "pool", {name: pool for name, pool in POOLS.items() if "divisor" in name}, "fixed")


def running(b: Builder) -> None:
    """A running sum."""
    _pool(b, "sums", SUMS, "adds")


def winner(b: Builder) -> None:
    """A maximum: the winner takes all."""
    _pool(b, "max pool", WINNERS, "moves")


def _pool(b: Builder, kind: str, pools: dict, meaning: str) -> None:
    x = b.pick(lambda value: value.kind in ("layer", "signal") and min(value.shape) > 1)
    dims = len(x.shape)
    fitting = {name: pool for name, pool in pools.items() if pool[0] == dims or (pool[0] < dims and "1d" not in name)}
    if not b.has_factor:  # rules that ask for the signs of the weights refuse it by name
        fitting.pop("negative divisor", None)
    if not fitting:
        raise Skip
    _, line, shape = b.spell(kind, fitting)
    line = line.format(x=x.name)
    b.note(shape(x.shape), "{out} = " + line, (meaning, line, x.name), sure=x.kind != "layer")
