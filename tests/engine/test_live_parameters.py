"""A parameter that is computed from the input is no constant: right, or named."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lrp

Function = Callable[[Tensor, Tensor], Tensor]

MEAN, VAR = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

# p has one positive number a channel
CALLS: dict[str, Function] = {
    "layer_norm(weight)": lambda x, p: F.layer_norm(x.mT, (3,), p),
    "layer_norm(bias)": lambda x, p: F.layer_norm(x.mT, (3,), None, p),
    "group_norm(weight)": lambda x, p: F.group_norm(x, 1, p),
    "group_norm(bias)": lambda x, p: F.group_norm(x, 3, bias=p),
    "instance_norm(weight)": lambda x, p: F.instance_norm(x, weight=p),
    "instance_norm(bias)": lambda x, p: F.instance_norm(x, None, None, None, p),
    "rms_norm(weight)": lambda x, p: F.rms_norm(x.mT, (3,), p),
    "batch_norm(weight)": lambda x, p: F.batch_norm(x, MEAN, VAR, p),
    "batch_norm(bias)": lambda x, p: F.batch_norm(x, MEAN, VAR, None, p),
    "clamp(min)": lambda x, p: torch.clamp(x, min=p[:, None]),
    "clamp(max)": lambda x, p: x.clamp(max=p[:, None]),
    "clip(min)": lambda x, p: x.clip(p[:, None]),
    "clamp_min": lambda x, p: torch.clamp_min(x, p[:, None]),
    "clamp_max": lambda x, p: x.clamp_max(p[:, None]),
    "prelu(weight)": F.prelu,
}


def parameter(x: Tensor) -> Tensor:
    return (x.sum(2).sum(0) * 0.5).relu() + 0.25


@pytest.mark.parametrize("of_data", [True, False], ids=["x live", "x constant"])
@pytest.mark.parametrize("call", CALLS)
def test_it_is_named(call: str, of_data: bool) -> None:
    function = CALLS[call]
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    constant = torch.randn(2, 3, 4, dtype=torch.float64)
    model = lrp.convert(lambda x: function(x if of_data else constant, parameter(x)))
    name = re.match("[a-z_]+", call)[0]
    with pytest.raises(NotImplementedError, match=name):
        model(x, explain=True, strict=True)
    with pytest.warns(lrp.RelevanceWarning, match=name):
        model(x, explain=True)


@pytest.mark.parametrize("call", CALLS)
def test_a_constant_parameter_is_not(call: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = parameter(x).detach()
    y = lrp.convert(lambda x: CALLS[call](x, weight))(x, explain=True, strict=True)
    assert torch.equal(y, CALLS[call](x, weight))
