"""Every convolutional family of torchvision, and a U-Net: the exact map, and conservation."""

from collections.abc import Mapping

import pytest
import torch
import torchvision
from networks import UNet, error
from oracles.detached import detached
from torch import Tensor, nn

import lrp
from lrp.engine.calls import tensors_in

CLASSIFIERS = """
    vgg11 vgg11_bn alexnet resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3
    squeezenet1_0 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0
    efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny
""".split()
SEGMENTERS = "fcn_resnet50 deeplabv3_mobilenet_v3_large deeplabv3_resnet50 lraspp_mobilenet_v3_large".split()
BOTH_FORMS = (
    lrp.rules.Epsilon(0.0),
    lrp.composites.EpsilonPlus(0.0, 0.0),
    lrp.composites.EpsilonPlusFlat(0.0, 0.0),
    lrp.composites.EpsilonAlpha2Beta1(0.0, 0.0),
    lrp.composites.EpsilonAlpha2Beta1Flat(0.0, 0.0),
    lrp.composites.EpsilonGammaBox(-6.0, 6.0, epsilon=0.0, stabilizer=0.0),
)
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
def test_both_forms_have_one_map(name: str) -> None:
    """For every composite that has both, where stabilisers are zero."""
    model, x = lrp.convert(build(name)), image(name)
    for rule in BOTH_FORMS:
        maps = []
        for form in ("relevance", "gradient"):
            y = score(model(x, explain=True, rule=rule, form=form, strict=True))
            maps += torch.autograd.grad(y, x, y.detach())
        assert error(maps[1], maps[0]) < 1e-9, rule


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_conserved(name: str) -> None:
    model, x = build(name), image(name)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.zero_()
        norm.bias.data.zero_()
    actual, y = relevance(lrp.convert(model), x, lrp.rules.Epsilon(0, bias="ignore"))
    assert abs(actual.sum() - y) < 1e-6 * max(abs(y), actual.abs().max())


def with_pattern(layer: nn.Module, pattern: Tensor, scale: Tensor | None) -> None:
    """Leave the layer's outputs as they are, and give it the gradient of a layer with the pattern for a weight.

    The batch norm that follows multiplies its gradient with the scale, which the pattern of both is divided by.
    """
    if scale is not None:
        pattern = pattern / scale.square().view(-1, *(1 for _ in pattern.shape[1:]))
    convolve = layer._conv_forward if isinstance(layer, nn.Conv2d) else nn.functional.linear

    def forward(x: Tensor) -> Tensor:
        z = convolve(x, pattern, None)
        return z - z.detach() + convolve(x, layer.weight, layer.bias).detach()

    layer.forward = forward


def scales(model: nn.Module, x: Tensor) -> dict[nn.Module, Tensor]:
    """What the batch norms that follow on layers multiply with."""
    made, found, handles = {}, {}, []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d) and inputs[0] in made:
            found[made[inputs[0]]] = module.weight.detach() / (module.running_var + module.eps).sqrt()
        made[output] = module

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            handles.append(module.register_forward_hook(note))
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "squeezenet1_0", "mobilenet_v2", "vgg11_bn"])
def test_patternnet_is_the_gradient_of_a_network_of_patterns(name: str) -> None:
    model, x = build(name), image(name)
    statistics = lrp.patterns.PatternStatistics(model).update(x.detach().expand(2, -1, -1, -1))
    called = {path for path, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert set(statistics.names) == {path for path in called if not path.startswith("aux")}
    patterns = {path: torch.randn_like(model.get_submodule(path).weight) for path in statistics.names}
    maps = []
    for given in (patterns, [*patterns.values()]):
        output = lrp.convert(model)(x, explain=True, rule="patternnet", pattern=given, strict=True)
        maps.append(torch.autograd.grad(score(output), x)[0])
    for path, pattern in patterns.items():
        layer = model.get_submodule(path)
        with_pattern(layer, pattern, scales(model, x).get(layer))
    expected = torch.autograd.grad(score(model(x)), x)[0]
    assert error(maps[0], expected) < 1e-9
    assert torch.equal(*maps)
