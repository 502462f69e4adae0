"""Which rule goes where: selectors, their order, and what is said of those that match nothing."""

import copy
import pickle

import pytest
import torch
from networks import UNet, convolutional, error, images, randomize, relevance
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp import Composite
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Pass, ZBox, ZPlus


class Branches(nn.Module):
    """Two layers meet the data, and the one that is registered first is called last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(4, 6)
        self.middle = nn.Linear(6, 6)
        self.aux = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scaled = (x - 0.5) / 2
        hidden = F.relu(self.left(scaled) + self.right(scaled))
        hidden = self.middle(self.middle(hidden)).relu()
        return {"out": self.head(hidden), "aux": self.aux(hidden)}


def branches() -> tuple[nn.Module, Tensor]:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lrp.convert(randomize(Branches())), x.requires_grad_()


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("left", {"left"}),
        ("[lr]*t", {"left", "right"}),
        ("*", {"left", "right", "middle", "middle#2", "head", "aux"}),
        ("middle#2", {"middle#2"}),
        ("linear", {"left", "right", "middle", "middle#2", "head", "aux"}),
        ("first", {"left", "right"}),
        ("last", {"head", "aux"}),
        ("activation", {"relu", "relu#2"}),
        ("sum", {"sub", "add"}),
        (nn.Linear, {"left", "right", "middle", "middle#2", "head", "aux"}),
        (nn.ReLU, {"relu", "relu#2"}),
        (lambda place: place.module is not None and place.module.out_features == 3, {"aux"}),
        (lambda place: place.function == "relu" and place.number == 2, {"relu#2"}),
    ],
)
def test_selectors(selector, names) -> None:  # type: ignore[no-untyped-def]
    model, x = branches()
    rule = AlphaBeta(3, 2)
    resolved = Composite([(selector, rule)]).resolve(model, x)
    assert list(resolved) == ["sub", "left", "right", "add", "relu", "middle", "middle#2", "relu#2", "head", "aux"]
    assert {name for name, chosen in resolved.items() if chosen == rule} == names


def test_the_first_match_wins_and_the_default_has_companions() -> None:
    model, x = branches()
    composite = Composite({"left": "zplus", "first": "flat", "last": Gamma(0.5), "linear": Epsilon(0.2)}, Gradient())
    resolved = composite.resolve(model, x.detach())
    assert resolved["left"] == ZPlus()
    assert resolved["right"] == Flat()
    assert resolved["head"] == resolved["aux"] == Gamma(0.5)
    assert resolved["middle"] == resolved["middle#2"] == Epsilon(0.2)
    assert resolved["relu"] == resolved["add"] == Gradient()
    assert Composite({}).resolve(model, x)["relu"] == Pass()


def test_a_row_after_last_holds_for_the_others() -> None:
    model, x = branches()
    resolved = Composite([("last", ZPlus()), ("head", Flat()), ("middle", Flat())]).resolve(model, x)
    assert resolved["head"] == ZPlus()
    assert resolved["middle"] == Flat()


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha2beta1"])
def test_a_table_of_one_rule_is_that_rule(rule: str) -> None:
    model, x = convolutional(), images()
    expected = relevance(model, x, rule)
    assert torch.equal(relevance(model, x, Composite({}, rule)), expected)
    table = {"last": rule, "first": rule, "conv": rule}
    assert torch.equal(relevance(model, x, Composite(table, rule)), expected)


def test_a_composite_is_its_rules_layer_by_layer() -> None:
    """Each layer explained by itself with the rule that the table gives it."""
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    table = {"first": ZBox(-3.0, 3.0), "last": Epsilon(0.3), "linear": Gamma(0.2)}
    actual = torch.autograd.grad(lrp.convert(model)(x, explain=True, rule=Composite(table)).sum(), x)[0]
    inputs = [x]
    for layer in model:
        inputs.append(layer(inputs[-1]))
    R = torch.ones_like(inputs[-1])
    for index, rule in ((4, table["last"]), (2, table["linear"]), (0, table["first"])):
        value = inputs[index].detach().requires_grad_()
        z = lrp.functional.linear(value, model[index].weight, model[index].bias, rule=rule)
        (R,) = torch.autograd.grad(z, value, R)
    assert error(actual, R) < 1e-12


def test_selectors_that_match_nothing_are_errors_with_the_names() -> None:
    model, x = branches()
    for selector in ("lef", "features.*", nn.Conv2d, lambda place: False):
        with pytest.raises(ValueError, match="matches nothing; the layers are sub, left, right, add, relu, middle"):
            model(x, explain=True, rule=Composite([(selector, ZPlus())]))
    model(x, explain=True, rule=Composite([("conv", ZPlus()), ("norm", Pass()), ("max_pool", ZPlus())]))


def test_a_batch_norm_that_merges_has_no_row_of_its_own() -> None:
    model = lrp.convert(randomize(UNet()))
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="BatchNorm2d matches nothing"):
        model(x, explain=True, rule=Composite({nn.BatchNorm2d: "zplus"}))
    resolved = Composite({nn.GroupNorm: "zplus", "join.*": "flat"}).resolve(model, x)
    assert resolved["down.0.3"] == resolved["join.1.3"] == ZPlus()
    assert resolved["join.1.0"] == Flat()


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"first": "epsilom"}, ValueError, "did you mean 'epsilon'"),
        ({"first": Epsilon}, TypeError, "this is the class"),
        ({3: "epsilon"}, TypeError, "the selector 3: must be"),
        ({Epsilon: "epsilon"}, TypeError, "must be a layer's name"),
        ({"first": Composite({})}, TypeError, "not a Composite"),
        ([("conv", "epsilon"), ("conv", "zplus")], ValueError, "conv stands twice"),
    ],
)
def test_bad_tables(table, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        Composite(table)


def test_composites_compare_copy_pickle_and_print() -> None:
    composite = Composite({"first": ZBox(-1.0, 1.0), nn.Conv2d: ZPlus()}, default="gamma")
    for other in (copy.deepcopy(composite), pickle.loads(pickle.dumps(composite)), composite.updated({})):
        assert other == composite
        assert hash(other) == hash(composite)
    changed = composite.updated({"first": Flat(), "last": Epsilon(0.5)}, default=Epsilon())
    assert changed.table == (("last", Epsilon(0.5)), ("first", Flat()), (nn.Conv2d, ZPlus()))
    assert changed != composite
    assert composite.table[0] == ("first", ZBox(-1.0, 1.0))
    rows = ["first      ZBox(low=-1.0, high=1.0)", "Conv2d     ZPlus()", "otherwise  Gamma(gamma=0.1)"]
    assert str(composite) == "\n  ".join(["Composite", *rows])


def test_flat_until_a_layer() -> None:
    names = ["first", "block.conv"]
    composite = Composite([(lambda place: place.name in names, Flat())], default="zplus")
    resolved = composite.resolve(convolutional(), images())
    assert [name for name, rule in resolved.items() if rule == Flat()] == names


def test_patterns_in_a_composite() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    composite = Composite({"last": "patternattribution"}, default="epsilon")
    patterns = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    y = lrp.convert(model)(x, explain=True, rule=composite, pattern=patterns)
    by_hand = lrp.convert(model)(x, explain=True, rule=Composite({"2": lrp.rules.PatternAttribution(patterns[1])}))
    assert torch.equal(*(torch.autograd.grad(z.sum(), x)[0] for z in (y, by_hand)))
    with pytest.raises(ValueError, match="needs pattern="):
        lrp.convert(model)(x, explain=True, rule=composite)


def test_max_pools_in_proportion() -> None:
    model = nn.Sequential(nn.MaxPool2d(3, 2, padding=1, ceil_mode=True))
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64).requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=Composite({"max_pool": Epsilon(0)}))
    assert torch.equal(y, model(x))
    averaged = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
    R = torch.randn_like(y)
    expected = x.detach() * torch.autograd.grad(averaged, x, R / averaged.detach())[0]
    assert error(torch.autograd.grad(y, x, R)[0], expected) < 1e-12
    with pytest.warns(lrp.RelevanceWarning, match="max_pool2d"):
        lrp.convert(nn.MaxPool2d(2, dilation=2))(x, explain=True, rule=Composite({"max_pool": Epsilon(0)}))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU])
def test_rules_of_activations(activation: type, inplace: bool) -> None:
    model = lrp.convert(nn.Sequential(nn.Identity(), activation(inplace=inplace)))
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    R = torch.randn(50, dtype=torch.float64)
    slope = torch.autograd.grad(activation()(x).sum(), x)[0]
    positive = R.clamp(min=0)
    expected = {"gradient": R * slope, Pass(): R, "guided_backprop": positive * slope, "deconvnet": positive}
    for rule, passed in expected.items():
        start = x * 1.0  # what works in place works on this
        y = model(start, explain=True, rule=rule if isinstance(rule, str) else Composite({"activation": rule}))
        assert torch.equal(y, activation()(x))
        assert torch.allclose(torch.autograd.grad(y, x, R)[0], passed), rule


def test_pass_needs_one_shape() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"one shape; this one's are \(2, 4\), \(2, 3\)"):
        lrp.Linear(4, 3)(x, explain=True, rule=Pass()).sum().backward()
