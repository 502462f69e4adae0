"""PatternNet and PatternAttribution, in networks with batch norms, and normalised."""

import networks
import pytest
import torch
from networks import error, images, randomize
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import lrp
from lrp.rules import PatternAttribution, PatternNet


def small() -> nn.Sequential:
    return randomize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2)))


def drawn(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [torch.randn(m.weight.shape, dtype=torch.float64) for m in layers]


def explained(model: nn.Module, rule: object, patterns: list[Tensor]) -> Tensor:
    x = images()
    y = lrp.convert(model)(x, explain=True, rule=rule, pattern=patterns)
    return torch.autograd.grad(y[:, 0].sum(), x)[0]


@pytest.mark.parametrize("rule", ["patternnet", "patternattribution"])
def test_a_pattern_of_a_layer_serves_it_merged_with_its_batch_norm(rule: str) -> None:
    model = small()
    patterns = drawn(model)
    merged = nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), *model[2:])
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    of_merged = [patterns[0] / scale.detach()[:, None, None, None], patterns[1]]
    assert error(explained(model, rule, patterns), explained(merged, rule, of_merged)) < 1e-12


@pytest.mark.parametrize("kind", ["linear", "positive", "negative"])
def test_fitted_patterns_of_a_merged_layer_are_those_of_the_layers(kind: str) -> None:
    model, data = small(), images(40).detach()
    merged = nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), *model[2:])
    fitted, of_merged = (lrp.patterns.PatternStatistics(m).update(data).patterns(kind) for m in (model, merged))
    for rule in ("patternnet", "patternattribution"):
        assert error(explained(model, rule, fitted), explained(merged, rule, of_merged)) < 1e-8


def test_rules_are_written_out() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    patterns = drawn_linear = [torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    fires = model[0](x).detach() > 0
    for rule, used in (
        ("patternnet", drawn_linear),
        ("patternattribution", [a * m.weight.detach() for a, m in zip(patterns, model[::2], strict=True)]),
    ):
        y = lrp.convert(model)(x, explain=True, rule=rule, pattern=patterns)
        expected = (used[1][0] * fires) @ used[0]
        assert error(torch.autograd.grad(y[:, 0].sum(), x)[0], expected) < 1e-12


@pytest.mark.parametrize("rule", [PatternNet, PatternAttribution])
def test_normalised_signals_have_largest_value_one(rule: type) -> None:
    model = small()
    patterns = drawn(model)
    actual = explained(model, rule(normalize=True), patterns)
    largest = actual.abs().amax((1, 2, 3))
    assert torch.allclose(largest, torch.ones_like(largest))
    plain = explained(model, rule(), patterns)
    assert error(actual, plain / plain.abs().amax((1, 2, 3), keepdim=True)) < 1e-12
    silent = lrp.functional.linear(
        x := torch.ones(3, requires_grad=True), torch.ones(2, 3), rule=rule(torch.zeros(2, 3), normalize=True)
    )
    silent.sum().backward()
    assert not x.grad.any()


def test_a_pattern_is_checked_against_the_layer() -> None:
    model = networks.plain()
    patterns = [m.weight for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    with pytest.raises(ValueError, match=r"shape \(1,\) for layer '0'"):
        model(images(channels=1, size=6), explain=True, rule="patternnet", pattern=[torch.ones(1), *patterns[1:]])
