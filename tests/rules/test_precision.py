"""dtypes, memory formats, autocast, odd batches: right, or a clear error."""

import networks
import pytest
import torch
from networks import error
from torch import Tensor, nn

import lrp
from lrp.rules import AlphaBeta, Epsilon

RULES = [key for key, rule in lrp.rules.KEYS.items() if not rule.needs_pattern]


def network(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network without sums of two signs, which are ill-conditioned whatever the precision."""
    model = networks.randomize(
        lrp.Sequential(
            lrp.Conv2d(2, 4, 3, padding=1), lrp.BatchNorm2d(4), nn.ReLU(inplace=True), lrp.MaxPool2d(2),
            lrp.Conv2d(4, 6, 3), nn.ReLU(), lrp.AdaptiveAvgPool2d(2), nn.Flatten(), lrp.Linear(24, 3),
        )
    )  # fmt: skip
    return model.to(dtype), networks.images().detach().to(dtype).requires_grad_()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.25)], ids=str
)
def test_every_precision(rule: str, dtype: torch.dtype, tolerance: float) -> None:
    model, x = network(dtype)
    y = model(x, explain=True, rule=rule)
    (explained,) = torch.autograd.grad(y[:, 0].sum(), x)
    assert explained.dtype == y.dtype == dtype
    exact, x = network(torch.float64)
    y = exact(x, explain=True, rule=rule)
    (expected,) = torch.autograd.grad(y[:, 0].sum(), x)
    assert error(explained.double(), expected) < tolerance


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(rule: str, dtype: torch.dtype, backward_inside: bool) -> None:
    model, x = network(torch.float32)
    with torch.autocast("cpu", dtype):
        y = model(x, explain=True, rule=rule)
        assert torch.equal(y, model(x))
        if backward_inside:
            y[:, 0].sum().backward()
    if not backward_inside:
        y[:, 0].sum().backward()
    exact, x64 = network(torch.float64)
    (expected,) = torch.autograd.grad(exact(x64, explain=True, rule=rule)[:, 0].sum(), x64)
    assert x.grad.dtype == torch.float32
    assert error(x.grad.double(), expected) < (0.25 if dtype == torch.bfloat16 else 0.05)


@pytest.mark.parametrize("rule", RULES)
def test_channels_last(rule: str) -> None:
    model, x = network(torch.float64)
    expected = networks.relevance(model, x, rule)
    model.to(memory_format=torch.channels_last)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(model(x), model(x, explain=True, rule=rule))
    assert error(networks.relevance(model, x, rule), expected) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_small_batches(rule: str) -> None:
    model, x = network(torch.float64)
    for n in (0, 1):
        part = x[:n].detach().requires_grad_()
        model(part, explain=True, rule=rule).sum().backward()
        assert part.grad.shape == part.shape


def test_a_slice_of_a_larger_tensor_is_explained() -> None:
    model, x = network(torch.float64)
    y = model(x[:1], explain=True)
    y.sum().backward()
    assert x.grad[1].abs().max() == 0
    assert x.grad[0].abs().max() > 0


def test_relevance_in_float16_does_not_overflow() -> None:
    """R / 1e-6 is beyond float16 from R = 0.07 on."""
    layer = lrp.Linear(2, 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float16, requires_grad=True)
    layer.half()(x, explain=True, rule=Epsilon(1e-6)).backward()
    assert x.grad.isinf().all()  # 1e6 is what the formula gives: nothing in float16 can hold it
    x = torch.tensor([[1.0, 1e-4]], dtype=torch.float16, requires_grad=True)
    layer.half()(x, explain=True, rule=AlphaBeta(1, 0)).backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 0.0]], dtype=torch.float16))


@pytest.mark.parametrize(("epsilon", "dtype"), [(1e-8, torch.float16), (1e-50, torch.float32)], ids=str)
def test_an_epsilon_that_would_vanish_is_an_error(epsilon: float, dtype: torch.dtype) -> None:
    layer = lrp.Linear(2, 1).to(dtype)
    x = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    with pytest.raises(ValueError, match=f"epsilon={epsilon}: is 0 in {dtype}"):
        layer(x, explain=True, rule=Epsilon(epsilon))


def test_differences_of_sums_are_precise_enough_in_float32() -> None:
    """alpha-beta takes its negative total as a difference: dense random layers in float32 against float64."""
    generator = torch.Generator().manual_seed(0)
    model = lrp.Sequential(nn.ReLU(), lrp.Linear(500, 300)).double()
    x = torch.randn(20, 500, dtype=torch.float64, generator=generator)
    maps = []
    for dtype in (torch.float64, torch.float32):
        given = x.to(dtype, copy=True).requires_grad_()
        model.to(dtype)(given, explain=True, rule="alpha2beta1").sum().backward()
        maps.append(given.grad.double())
    assert error(maps[1], maps[0]) < 1e-5
