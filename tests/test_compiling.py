"""Compiled explanations: bit-equal to those that are not, and of the model as it is in each call."""

import re
from pathlib import Path

import pytest
import torch
from networks import Residual, convolutional, images, plain, randomize
from torch import Tensor, nn

import lrp
from lrp.rules import Epsilon, Flat, Gamma, ZPlus

FORMS = ("relevance", "gradient")
RULES = {
    "epsilon": "epsilon",
    "epsilon 0": Epsilon(0.0),
    "relative": Epsilon(0.25, relative=True),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25),
    "epsilon_plus_flat": "epsilon_plus_flat",
}


def uncompiled(
    model: nn.Module, x: Tensor, rule: object = "epsilon", target: int | Tensor | None = None, form: str = "relevance"
) -> tuple[Tensor, Tensor]:
    """What a compiled explanation must give."""
    x = x.detach().requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=rule, form=form)
    start = y.detach().clone()
    if target is not None:
        chosen = torch.as_tensor(target).expand(len(y)) % y.shape[1]
        start *= nn.functional.one_hot(chosen, y.shape[1])
    y.backward(start)
    return y.detach(), x.grad


def is_same(compiled: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, compiled, expected))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RULES)
def test_it_is_bit_equal(name: str, form: str) -> None:
    model, x = convolutional(True), images().detach()
    explain = lrp.compile(model, rule=RULES[name], form=form, backend="eager")
    assert is_same(explain(x), uncompiled(model, x, RULES[name], form=form))
    assert is_same(explain(x * 0.7), uncompiled(model, x * 0.7, RULES[name], form=form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["alpha2beta1", Epsilon(0.1, bias="ignore")])
def test_or_equal_where_totals_are_looked_at(rule: object, form: str) -> None:
    """A total that would be the difference of two others is made by a pass of its own, for nobody sees whether it is
    small."""
    model, x = convolutional(), images().detach()
    compiled = lrp.compile(model, rule=rule, form=form, backend="eager")(x)
    torch.testing.assert_close(compiled, uncompiled(model, x, rule, form=form), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("default")  # torch's own
@pytest.mark.parametrize("form", FORMS)
def test_inductor(form: str) -> None:
    model = randomize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)))
    x = images(size=6).detach()
    output, relevance = lrp.compile(model, rule="epsilon_plus", form=form)(x, target=1)
    expected_output, expected = uncompiled(model, x, "epsilon_plus", 1, form)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(relevance, expected, rtol=1e-9, atol=1e-12)


def test_the_target_may_change_from_call_to_call() -> None:
    model, x = plain(), images(3, 1, 6).detach()
    explain = lrp.compile(model, target=1, backend="eager")
    for target in (0, 1, torch.tensor([1, 0, 1]), -1):
        assert is_same(explain(x, target=target), uncompiled(model, x, target=target))
    assert is_same(explain(x), uncompiled(model, x, target=1))
    assert len(explain._traces) == 1


def test_a_target_of_maps_is_all_of_its_map() -> None:
    model = randomize(nn.Conv2d(2, 3, 3))
    x = images().detach().requires_grad_()
    _, relevance = lrp.compile(model, backend="eager")(x, target=2)
    y = lrp.convert(model)(x, explain=True)
    y[:, 2].backward(y[:, 2].detach())
    torch.testing.assert_close(relevance, x.grad)


def test_weights_are_read_in_each_call() -> None:
    model, x = convolutional(), images().detach()
    explain = lrp.compile(model, rule="zplus", backend="eager")
    explain(x)
    with torch.no_grad():
        model.first.weight.mul_(-2)
        model.norm.running_mean.add_(1)
        model.last.weight = nn.Parameter(torch.randn_like(model.last.weight))
    assert is_same(explain(x), uncompiled(model, x, "zplus"))
    assert len(explain._traces) == 1


def other_activation(model: nn.Module) -> None:
    model.relu = nn.Tanh()


def other_attribute(model: nn.Module) -> None:
    model.norm.eps = 0.5


def other_block(model: nn.Module) -> None:
    model.block = randomize(Residual(4), 1)


def hooked(model: nn.Module) -> None:
    model.relu.register_forward_hook(lambda module, args, output: 2 * output)


def other_stride(model: nn.Module) -> None:
    model.first.stride = (2, 2)
    model.pool = nn.Identity()


CHANGES = (other_activation, other_attribute, other_block, hooked, other_stride)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_noticed(change: object) -> None:
    model, x = convolutional(), images().detach()
    explain = lrp.compile(model, backend="eager")
    before, _ = explain(x)
    change(model)
    after = explain(x)
    assert not torch.equal(before, after[0])
    assert is_same(after, uncompiled(model, x))


