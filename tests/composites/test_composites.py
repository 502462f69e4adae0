"""The named composites, against zennit's on models whose batch norms are merged beforehand."""

from copy import deepcopy
from functools import cache

import pytest
import torch
import torchvision
import zennit.composites
from networks import error
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.torchvision import ResNetBasicBlockCanonizer

import lrp
from lrp import composites

LOW, HIGH = -2.5, 3.0
PAIRS = {
    "EpsilonPlus": (composites.EpsilonPlus(), zennit.composites.EpsilonPlus),
    "EpsilonPlusFlat": (composites.EpsilonPlusFlat(), zennit.composites.EpsilonPlusFlat),
    "EpsilonGammaBox": (
        composites.EpsilonGammaBox(LOW, HIGH),
        lambda **settings: zennit.composites.EpsilonGammaBox(torch.tensor(LOW), torch.tensor(HIGH), **settings),
    ),
    "EpsilonAlpha2Beta1": (composites.EpsilonAlpha2Beta1(), zennit.composites.EpsilonAlpha2Beta1),
    "EpsilonAlpha2Beta1Flat": (composites.EpsilonAlpha2Beta1Flat(), zennit.composites.EpsilonAlpha2Beta1Flat),
    "GuidedBackprop": (composites.GuidedBackprop(), zennit.composites.GuidedBackprop),
    "Deconvnet": (composites.Deconvnet(), zennit.composites.DeconvNet),
    "ExcitationBackprop": (composites.ExcitationBackprop(), zennit.composites.ExcitationBackprop),
}


@cache
def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = getattr(torchvision.models, name)(num_classes=10)
    if name.startswith("vgg"):  # the layers that make VGGs large, only narrower
        model.classifier[0], model.classifier[3] = nn.Linear(25088, 64), nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 10)
    for layer in (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None):
        layer.bias.data.uniform_(-0.1, 0.1)
    model.double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.bias):
            tensor.data.uniform_(-0.3, 0.3)
        for tensor in (norm.running_var, norm.weight):
            tensor.data.uniform_(0.5, 1.5)
    return model


def merged(model: nn.Module) -> nn.Module:
    """A copy in which every batch norm is merged with the convolution before it."""
    model = deepcopy(model)
    for parent in list(model.modules()):
        convolution: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and convolution is not None:
                setattr(parent, convolution[0], fuse_conv_bn_eval(convolution[1], child))
                setattr(parent, name, nn.Identity())
            convolution = (name, child) if isinstance(child, nn.Conv2d) else None
    return model


def by_zennit(model: nn.Module, composite: type, x: Tensor, R: Tensor) -> Tensor:
    model = merged(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    canonizers = [ResNetBasicBlockCanonizer()] if isinstance(model, torchvision.models.ResNet) else []
    with composite(canonizers=canonizers).context(model) as hooked:
        return torch.autograd.grad(hooked(x), x, R)[0]


@pytest.mark.parametrize("network", ["vgg16", "vgg11_bn", "resnet18"])
@pytest.mark.parametrize("name", PAIRS)
def test_named_composites_are_zennits(name: str, network: str) -> None:
    model = build(network)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64).clamp(LOW, HIGH).requires_grad_()
    ours, theirs = PAIRS[name]
    y = lrp.convert(model)(x, explain=True, rule=ours, strict=True)
    R = torch.eye(10, dtype=torch.float64)[[1, 4]]
    assert error(torch.autograd.grad(y, x, R)[0], by_zennit(model, theirs, x, R)) < 1e-5


@pytest.mark.parametrize("key", sorted(composites.KEYS.keys() - lrp.rules.KEYS.keys()))
def test_keys_name_composites_with_their_defaults(key: str) -> None:
    name = "".join(part.capitalize() for part in key.split("_"))
    assert composites.get(key) == getattr(composites, name)()


def test_settings_reach_the_rules() -> None:
    rules = dict(composites.EpsilonGammaBox(-1.0, 2.0, epsilon=0.1, gamma=0.5, stabilizer=1e-3).table)
    assert rules["first"] == lrp.rules.ZBox(-1.0, 2.0, epsilon=1e-3)
    assert rules["conv"] == lrp.rules.Gamma(0.5, generalized=True, epsilon=1e-3)
    assert rules["linear"] == lrp.rules.Epsilon(0.1)
    assert rules["sum"] == rules["pool"] == lrp.rules.Epsilon(1e-3)
