"""What acts on each element by itself: activations, constants, fills, and writes that torch does not count."""

from __future__ import annotations

from .program import Builder, Step, Value

RELUS = {
    "torch.relu": "torch.relu({x})",
    "F.relu": "F.relu({x})",
    "nn.ReLU": "nn.ReLU()({x})",
    "clamp(min=0)": "{x}.clamp(min=0)",
    "clamp_min": "torch.clamp_min({x}, 0.0)",
    "F.threshold": "F.threshold({x}, 0.0, 0.0)",
    "x * (x > 0)": "{x} * ({x} > 0)",
    "hardtanh": "F.hardtanh({x}, 0.0, 1e9)",
    "where": "torch.where({x} > 0, {x}, 0.0)",
    "maximum": "torch.maximum({x}, {x}.new_zeros(()))",
    "masked_fill": "{x}.masked_fill({x} <= 0, 0.0)",
}
SELECTING = ("where", "maximum", "masked_fill")  # moves: what is not chosen gets no relevance, where relu passes it
RELUS_IN_PLACE = {
    "relu_": "{x}.relu_()",
    "F.relu(inplace)": "F.relu({x}, inplace=True)",
    "nn.ReLU(inplace)": "nn.ReLU(inplace=True)({x})",
    "clamp_": "{x}.clamp_(min=0)",
    "torch.relu_": "torch.relu_({x})",
}
OTHERS = {
    "leaky_relu": "F.leaky_relu({x}, 0.1)",
    "leaky_relu negative": "F.leaky_relu({x}, -0.5)",
    "elu": "F.elu({x})",
    "tanh": "torch.tanh({x})",
    "silu": "F.silu({x})",
    "gelu": "F.gelu({x})",
    "softplus": "F.softplus({x})",
    "softplus beta": "F.softplus({x}, beta=-1)",
    "threshold": "F.threshold({x}, 0.3, -1.0)",
    "clamp below": "{x}.clamp(min=-0.5)",
    "clamp above": "torch.clamp({x}, max=0.5)",
    "hardshrink": "F.hardshrink({x}, 0.2)",
    "hardtanh": "F.hardtanh({x}, -0.5, 0.5)",
}
NUMBERS = ("2", "0.5", "-3", "-0.7", "-2", "-1")


def relu(b: Builder) -> None:
    """A relu in one of its spellings."""
    x = b.pick(lambda value: value.kind in ("layer", "signal"))
    spellings = {name: line for name, line in RELUS.items() if b.has_factor or name not in SELECTING}
    if x.writable:
        spellings |= RELUS_IN_PLACE
    line = b.spell("relu", spellings)
    if any(line == RELUS[name] for name in SELECTING):
        line = line.format(x=x.name)
        b.note(x.shape, "{out} = " + line, ("moves", line, x.name))
    else:
        _activate(b, x, line, "torch.relu({x})", line in RELUS_IN_PLACE.values())


def overwritten(b: Builder) -> None:
    """A value that was used already is overwritten, and what was made of it goes on."""
    last = b.values[-1]
    x = b.pick(lambda value: value.kind in ("layer", "signal") and value.writable and value.memory != last.memory)
    others = {"mul_": "{x}.mul_(-2)", "sub_": "{x}.sub_(1.5)", "zero_": "{x}.zero_()"}
    line = b.spell("overwritten", RELUS_IN_PLACE | others)
    b.overwrite(x)
    b.steps.append(Step(x.name, (line.format(x=x.name),), ("same", x.name)))


def activation(b: Builder) -> None:
    """Another activation, which may be negative where its input is not."""
    x = b.pick(lambda value: value.kind in ("layer", "signal"))
    line = b.spell("activation", OTHERS)
    _activate(b, x, line, line, False)


def _activate(b: Builder, x: Value, line: str, meaning: str, overwrites: bool) -> None:
    if overwrites:
        b.overwrite(x)
    memory = x.memory if overwrites else None
    b.note(x.shape, "{out} = " + line.format(x=x.name), ("passes", meaning.format(x=x.name), x.name), memory=memory)


def number(b: Builder) -> None:
    """A number that is added or multiplied: part of the layer before it, or another unit of the data."""
    x = b.pick(lambda value: value.kind != "gate")
    c = b.choose(NUMBERS)
    context = x.kind if x.kind in ("data", "layer") else ""
    if b.flag():
        spellings = {"*": "{x} * {c}", "r*": "{c} * {x}", "/": "{x} / (1 / ({c}))", "torch.mul": "torch.mul({x}, {c})"}
        if c == "-1":
            spellings |= {"-x": "-{x}", "neg": "torch.neg({x})"}
        if x.writable:
            spellings |= {"*=": "{x}.mul_({c})", "div_": "{x}.div_(1 / ({c}))"}
        line, meaning = b.spell("times number", spellings, context), "factor"
    else:
        spellings = {
            "+": "{x} + ({c})",
            "r+": "{c} + {x}",
            "-": "{x} - (-({c}))",
            "torch.add": "torch.add({x}, {c})",
            "add 0-d": "{x} + torch.tensor({c}, dtype=torch.float64)",
            "add integer": "{x} + torch.tensor(2).mul(0).add({c})" if "." not in c else "{x} + ({c})",
            "sub(other)": "torch.sub({x}, other=-({c}))",
        }
        if x.writable:
            spellings |= {"+=": "{x}.add_({c})", "sub_": "{x}.sub_(-({c}))"}
        line, meaning = b.spell("plus number", spellings, context), "term"
    overwrites = "_(" in line and "full_" not in line
    if overwrites:
        b.overwrite(x)
    text = "{out} = " + line.format(x=x.name, c=c)
    memory = x.memory if overwrites else None
    as_tensor = f"torch.tensor({c}, dtype=torch.float64)"
    b.note(x.shape, text, (meaning, as_tensor, x.name), kind=x.kind, memory=memory, sure=x.sure)


