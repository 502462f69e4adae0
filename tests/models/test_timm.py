"""Networks of timm, which are not written with torchvision's habits: the exact map where they are piecewise linear."""

import pytest
import torch
from networks import error
from torch import nn

import lrp

timm = pytest.importorskip("timm")

PIECEWISE_LINEAR = ["resnet18", "res2net50_26w_4s", "dla34", "repvgg_a0", "resnetv2_50", "dpn68", "vovnet39a"]
GATED = ["seresnet18", "skresnet18", "resnest14d", "ghostnet_100", "mobilenetv3_small_050", "tf_efficientnet_b0"]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", [*PIECEWISE_LINEAR, *GATED])
def test_networks_run_unchanged(name: str) -> None:
    model, x = build(name), torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    y = lrp.convert(model)(x, explain=True, rule=lrp.rules.Epsilon(1e-13), strict=True)
    expected = model(x)
    assert torch.equal(y, expected)
    (relevance,) = torch.autograd.grad(y[0, 0], x, y[0, 0].detach())
    assert relevance.isfinite().all()
    again = lrp.convert(model)(x, explain=True, rule=lrp.rules.Epsilon(0.0), strict=True, form="gradient")
    assert error(torch.autograd.grad(again[0, 0], x, again[0, 0].detach())[0], relevance) < 1e-6
    if name in PIECEWISE_LINEAR:
        assert error(relevance, x.detach() * torch.autograd.grad(expected[0, 0], x)[0]) < 1e-6
