"""Every convolutional family of torchvision, and a U-Net: the exact map, and conservation."""

from collections.abc import Mapping

import pytest
import torch
import torchvision
from detached import detached
from networks import UNet, error
from torch import Tensor, nn

import lrp
from lrp.calls import tensors_in

CLASSIFIERS = """
    vgg11 vgg11_bn alexnet resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3
    squeezenet1_0 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0
    efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny
""".split()
SEGMENTERS = "fcn_resnet50 deeplabv3_mobilenet_v3_large deeplabv3_resnet50 lraspp_mobilenet_v3_large".split()
NETWORKS = [*CLASSIFIERS, *SEGMENTERS, "unet"]


def build(name: str) -> nn.Module:
    """The network in float64, with random weights and batch-norm statistics."""
    torch.manual_seed(0)
    if name == "unet":
        model: nn.Module = UNet()
    elif name in SEGMENTERS:
        settings = {} if name.startswith("lraspp") else {"aux_loss": True}
        model = getattr(torchvision.models.segmentation, name)(weights_backbone=None, num_classes=5, **settings)
    else:
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = getattr(torchvision.models, name)(num_classes=10, **settings)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.bias):
            tensor.data.uniform_(-0.3, 0.3)
        for tensor in (norm.running_var, norm.weight):
            tensor.data.uniform_(0.5, 2.0)
    return model.double().eval()


def image(name: str) -> Tensor:
    size = 96 if name == "inception_v3" else 64
    return torch.randn(1, 3, size, size, dtype=torch.float64).requires_grad_()


def score(output: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The largest logit of a classifier; the class of one pixel of a segmenter."""
    if isinstance(output, Mapping):
        output = output["out"]
    return output[0].max() if output.dim() == 2 else output[0, 1, 20, 30]


def relevance(model: nn.Module, x: Tensor, rule: lrp.Rule) -> tuple[Tensor, Tensor]:
    output = model(x, explain=True, rule=rule, strict=True)
    assert all(map(torch.equal, tensors_in(output), tensors_in(model(x))))
    y = score(output)
    return torch.autograd.grad(y, x, y.detach())[0], y.detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_exact(name: str) -> None:
    model, x = build(name), image(name)
    actual, y = relevance(lrp.convert(model), x, lrp.rules.Epsilon(1e-13))
    assert torch.equal(y, score(model(x)))
    reference = score(detached(model)(x))
    assert torch.allclose(reference, y)
    assert error(actual, x.detach() * torch.autograd.grad(reference, x)[0]) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_conserved(name: str) -> None:
    model, x = build(name), image(name)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.zero_()
        norm.bias.data.zero_()
    actual, y = relevance(lrp.convert(model), x, lrp.rules.Epsilon(0, bias="ignore"))
    assert abs(actual.sum() - y) < 1e-6 * max(abs(y), actual.abs().max())
