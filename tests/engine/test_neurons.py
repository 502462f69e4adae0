"""A scale and shift of each neuron belong to the layer before it, whichever dimensions the neurons lie in by then."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import error
from spellings import CONV, IMAGES, NORM, SCALE, SHIFT, Function, draw, explained
from torch import Tensor
from torch.nn import functional as F

from lrp.engine.backward.moves import Moves
from lrp.engine.calls import Call
from lrp.rules import Epsilon, Gamma

X, V = draw(4, 5), draw(6, 5, seed=1)
ONE, SEVERAL, BIAS = draw(1, 6, seed=2), draw(12, 6, seed=3), draw(12, seed=4)
W, B = draw(3, 5, 7, seed=5), draw(3, 1, 7, seed=6)
HEADS, SHIFTS = draw(3, 4, seed=7), draw(3, 1, seed=8)
OF_ONE = draw(1, 2, 3, 3, seed=9)
ROWS = draw(3, 4, 5, seed=10)
RULES = [
    "epsilon",
    "zplus",
    "gamma",
    "alpha2beta1",
    Gamma(0.25, generalized=True),
    Epsilon(0.1, bias="ignore"),
    "wsquare",
]


def hidden(x: Tensor) -> Tensor:
    return F.linear(x, V).relu()


def head(x: Tensor) -> Tensor:
    return F.linear(hidden(x), ONE)


def several(x: Tensor) -> Tensor:
    return F.linear(hidden(x), SEVERAL, BIAS)


def map_of_one(x: Tensor) -> Tensor:
    return F.conv2d(x, OF_ONE)


def experts(x: Tensor) -> Tensor:
    return torch.stack([F.linear(x[i], W[i].T, B[i, 0]) for i in range(3)])


def decoded(x: Tensor) -> Tensor:
    scale, shift = SCALE[:3].repeat_interleave(4), SHIFT[:3].repeat_interleave(4)
    return F.linear(hidden(x), SEVERAL * scale[:, None], BIAS * scale + shift).view(-1, 3, 2, 2)


def normed(y: Tensor, *channels: int) -> Tensor:
    part = slice(*channels or (4,))
    values = (NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias)
    return F.batch_norm(y, *(value[part] for value in values), eps=NORM.eps)


def both(y: Tensor, z: Tensor) -> Tensor:
    """A part that is normed, and two that are not."""
    return z[..., :-2].relu() + y[..., 2:].relu() + y[..., :-2].relu()


# each function, and the same where the constants are the layer's by its weights, or follow it at once
SPELLINGS: dict[str, tuple[Function, Function, Tensor]] = {
    "squeeze": (lambda x: head(x).squeeze(-1) * -2.0 + 0.7, lambda x: (head(x) * -2.0 + 0.7).squeeze(-1), X),
    "column": (lambda x: head(x)[:, 0] * -2.0 + 0.7, lambda x: (head(x) * -2.0 + 0.7)[:, 0], X),
    "vector": (lambda x: x @ V[0] + 0.3, lambda x: F.linear(x, V[:1], V.new_full((1,), 0.3)).squeeze(-1), X),
    "one map": (lambda x: map_of_one(x).squeeze(1) * -2 + 0.3, lambda x: (map_of_one(x) * -2 + 0.3).squeeze(1), IMAGES),
    "flatten": (lambda x: CONV(x).flatten(1) * -2 + 0.3, lambda x: (CONV(x) * -2 + 0.3).flatten(1), IMAGES),
    "decoder": (lambda x: normed(several(x).view(-1, 3, 2, 2), 3), decoded, X),
    "heads": (
        lambda x: several(x).view(-1, 3, 4) * HEADS + SHIFTS,
        lambda x: (several(x) * HEADS.flatten() + SHIFTS.flatten().repeat_interleave(4)).view(-1, 3, 4),
        X,
    ),
    "heads transposed": (
        lambda x: several(x).view(-1, 3, 4).transpose(1, 2) * HEADS.T,
        lambda x: (several(x) * HEADS.flatten()).view(-1, 3, 4).transpose(1, 2),
        X,
    ),
    "bmm": (lambda x: torch.bmm(x, W) + B, experts, ROWS),
    "baddbmm": (lambda x: torch.baddbmm(B, x, W), experts, ROWS),
    "einsum": (lambda x: torch.einsum("eni,eio->eno", x, W) + B, experts, ROWS),
    "crop": (lambda x: normed(CONV(x)[..., :-2].contiguous()), lambda x: normed(CONV(x))[..., :-2], IMAGES),
    "narrow": (lambda x: normed(CONV(x).narrow(2, 1, 2)), lambda x: normed(CONV(x)).narrow(2, 1, 2), IMAGES),
    "some of the batch": (lambda x: normed(CONV(x)[:1]), lambda x: normed(CONV(x))[:1], IMAGES),
    "one place": (lambda x: normed(CONV(x)[..., -1, 0]), lambda x: normed(CONV(x))[..., -1, 0], IMAGES),
    "parts used directly too": (
        lambda x: both(y := CONV(x), normed(y)), lambda x: both(y := CONV(x) * 1, normed(y.clone())), IMAGES
    ),
    "a part normed, others not": (
        lambda x: normed((y := CONV(x))[..., :-2]).relu() + y[..., 2:].relu(),
        lambda x: normed(y := CONV(x))[..., :-2].relu() + y.relu()[..., 2:],
        IMAGES,
    ),
    "two norms": (
        lambda x: torch.cat([normed((parts := CONV(x).chunk(2, 1))[0], 2), parts[1]], 1),
        lambda x: torch.cat(
            [normed(F.conv2d(x, CONV.weight[:2], CONV.bias[:2]), 2), F.conv2d(x, CONV.weight[2:], CONV.bias[2:])], 1
        ),
        IMAGES,
    ),
    "cat of one": (lambda x: normed(torch.cat([CONV(x)], 1)), lambda x: normed(CONV(x)), IMAGES),
    "index": (lambda x: normed(CONV(x)[None][0]), lambda x: normed(CONV(x)), IMAGES),
    "own size": (lambda x: normed(F.interpolate(CONV(x), size=(4, 4))), lambda x: normed(CONV(x)), IMAGES),
    "difference": (lambda x: x - F.linear(hidden(x), V.T), lambda x: x + -F.linear(hidden(x), V.T), X),
    "alpha": (
        lambda x: torch.sub(x, F.linear(hidden(x), V.T), alpha=0.5), lambda x: x + F.linear(hidden(x), V.T) * -0.5, X
    ),
    "difference in place": (
        lambda x: x.relu().sub_(F.linear(hidden(x), V.T)), lambda x: x.relu() + -F.linear(hidden(x), V.T), X
    ),
    "number minus": (lambda x: 1 - F.linear(x, V), lambda x: F.linear(x, V) * -1 + 1, X),
    "numpy": (lambda x: F.linear(x, V) * np.float32(2) * 0.5 + V[:, 0], lambda x: F.linear(x, V, V[:, 0]), X),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", SPELLINGS)
def test_constants_of_neurons_belong_to_their_layer(name: str, rule: object) -> None:
    spelled, plain, x = SPELLINGS[name]
    assert error(explained(spelled, x, rule), explained(plain, x, rule)) < 1e-10


MOVED: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.transpose(0, -1), lambda t: t[None], lambda t: t[..., None], lambda t: t[:1], lambda t: t[..., -1:],
    lambda t: t.movedim(0, -1), lambda t: t.unsqueeze(1).transpose(0, 1),
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_constant_finds_its_neurons(data: st.DataObject) -> None:
    """Where the neurons went is told as it would be by moving their numbers."""
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4)))
    channels = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape)))]
    sizes = [shape[dim] for dim in channels]
    numbers = torch.arange(int(np.prod(sizes))).view(sizes)
    numbers = numbers.permute(*(channels.index(dim) for dim in sorted(channels)))
    numbers = numbers[tuple(slice(None) if dim in channels else None for dim in range(len(shape)))].expand(shape)
    moves, moved = Moves(shape), numbers
    for _ in range(data.draw(st.integers(0, 3))):
        function = data.draw(st.sampled_from(MOVED))
        call = Call(function, (moved,))
        moves, moved = moves.then(call, moved, None, False), call.run(lambda t: t)
    neurons = moves.neurons(channels)
    if neurons.strides is None:
        return
    values = draw(neurons.number)
    keeps = [1 if stride == 0 else size for stride, size in zip(neurons.strides, moved.shape, strict=True)]
    c = values[moved][tuple(slice(size) for size in keeps)]
    found = neurons.of(c, 5.0)
    assert found is not None
    is_there = torch.isin(torch.arange(neurons.number), moved.reshape(-1))
    if c.numel() > 1:
        assert torch.equal(found, torch.where(is_there, values, 5.0))