def constant(b: Builder) -> None:
    """A constant tensor that is a term or a factor, such as position embeddings and masks."""
    x = b.pick(lambda value: value.kind != "gate")
    floating = "torch.randn(1, {shape}, dtype=torch.float64)"
    integers = "torch.randint(-3, 4, (1, {shape}))"
    made = b.spell("constant", {"tensor": floating, "negative": f"-{floating}.abs() - 1", "integers": integers})
    c = b.constant("c", made.format(shape=", ".join(map(str, x.shape))))
    plus = b.flag()
    spellings = {"+": "{x} + {c}", "r+": "{c} + {x}", "torch.add": "torch.add({x}, {c})", "-": "{x} - (-{c})"}
    if not plus:
        spellings = {"*": "{x} * {c}", "r*": "{c} * {x}", "torch.mul": "torch.mul({x}, {c})"}
    if x.writable:
        spellings["in place"] = "{x}.add_({c})" if plus else "{x}.mul_({c})"
    line = b.spell("plus constant" if plus else "times constant", spellings, "data" if x.is_data else "")
    overwrites = "_(" in line
    if overwrites:
        b.overwrite(x)
    text = "{out} = " + line.format(x=x.name, c=c)
    b.note(x.shape, text, ("term" if plus else "factor", c, x.name), kind=x.kind,
           memory=x.memory if overwrites else None, sure=x.kind != "layer")  # fmt: skip


def fill(b: Builder) -> None:
    """Some of the values are replaced by constants."""
    x = b.pick(lambda value: value.kind in ("layer", "signal"))
    mask = b.constant("mask", f"torch.rand(1, {', '.join(map(str, x.shape))}) < 0.5")
    c = b.choose(NUMBERS)
    spellings = {
        "where": f"torch.where({mask}, {x.name}, {c})",
        "where tensor": f"torch.where({mask}, {x.name}, torch.tensor(float({c}), dtype=torch.float64))",
        "masked_fill": f"{x.name}.masked_fill(~{mask}, {c})",
    }
    meaning = spellings["masked_fill"]
    if x.writable:
        spellings |= {
            "masked_fill_": f"{x.name}.masked_fill_(~{mask}, {c})",
            "[mask] =": f"{x.name}; {{out}}[(~{mask}).expand_as({{out}})] = {c}",
        }
    line = b.spell("fill", spellings)
    overwrites = line not in list(spellings.values())[:3]
    if overwrites:
        b.overwrite(x)
    b.note(x.shape, "{out} = " + line, ("moves", meaning, x.name), memory=x.memory if overwrites else None, sure=False)


def detached(b: Builder) -> None:
    """What is detached, or made without gradients, is a constant: a term that absorbs, or a factor."""
    x = b.pick(lambda value: value.kind in ("signal", "layer"))
    other = b.pick(lambda value: value.shape == x.shape)
    plus = b.flag()
    o, width = other.name, x.shape[-1]
    layer = "self." + b.module("fc", f"nn.Linear({width}, {width})")
    constants = {
        "detach": ("", f"{o}.detach()"),
        ".data": ("", f"{o}.data"),
        "layer of detached": ("", f"{layer}({o}.detach())"),
        "no_grad": (f"with torch.no_grad(): c = {layer}({o})", f"{layer}({o}).detach()"),
        "layer, then detach": ("", f"{layer}({o}).detach()"),
    }
    before, c = b.spell("detached", constants)
    text = "c" if before else c
    spellings = {"+": "{x} + {c}", "r+": "{c} + {x}", "torch.sub": "torch.sub({x}, -{c})"}
    if not plus:
        spellings = {"*": "{x} * {c}", "r*": "{c} * {x}"}
    if x.writable:
        spellings |= {"+=": "{x}.add_({c})"} if plus else {"*=": "{x}.mul_({c})"}
    line = b.spell("plus detached" if plus else "times detached", spellings)
    overwrites = "_({c})" in line
    if overwrites:
        b.overwrite(x)
    meaning = ("term" if plus else "factor", c, x.name)
    lines = [*filter(None, [before]), "{out} = " + line.format(x=x.name, c=text)]
    b.note(x.shape, lines, meaning, memory=x.memory if overwrites else None, sure=x.kind != "layer")


def unseen(b: Builder) -> None:
    """A function that the library cannot see into, and must name where relevance reaches it."""
    x = b.pick(lambda value: value.kind != "gate")
    spellings = {"autograd.Function": "Unseen.apply({x})", "vmap": "torch.vmap(lambda t: 3 * t)({x})"}
    line = b.spell("unseen", spellings).format(x=x.name)
    b.note(x.shape, "{out} = " + line, ("unseen", f"3 * {x.name}", x.name), sure=False)


def hidden_write(b: Builder) -> None:
    """A write that torch does not count, or not as one that carries relevance."""
    x = b.pick(lambda value: value.kind in ("layer", "signal") and value.writable)
    spellings = {
        ".data": ("{x}.data.sub_(1.5)", "passes"),
        ".detach()": ("{x}.detach().sub_(1.5)", "hidden"),
        "no_grad": ("with torch.no_grad(): {x}.sub_(1.5)", "hidden"),
        "numpy": ("{x}.detach().numpy()[...] -= 1.5", "passes"),
    }
    line, meaning = b.spell("hidden write", spellings)
    b.overwrite(x)
    b.note(x.shape, [line.format(x=x.name), f"{{out}} = {x.name}"], (meaning, f"{x.name} - 1.5", x.name),
           memory=x.memory, sure=False)  # fmt: skip
