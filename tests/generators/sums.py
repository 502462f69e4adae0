"""Sums of several tensors, and linear functions with weights of their own."""

from __future__ import annotations

from .program import Builder, Value


def total(b: Builder) -> None:
    """A sum of two or three tensors: a residual."""
    terms = _terms(b)
    first = terms[0]
    writable = first.writable and all(t.memory != first.memory for t in terms[1:])
    signs = [1.0, *(b.choose([1.0, -1.0, 2.0, 0.5]) if b.flag() else 1.0 for _ in terms[1:])]
    names = [t.name for t in terms]
    spellings = _plain(names, first) if set(signs) == {1.0} else _weighted(names, signs)
    if not b.has_factor:  # one function of all the terms is a pool there, which has a rule of its own
        spellings = {name: spellings[name] for name in spellings.keys() & {"+", "torch.add", "* +", "alpha", "sub", "-"}}
    if writable:
        spellings |= _in_place(names, signs)
    lines, overwrites = b.spell("sum" if set(signs) == {1.0} else "weighted sum", spellings)
    if overwrites:
        b.overwrite(first)
    kind = "data" if all(t.is_data for t in terms) else "signal"
    meaning = ("total", tuple(zip(names, signs, strict=True)))
    b.note(first.shape, lines, meaning, kind=kind, memory=first.memory if overwrites else None)


def _terms(b: Builder) -> list[Value]:
    first = b.pick(lambda value: value.kind != "gate")
    others = b.integer(1, 2)
    return [first, *(b.pick(lambda value: value.shape == first.shape and value.kind != "gate") for _ in range(others))]


def _plain(names: list[str], first: Value) -> dict[str, tuple[list[str], bool]]:
    a, listed, stacked = names[0], ", ".join(names), f"torch.stack([{', '.join(names)}])"
    k, shape = len(names), ", ".join(map(str, first.shape))
    buffer = f"{{out}} = torch.zeros(n, {shape}, dtype=torch.float64)"
    rows = f"index = torch.arange({k}).repeat_interleave(n * {first.shape[0]}).remainder(1)"
    flat = f"torch.cat([{listed}]).reshape({k}, -1)"
    return {
        "+": ([f"{{out}} = {' + '.join(names)}"], False),
        "torch.add": ([f"{{out}} = {a}", *(f"{{out}} = torch.add({{out}}, {name})" for name in names[1:])], False),
        "stack.sum": ([f"{{out}} = {stacked}.sum(0)"], False),
        "stack(1).sum": ([f"{{out}} = torch.stack([{listed}], dim=1).sum(dim=1)"], False),
        "sum([])": ([f"{{out}} = sum([{listed}])"], False),
        "zeros +=": ([buffer, *(f"{{out}} += {name}" for name in names)], False),
        "zeros_like.add_": ([f"{{out}} = torch.zeros_like({a})", *(f"{{out}}.add_({name})" for name in names)], False),
        "zeros[:] +=": ([buffer, *(f"{{out}}[:] += {name}" for name in names)], False),
        "zeros[:, :1] +=": (
            [buffer, *(f"{{out}}[:, {part}] += {name}[:, {part}]" for name in names for part in (":1", "1:"))],
            False,
        ),
        "cumsum": ([f"{{out}} = {stacked}.cumsum(0)[-1]"], False),
        "stack.mean": ([f"{{out}} = {stacked}.mean(0) * {k}"], False),
        "index_put_": (
            [buffer, *(f"{{out}}.index_put_((torch.arange(n),), {name}, accumulate=True)" for name in names)],
            False,
        ),
        "index_put repeated": (
            [f"{{out}} = torch.zeros(1, {names[0]}.numel(), dtype=torch.float64)",
             f"{{out}} = {{out}}.index_put((torch.zeros({k}, dtype=torch.int64),), {flat}, accumulate=True)",
             f"{{out}} = {{out}}.reshape(n, {shape})"],
            False,
        ),
        "index_add_": (
            [f"{{out}} = torch.zeros(1, {names[0]}.numel(), dtype=torch.float64)",
             f"{{out}}.index_add_(0, torch.zeros({k}, dtype=torch.int64), {flat})",
             f"{{out}} = {{out}}.reshape(n, {shape})"],
            False,
        ),
        "scatter_add": (
            [f"index = torch.zeros({k}, {names[0]}.numel(), dtype=torch.int64)",
             f"{{out}} = torch.zeros(1, {names[0]}.numel(), dtype=torch.float64).scatter_add(0, index, {flat})",
             f"{{out}} = {{out}}.reshape(n, {shape})"],
            False,
        ),
    }  # fmt: skip


