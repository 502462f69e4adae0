"""Linear layers and convolutions, and the constant scale and shift of each channel that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .program import Builder, Value

LARGEST = 80  # elements of a sample


@dataclass(frozen=True)
class Module:
    """A linear layer of the program: its kind, its name, what it takes and gives, and how it pads."""

    kind: str
    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    bias: bool
    pads_zeros: bool = True


def layer(b: Builder) -> None:
    """A linear layer or a convolution, with weights of its own or of an earlier one."""
    x = b.pick(lambda value: value.kind != "gate" or value.sure)
    fitting = [m for m in b.modules if m.takes == x.shape and b.allows("layer-again")]
    if fitting and b.flag():
        made = b.choose(fitting)
        b.label("layer-again")
    else:
        made = _new(b, x)
        b.modules.append(made)
    line = b.spell("layer", _spellings(made, x.name))
    b.note(made.gives, "{out} = " + line, ("layer", made.name, x.name), kind="layer")


def affine(b: Builder) -> None:
    """A batch norm in eval mode, or some other constant scale and shift of each channel."""
    x = b.pick(lambda value: value.kind != "gate" and (b.exact or value.sure))
    context = x.kind if x.kind in ("data", "layer") else "alone"
    through = "through identity" if context == "layer" and b.meaning_of(x)[0] == "same" else context
    part = b.choose(["both", "scale", "shift"])
    dims = len(x.shape) + 1
    norm = b.module("norm", f"nn.BatchNorm{max(1, dims - 2)}d({x.shape[0]})")
    spellings = _affine_spellings(x, norm, part, dims)
    if context == "alone" and not b.absorbs:  # a norm loses what belongs to a zero, and a product passes it on
        if part != "both":
            return
        spellings = {name: spellings[name] for name in ("module", "F.batch_norm")}
    lines, overwrites = b.spell(f"affine-{part}", spellings, through)
    if overwrites:
        b.overwrite(x)
    memory = x.memory if overwrites else None
    kind = x.kind if context != "alone" else "signal"
    b.note(x.shape, lines, ("affine", norm, x.name, part), kind=kind, memory=memory)


def _affine_spellings(x: Value, norm: str, part: str, dims: int) -> dict[str, tuple[list[str], bool]]:
    both = f"scale, shift = folded(self.{norm}, {dims}, {part != 'shift'}, {part != 'scale'})"
    h = x.name
    spellings: dict[str, tuple[list[str], bool]] = {}
    if part == "both":
        spellings |= {
            "module": ([f"{{out}} = self.{norm}({h})"], False),
            "F.batch_norm": (
                [
                    f"m = self.{norm}",
                    f"{{out}} = F.batch_norm({h}, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)",
                ],
                False,
            ),
            "x * scale + shift": ([both, f"{{out}} = {h} * scale + shift"], False),
            "shift + scale * x": ([both, f"{{out}} = shift + scale * {h}"], False),
            "addcmul": ([both, f"{{out}} = torch.addcmul(shift, {h}, scale)"], False),
            "(x - m) / s": ([both, f"{{out}} = ({h} - (-shift / scale)) / (1 / scale)"], False),
            "mul.add": ([both, f"{{out}} = {h}.mul(scale).add(shift)"], False),
        }
        if x.writable:
            spellings["mul_.add_"] = ([both, f"{{out}} = {h}.mul_(scale).add_(shift)"], True)
            spellings["-= /="] = (
                [both, f"{h} -= -shift / scale", f"{h} /= 1 / scale", f"{{out}} = {h}"],
                True,
            )
    if part == "scale":
        spellings |= {
            "*": ([both, f"{{out}} = {h} * scale"], False),
            "r*": ([both, f"{{out}} = scale * {h}"], False),
            "/": ([both, f"{{out}} = {h} / (1 / scale)"], False),
            "torch.mul": ([both, f"{{out}} = torch.mul({h}, scale)"], False),
        }
        if x.writable:
            spellings["*="] = ([both, f"{h} *= scale", f"{{out}} = {h}"], True)
    if part == "shift":
        spellings |= {
            "+": ([both, f"{{out}} = {h} + shift"], False),
            "r+": ([both, f"{{out}} = shift + {h}"], False),
            "-": ([both, f"{{out}} = {h} - (-shift)"], False),
            "torch.add": ([both, f"{{out}} = torch.add({h}, shift)"], False),
        }
        if x.writable:
            spellings["+="] = ([both, f"{h} += shift", f"{{out}} = {h}"], True)
            spellings["sub_"] = ([both, f"{{out}} = {h}.sub_(-shift)"], True)
    return spellings


def norm(b: Builder) -> None:
    """A norm by the mean and the deviation of each sample, or of groups in it."""
    x = b.pick(lambda value: value.kind != "gate" and prod(value.shape) > 1)
    channels, *sizes = x.shape
    norms = {"LayerNorm": f"nn.LayerNorm({list(x.shape)})", "GroupNorm": f"nn.GroupNorm(1, {channels})"}
    if x.shape[-1] > 1:
        norms["LayerNorm last"] = f"nn.LayerNorm({x.shape[-1]})"
    if channels % 2 == 0 and prod(x.shape) > 2:
        norms["GroupNorm of 2"] = f"nn.GroupNorm(2, {channels})"
    if sizes and prod(sizes) > 1:
        norms["InstanceNorm"] = f"nn.InstanceNorm{len(sizes)}d({channels}, affine=True)"
    made = b.spell("norm", norms)
    name = b.module("norm", made)
    m, h = f"self.{name}", x.name
    spellings = {"module": f"{m}({h})"}
    if "LayerNorm" in made:
        spellings["F.layer_norm"] = f"F.layer_norm({h}, {m}.normalized_shape, {m}.weight, {m}.bias, {m}.eps)"
    if "GroupNorm" in made:
        spellings["F.group_norm"] = f"F.group_norm({h}, {m}.num_groups, {m}.weight, {m}.bias, {m}.eps)"
    line = b.spell("norm by", spellings)
    b.note(x.shape, "{out} = " + line, ("norm", name, x.name), kind="data" if x.is_data else "signal")


def _new(b: Builder, x: Value) -> Module:
    kinds = {1: ["linear"], 2: ["conv1d", "linear", "conv_transpose1d"], 3: ["conv2d", "conv_transpose2d", "linear"]}
    kind = b.choose(kinds[len(x.shape)])
    b.label(kind)
    bias = b.flag()
    if kind != "linear":
        return _convolution(b, x, kind, bias)
    out = b.integer(2, 5)
    name = b.module("fc", f"nn.Linear({x.shape[-1]}, {out}, bias={bias})")
    return Module(kind, name, x.shape, (*x.shape[:-1], out), bias)


def _convolution(b: Builder, x: Value, kind: str, bias: bool) -> Module:
    channels, *sizes = x.shape
    groups = b.choose([1, 2]) if channels % 2 == 0 else 1
    out = groups * b.integer(1, 4 // groups)
    size, stride = b.integer(1, min(3, *sizes)), b.choose([1, 2])
    padding = b.integer(0, min(1, size - 1))
    settings, mode = f"stride={stride}, padding={padding}, groups={groups}, bias={bias}", "zeros"
    if "transpose" in kind:
        after = [(s - 1) * stride - 2 * padding + size for s in sizes]
    else:
        dilation = b.choose([1, 2]) if (size - 1) * 2 < min(sizes) else 1
        mode = b.choose(["zeros", "reflect", "circular"]) if padding and min(sizes) > 1 else "zeros"
        settings += f", dilation={dilation}, padding_mode={mode!r}"
        after = [(s + 2 * padding - dilation * (size - 1) - 1) // stride + 1 for s in sizes]
    if min(after) < 1 or out * prod(after) > LARGEST:  # one pixel always fits
        kind, after, out, size, settings, mode = f"conv{kind[-2:]}", sizes, 2, 1, f"bias={bias}", "zeros"
    cls = f"nn.Conv{'Transpose' * ('transpose' in kind)}{kind[-2:]}"
    name = b.module("conv", f"{cls}({channels}, {out}, {size}, {settings})")
    return Module(kind, name, x.shape, (out, *after), bias, mode == "zeros")


def _spellings(made: Module, x: str) -> dict[str, str]:
    """The expressions that call a layer."""
    m, dims = f"self.{made.name}", len(made.gives)
    spellings = {"module": f"{m}({x})"}
    if made.kind == "linear":
        spellings["F.linear"] = f"F.linear({x}, {m}.weight, {m}.bias)"
        if made.bias:
            spellings["@ + b"] = f"{x} @ {m}.weight.t() + {m}.bias"
            spellings["b + @"] = f"{m}.bias + torch.matmul({x}, {m}.weight.T)"
            spellings["matmul.add_"] = f"torch.matmul({x}, {m}.weight.T).add_({m}.bias)"
            spellings["einsum + b"] = f"torch.einsum('...i,oi->...o', {x}, {m}.weight) + {m}.bias"
            if dims == 1:
                spellings["addmm"] = f"torch.addmm({m}.bias, {x}, {m}.weight.t())"
        else:
            spellings["@"] = f"{x} @ {m}.weight.t()"
            spellings["einsum"] = f"torch.einsum('...i,oi->...o', {x}, {m}.weight)"
    elif made.pads_zeros:
        names = "stride padding dilation groups".split()
        if "transpose" in made.kind:
            names = "stride padding output_padding groups dilation".split()
        settings = ", ".join(f"{m}.{name}" for name in names)
        spellings["F.conv"] = f"F.{made.kind}({x}, {m}.weight, {m}.bias, {settings})"
        if made.bias:
            bias = f"{m}.bias.view({', '.join(['-1', *['1'] * (dims - 1)])})"
            spellings["F.conv + b"] = f"F.{made.kind}({x}, {m}.weight, None, {settings}) + {bias}"
            spellings["torch.conv.add_"] = f"torch.{made.kind}({x}, {m}.weight, None, {settings}).add_({bias})"
    return spellings
