"""Hypothesis strategies: torch layers of odd geometry in float64, with inputs to fit.

Weights and inputs are multiples of 1/4, so that sums of their products are exact in float64: a neuron's total
is either exactly zero or far from it, and no comparison hangs on the order of a summation.
"""

from collections.abc import Callable
from math import ceil

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
LAYERS = [nn.Linear, *CONVOLUTIONS, *TRANSPOSED]

MARGIN = {1: 6, 2: 4, 3: 2}  # positions beyond the fewest that fit, so that matrices stay below 400 x 400
Draw = Callable

seeds = st.integers(0, 2**32 - 1)


def quarters(generator: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/4 in [-2, 2]."""
    return torch.randint(-8, 9, shape, generator=generator, dtype=torch.float64) / 4


@st.composite
def cases(draw: Draw, layer_class: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    """A layer and an input."""
    kind = linear if layer_class is nn.Linear else transposed if layer_class in TRANSPOSED else convolution
    layer, shape = draw(kind(layer_class))
    generator = torch.Generator().manual_seed(draw(seeds))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(quarters(generator, *parameter.shape))
    x = draw(inputs(shape, generator))
    assume(x.numel() <= 1000 and layer(x).numel() <= 1000)
    return layer, x


@st.composite
def inputs(draw: Draw, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Signed, non-negative, or mostly zeros; or first non-negative and then signed samples."""
    x = quarters(generator, *shape)
    kind = draw(st.sampled_from(["signed", "non-negative", "zeros", "mixed"]))
    if kind == "non-negative":
        x = x.abs()
    if kind == "zeros":
        x = x * (torch.rand(shape, generator=generator) < 0.3)
    if kind == "mixed":
        x[0] = x[0].abs()
    return x


@st.composite
def linear(draw: Draw, layer_class: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """A Linear with inputs of one to four dimensions."""
    features = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    return layer_class(*features, bias=draw(st.booleans()), dtype=torch.float64), (*leading, features[0])


@st.composite
def convolution(draw: Draw, layer_class: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution: int, "same" or "valid" padding, in every padding mode."""
    n = CONVOLUTIONS.index(layer_class) + 1
    options = draw(window(n))
    reach = [d * (k - 1) for k, d in zip(options["kernel_size"], options["dilation"], strict=True)]
    widths, options["padding"] = draw(paddings(reach))
    if options["padding"] == "same":
        options["stride"] = 1
    options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    fewest = [
        max(1, r + 1 - left - right, *torch_wants(options["padding_mode"], right))
        for r, (left, right) in zip(reach, widths, strict=True)
    ]
    return layer_class(**options, dtype=torch.float64), draw(shapes(fewest, options["in_channels"]))


def torch_wants(padding_mode: str, width: int) -> list[int]:
    """The fewest positions that torch can pad by this width."""
    return {"reflect": [width + 1], "circular": [width]}.get(padding_mode, [])


@st.composite
def transposed(draw: Draw, layer_class: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """A transposed convolution, with output padding."""
    n = TRANSPOSED.index(layer_class) + 1
    options = draw(window(n))
    strides, dilations = options["stride"], options["dilation"]
    reach = [d * (k - 1) for k, d in zip(options["kernel_size"], dilations, strict=True)]
    options["padding"] = tuple(draw(st.integers(0, 2)) for _ in reach)
    limits = map(max, strides, dilations)
    options["output_padding"] = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
    # there are stride * (size - 1) + reach - 2 * padding + 1 outputs; torch wants one or more
    overlaps = [2 * p - r for p, r in zip(options["padding"], reach, strict=True)]
    fewest = [1 + max(0, ceil(overlap / stride)) for overlap, stride in zip(overlaps, strides, strict=True)]
    return layer_class(**options, dtype=torch.float64), draw(shapes(fewest, options["in_channels"]))


@st.composite
def window(draw: Draw, n: int) -> dict:
    """What all convolutions have: channels, groups, kernel size, stride, dilation, bias."""
    groups = draw(st.integers(1, 3))
    few = 2 if n < 3 else 1
    return {
        "in_channels": groups * draw(st.integers(1, few)),
        "out_channels": groups * draw(st.integers(1, few)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "kernel_size": tuple(draw(st.integers(1, 4)) for _ in range(n)),
        "stride": tuple(draw(st.integers(1, 3 if n < 3 else 2)) for _ in range(n)),
        "dilation": tuple(draw(st.integers(1, 3 if n < 3 else 2)) for _ in range(n)),
    }


@st.composite
def paddings(draw: Draw, reach: list[int]) -> tuple[list[tuple[int, int]], str | tuple[int, ...]]:
    """The widths on the left and on the right, and the argument that asks for them."""
    kind = draw(st.sampled_from(["numbers", "same", "valid"]))
    if kind == "same":
        return [(r // 2, r - r // 2) for r in reach], kind
    if kind == "valid":
        return [(0, 0) for _ in reach], kind
    numbers = tuple(draw(st.integers(0, 2)) for _ in reach)
    return [(p, p) for p in numbers], numbers


@st.composite
def shapes(draw: Draw, fewest: list[int], channels: int) -> tuple[int, ...]:
    """Batched or not, with a few positions more than the fewest."""
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    return (*batch, channels, *(f + draw(st.integers(0, MARGIN[len(fewest)])) for f in fewest))