def _weighted(names: list[str], signs: list[float]) -> dict[str, tuple[list[str], bool]]:
    a, rest = names[0], list(zip(names[1:], signs[1:], strict=True))
    listed = ", ".join(f"{sign} * {name}" for name, sign in zip(names, signs, strict=True))
    return {
        "* +": ([f"{{out}} = {a} " + " ".join(f"+ {sign} * {name}" for name, sign in rest)], False),
        "alpha": ([f"{{out}} = {a}", *(f"{{out}} = torch.add({{out}}, {name}, alpha={sign})" for name, sign in rest)], False),
        "sub": ([f"{{out}} = {a}", *(f"{{out}} = torch.sub({{out}}, {name}, alpha={-sign})" for name, sign in rest)], False),
        "-": ([f"{{out}} = {a}", *(f"{{out}} = {{out}} - {-sign} * {name}" for name, sign in rest)], False),
        "stack.sum": ([f"{{out}} = torch.stack([{listed}]).sum(0)"], False),
    }  # fmt: skip


def _in_place(names: list[str], signs: list[float]) -> dict[str, tuple[list[str], bool]]:
    a, rest = names[0], list(zip(names[1:], signs[1:], strict=True))
    spellings = {
        "add_(alpha)": ([f"{{out}} = {a}", *(f"{{out}}.add_({name}, alpha={sign})" for name, sign in rest)], True),
        "sub_(alpha)": ([f"{{out}} = {a}", *(f"{{out}}.sub_({name}, alpha={-sign})" for name, sign in rest)], True),
    }
    if set(signs) == {1.0}:
        spellings["+="] = ([f"{{out}} = {a}", *(f"{{out}} += {name}" for name, _ in rest)], True)
        spellings["[:, :1] +="] = (
            [f"{{out}} = {a}",
             *(f"{{out}}[:, {part}] += {name}[:, {part}]" for name, _ in rest for part in (":1", "1:"))],
            True,
        )  # fmt: skip
    return spellings


POOLS = {
    "avg_pool1d": (2, "F.avg_pool1d({x}, 2)", lambda s: (s[0], s[1] // 2)),
    "avg_pool2d": (3, "F.avg_pool2d({x}, 2, 1)", lambda s: (s[0], s[1] - 1, s[2] - 1)),
    "nn.AvgPool2d": (3, "nn.AvgPool2d(2)({x})", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "avg_pool2d divisor": (3, "F.avg_pool2d({x}, 2, divisor_override=3)", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "avg_pool2d negative divisor": (3, "F.avg_pool2d({x}, 2, divisor_override=-3)", lambda s: (s[0], s[1] // 2, s[2] // 2)),
    "adaptive": (3, "F.adaptive_avg_pool2d({x}, 1)", lambda s: (s[0], 1, 1)),
    "mean": (2, "{x}.mean(-1)", lambda s: s[:-1]),
    "mean keepdim": (3, "torch.mean({x}, (2, 3), keepdim=True)", lambda s: (s[0], 1, 1)),
    "sum": (2, "{x}.sum(-1)", lambda s: s[:-1]),
    "mean channels": (2, "{x}.mean(1, keepdim=True)", lambda s: (1, *s[1:])),
    "cumsum": (1, "{x}.cumsum(-1)", lambda s: s),
    "interpolate": (3, "F.interpolate({x}, scale_factor=2, mode='bilinear')", lambda s: (s[0], 2 * s[1], 2 * s[2])),
}  # fmt: skip
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


def winner(b: Builder) -> None:
    """A maximum: the winner takes all."""
    _pool(b, "max pool", WINNERS, "moves")


def _pool(b: Builder, kind: str, pools: dict, meaning: str) -> None:
    x = b.pick(lambda value: value.kind in ("layer", "signal") and min(value.shape) > 1)
    dims = len(x.shape)
    fitting = {name: pool for name, pool in pools.items() if pool[0] == dims or (pool[0] < 3 and pool[0] < dims and "1d" not in name)}
    fitting = {name: pool for name, pool in fitting.items() if len(pool[2](x.shape)) > 0}
    if fitting:
        _, line, shape = b.spell(kind, fitting)
        line = line.format(x=x.name)
        b.note(shape(x.shape), "{out} = " + line, (meaning, line, x.name), sure=x.kind != "layer")