def test_another_shape_or_dtype_is_traced_anew() -> None:
    model, x = convolutional(), images().detach()
    explain = lrp.compile(model, backend="eager")
    for n in (2, 5, 2):
        assert is_same(explain(images(n).detach()), uncompiled(model, images(n).detach()))
    assert len(explain._traces) == 2
    model.float()
    output, relevance = explain(x.float())
    assert output.dtype == relevance.dtype == torch.float32
    assert is_same((output, relevance), uncompiled(model, x.float()))


def test_training_mode_is_noticed() -> None:
    model, x = convolutional(), images().detach()
    explain = lrp.compile(model, backend="eager")
    explain(x)
    model.train()
    with pytest.warns(lrp.RelevanceWarning, match="training mode"):
        explain(x)


@pytest.mark.parametrize("form", FORMS)
def test_functions_that_are_asked_for_a_limit(form: str) -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 2)))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert is_same(lrp.compile(model, form=form, backend="eager")(x), uncompiled(model, x, form=form))


def test_several_inputs_and_a_function() -> None:
    w = torch.randn(3, 4, dtype=torch.float64)

    def function(a: Tensor, index: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a[index] @ w.T) + b

    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    output, (of_a, of_b) = lrp.compile(function, backend="eager")(a, torch.tensor([3, 1]), b)
    xs = a.requires_grad_(), b.requires_grad_()
    y = lrp.convert(function)(xs[0], torch.tensor([3, 1]), xs[1], explain=True)
    y.backward(y.detach())
    assert torch.equal(output, y.detach())
    assert torch.equal(of_a, a.grad)
    assert torch.equal(of_b, b.grad)


def test_inputs_and_model_are_what_they_were() -> None:
    model, x = convolutional(), images().detach()
    lrp.compile(model, backend="eager")(x, target=0)
    assert x.grad is None
    assert not x.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Branching(nn.Module):
    """A model whose path depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h if h.sum() > 0 else 2 * h


def test_a_path_that_depends_on_values_is_named_with_its_line() -> None:
    explain = lrp.compile(Branching(), backend="eager")
    named = rf"path depends on values, in .*{Path(__file__).name}:\d+ \(return h if h.sum\(\) > 0 else 2 \* h\)"
    with pytest.raises(NotImplementedError, match=named):
        explain(torch.randn(2, 3))


def test_errors_are_those_of_a_forward() -> None:
    with pytest.raises(ValueError, match="form='both'"):
        lrp.compile(plain(), form="both")
    with pytest.raises(ValueError, match="nonsense"):
        lrp.compile(plain(), rule="nonsense")
    explain = lrp.compile(convolutional(), form="gradient", rule=lrp.Composite({"last": Flat()}), backend="eager")
    with pytest.raises(ValueError, match=re.escape("'block.conv', Flat() if last, else Epsilon(")):
        explain(images().detach())
    explain = lrp.compile(Branching(), backend="eager")
    with pytest.raises(ValueError, match="'x' is not finite"):
        explain(torch.randn(2, 3) * torch.inf)
    with pytest.raises(TypeError, match=r"'x' is of torch\.int64"):
        explain(torch.ones(2, 3, dtype=torch.int64))


def test_it_explains_under_no_grad() -> None:
    model, x = plain(), images(2, 1, 6).detach()
    explain = lrp.compile(model, backend="eager")
    with torch.no_grad():
        assert is_same(explain(x), uncompiled_with_grad(model, x))
    with pytest.raises(ValueError, match="is not finite"):  # also where it was traced before
        explain(x * torch.nan)


def uncompiled_with_grad(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        return uncompiled(model, x)


def test_one_tensor_must_be_given_and_one_index_for_each_sample() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match="the model gives a tuple; it must give one tensor"):
        lrp.compile(lambda t: (t, t), backend="eager")(x)
    with pytest.raises(ValueError, match=r"target= has shape \(3,\): must be one index for each sample"):
        lrp.compile(nn.Linear(3, 3), backend="eager")(x, target=torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="is compiled"):
        lrp.compile(torch.compile(nn.Linear(3, 3)))


def test_modes_and_options_reach_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiler(graph: object, **settings: object) -> object:
        asked.append(settings)
        return graph

    monkeypatch.setattr(torch, "compile", compiler)
    x = torch.randn(2, 3)
    lrp.compile(nn.Linear(3, 3), mode="reduce-overhead")(x)
    lrp.compile(nn.Linear(3, 3), backend="aot_eager", options={"a": 1})(x)
    lrp.compile(nn.Linear(3, 3))(x)
    assert asked == [
        {"backend": "inductor", "mode": "reduce-overhead", "options": None},
        {"backend": "aot_eager", "mode": None, "options": {"a": 1}},
        {"backend": "inductor", "mode": None, "options": {"layout_optimization": False}},
    ]
