"""Gates: what they are made of, what is made of them, and what they weigh."""

from __future__ import annotations

from .program import READ_ONLY, Builder

GATES = {
    "torch.sigmoid": "torch.sigmoid({x})",
    "nn.Sigmoid": "nn.Sigmoid()({x})",
    "F.hardsigmoid": "F.hardsigmoid({x})",
    "x.sigmoid": "{x}.sigmoid()",
}
OF_A_GATE = {
    "1 - g": ("1 - {g}", "1 - {g}"),
    "-g + 1": ("-{g} + 1", "1 - {g}"),
    "torch.rsub": ("torch.rsub({g}, 1.0)", "1 - {g}"),
    "sub(ones)": ("torch.sub(torch.ones_like({g}), {g})", "1 - {g}"),
    "scaled": ("{g} * 0.5 + 0.1", "{g} * 0.5 + 0.1"),
    "clamp": ("{g}.clamp(0.1, 0.9)", "{g}.clamp(0.1, 0.9)"),
    "dropout": ("F.dropout({g}, 0.3, training=False)", "{g}"),
    "nn.Dropout": ("nn.Dropout(0.3).eval()({g})", "{g}"),
    "flip": ("{g}.flip(-1)", "{g}.flip(-1)"),
    "mean": ("{g}.mean(-1, keepdim=True)", "{g}.mean(-1, keepdim=True)"),
    "expand_as": ("{g}.mean(-1, keepdim=True).expand_as({g})", "{g}.mean(-1, keepdim=True).expand_as({g})"),
    "normalised": ("{g} / {g}.sum(-1, keepdim=True)", "{g} / {g}.sum(-1, keepdim=True)"),
    "masked_fill": ("{g}.masked_fill({g} < 0.3, 0.0)", "{g}.masked_fill({g} < 0.3, 0.0)"),
    "where": ("torch.where({g} > 0.4, {g}, 0.1)", "torch.where({g} > 0.4, {g}, 0.1)"),
    "square": ("{g} * {g}", "{g} * {g}"),
    "sum of gates": ("{g} + {g}.flip(-1)", "{g} + {g}.flip(-1)"),
    "cat": ("torch.cat([{g}[..., :1], {g}[..., 1:]], -1)", "{g}"),
    "/ 2": ("{g} / 2", "{g} / 2"),
    "buffer": ("torch.zeros_like({g}).copy_({g})", "{g}"),
    "float": ("{g}.float().double()", "{g}.float().double()"),
}


def gate(b: Builder) -> None:
    """A sigmoid or a softmax of what a layer has seen."""
    x = b.pick(lambda value: value.kind in ("layer", "signal"))
    if b.flag() and len(x.shape) < 3:
        line = b.spell("softmax", {"F.softmax": "F.softmax({x}, -1)", "x.softmax": "{x}.softmax(dim=-1)"})
        meaning = ("softmax", x.name)
    else:
        line = b.spell("gate", GATES)
        meaning = ("passes", line.format(x=x.name), x.name)
    b.note(x.shape, "{out} = " + line.format(x=x.name), meaning, kind="gate")


def of_a_gate(b: Builder) -> None:
    """What is made of a gate alone is a gate."""
    g = b.pick(lambda value: value.kind == "gate")
    line, meaning = b.spell("of a gate", OF_A_GATE)
    shape = (*g.shape[:-1], 1) if line.endswith("mean(-1, keepdim=True)") else g.shape
    b.note(shape, "{out} = " + line.format(g=g.name), ("weighs", meaning.format(g=g.name)), kind="gate",
           memory=READ_ONLY, sure=False)  # fmt: skip


def gated(b: Builder) -> None:
    """A gate weighs a signal, of the same shape or one that it broadcasts to."""
    g = b.pick(lambda value: value.kind == "gate")
    x = b.pick(lambda value: value.kind in ("layer", "signal") and _broadcasts(g.shape, value.shape))
    spellings = {
        "h * g": "{x} * {g}",
        "g * h": "{g} * {x}",
        "torch.mul": "torch.mul({x}, {g})",
        "h * g.expand_as(h)": "{x} * {g}.expand_as({x})",
        "h * g.expand(h.shape)": "{x} * {g}.expand({x}.shape)",
        "h * g.view": "{x} * {g}.view_as({g})",
        "h * broadcast_to": "torch.broadcast_to({g}, {x}.shape) * {x}",
        "h * dropout(g)": "{x} * F.dropout({g}, 0.5, training=False)",
    }
    if x.writable and x.memory != g.memory:
        spellings["h.mul_(g)"] = "{x}.mul_({g})"
    line = b.spell("gated", spellings)
    overwrites = "_(" in line and "broadcast" not in line and "expand" not in line
    if overwrites:
        b.overwrite(x)
    b.note(x.shape, "{out} = " + line.format(x=x.name, g=g.name), ("gated", x.name, g.name),
           memory=x.memory if overwrites else None, sure=x.kind != "layer")  # fmt: skip


def mixed(b: Builder) -> None:
    """Two signals mixed by a gate, as in a GRU."""
    g = b.pick(lambda value: value.kind == "gate")
    x = b.pick(lambda value: value.kind in ("layer", "signal") and value.shape == g.shape)
    y = b.pick(lambda value: value.kind in ("layer", "signal") and value.shape == g.shape)
    spellings = {
        "(1 - z) * n + z * h": "(1 - {g}) * {x} + {g} * {y}",
        "z * h + (1 - z) * n": "{g} * {y} + (1 - {g}) * {x}",
        "add(mul, mul)": "torch.add(torch.mul(1.0 - {g}, {x}), {g} * {y})",
        "rsub": "torch.rsub({g}, 1) * {x} + {y} * {g}",
    }
    line = b.spell("mixed", spellings)
    b.note(x.shape, "{out} = " + line.format(g=g.name, x=x.name, y=y.name), ("mixed", g.name, x.name, y.name))


def product(b: Builder) -> None:
    """A product of two signals: half each."""
    x = b.pick(lambda value: value.kind in ("layer", "signal"))
    is_square = b.integer(0, 3) == 3
    y = b.pick(lambda v: v.kind in ("layer", "signal") and v.shape == x.shape and (v is x) == is_square)
    spellings = {"*": "{x} * {y}", "torch.mul": "torch.mul({x}, {y})"}
    if x.writable and x.memory != y.memory:
        spellings["*="] = "{x}.mul_({y})"
    line = b.spell("product", spellings)
    if "_(" in line:
        b.overwrite(x)
    b.note(x.shape, "{out} = " + line.format(x=x.name, y=y.name), ("half_each", x.name, y.name),
           memory=x.memory if "_(" in line else None)  # fmt: skip


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) == len(large) and all(a in (1, b) for a, b in zip(small, large, strict=True))
