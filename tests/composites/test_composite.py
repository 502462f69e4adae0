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


class Merging(nn.Module):
    """Layers with the names of families, and batch norms that merge with them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Conv2d(3, 3, 1))
            self.add_module(f"{name}_norm", nn.BatchNorm2d(3))
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(f"{name}_norm")(self.get_submodule(name)(x)).relu()
        return x


def merging(*names: str) -> tuple[nn.Module, Tensor]:
    return lrp.convert(randomize(Merging(*names))), torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)


def test_the_last_layer_is_resolved_where_a_batch_norm_merges() -> None:
    model, x = merging("a", "b")
    composite = Composite({"last": Gamma(0.5)}, "zplus")
    assert composite.resolve(model, x) == {"a": ZPlus(), "relu": Pass(), "b": Gamma(0.5), "relu#2": Pass()}
    by_name = Composite({"b": Gamma(0.5)}, "zplus")
    assert torch.equal(relevance(model, x, composite), relevance(model, x, by_name))


@pytest.mark.filterwarnings("ignore:the model's output is a softmax:lrp.RelevanceWarning")
@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Identity(), nn.Softmax(1)])
def test_the_last_layer_may_have_a_norm_after_it(norm: nn.Module) -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), norm))
    resolved = Composite({"last": Flat()}).resolve(model, torch.rand(2, 3, dtype=torch.float64))
    assert [name for name, rule in resolved.items() if rule == Flat()] == ["2"]


@pytest.mark.parametrize("key", list(lrp.composites.KEYS))
def test_every_key_is_got_and_resolved(key: str) -> None:
    rule = lrp.rules.get(key)
    assert rule == lrp.composites.KEYS[key] == lrp.composites.get(key)
    model, x = branches()
    resolved = lrp.composites.resolve(key, model, x)
    assert resolved == lrp.composites.resolve(rule, model, x)
    names = ["sub", "left", "right", "add", "relu", "middle", "middle#2", "relu#2", "head", "aux"]
    assert list(resolved) == names
    if isinstance(rule, Composite):
        assert resolved == rule.resolve(model, x)
    else:
        assert resolved["head"] == rule


def test_keys_are_registered_once() -> None:
    lrp.rules.register({"epsilon": lrp.rules.KEYS["epsilon"]})
    with pytest.raises(ValueError, match="key='epsilon': names Epsilon"):
        lrp.rules.register({"epsilon": ZPlus()})
    with pytest.raises(TypeError, match="must be one rule, not a Composite such as EpsilonPlus"):
        Composite({"conv": "epsilon_plus"})


AMBIGUOUS = [("conv", ("conv", "b"), "conv"), ("first", ("a", "first"), "first"), ("last", ("last", "b"), "last")]
AMBIGUOUS += [("sum", ("sum",), "sum"), ("linear", ("linear", "b"), "linear"), ("max_pool", ("max_pool",), "max_pool")]


@pytest.mark.parametrize(("selector", "names", "layer"), AMBIGUOUS, ids=[selector for selector, *_ in AMBIGUOUS])
def test_a_family_that_is_a_layers_name_is_ambiguous(selector: str, names: tuple[str, ...], layer: str) -> None:
    model, x = merging(*names)
    with pytest.raises(ValueError, match=rf"the selector '{selector}' is ambiguous: .*Keyword\('{selector}'\)"):
        model(x, explain=True, rule=Composite({selector: Flat()}))
    with pytest.raises(ValueError, match="is ambiguous"):
        Composite({"*": ZPlus(), selector: Flat()}).resolve(model, x)
    by_name = Composite([(lambda place: place.name == layer, Flat())]).resolve(model, x)
    assert {name for name, rule in by_name.items() if rule == Flat()} == {layer}
    by_family = Composite({lrp.composites.Keyword(selector): Flat()}).resolve(model, x)
    families = {"conv": {*names}, "first": {names[0]}, "last": {names[-1]}}
    assert {name for name, rule in by_family.items() if rule == Flat()} == families.get(selector, set())


def test_a_name_that_means_what_it_says_is_not_ambiguous() -> None:
    for selector, names in (("conv", ("conv",)), ("first", ("first", "b")), ("last", ("a", "last"))):
        model, x = merging(*names)
        assert Composite({selector: Flat()}).resolve(model, x)[selector] == Flat()
        assert Composite([("conv", ZPlus()), ("last", Flat())] if selector == "last" else {}).resolve(model, x)


@pytest.mark.parametrize("key", sorted(lrp.composites.KEYS.keys() - lrp.rules.KEYS.keys()))
def test_named_composites_mean_families_whatever_the_layers_are_called(key: str) -> None:
    (model, x), (other, _) = merging("conv", "first", "last", "sum"), merging("a", "b", "c", "d")
    other.load_state_dict(dict(zip(other.state_dict(), model.state_dict().values(), strict=True)))
    assert torch.equal(relevance(model, x, key), relevance(other, x, key))
    changed = lrp.rules.get(key).updated({"conv": Flat()}) if "epsilon" in key else lrp.rules.get(key)
    assert torch.equal(relevance(model, x, changed), relevance(other, x, changed))


class Tied(nn.Module):
    """Layers that share a weight alone, all parameters, or are one module under two names; and a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.alias = self.one
        self.own_bias = nn.Linear(4, 4)
        self.own_bias.weight = self.one.weight
        self.free = nn.Linear(4, 4, bias=False)
        self.twin = nn.Linear(4, 4, bias=False)
        self.twin.weight = self.free.weight
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))] * 2)
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(self.free(self.own_bias(self.alias(self.one(x)))))
        return self.head(self.blocks[1](self.blocks[0](x)))


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("one", {"one", "one#2"}),
        ("alias", {"one", "one#2"}),
        ("alias#2", {"one#2"}),
        ("own_bias", {"own_bias"}),
        ("free", {"free", "free#2"}),
        ("twin", {"free", "free#2"}),
        ("blocks.0.*", {"blocks.0.0", "blocks.0.0#2"}),
        ("blocks.1.*", {"blocks.0.0", "blocks.0.0#2"}),
        ("head", {"embedding"}),
        ("embedding", {"embedding"}),
        (nn.Embedding, {"embedding"}),
        (nn.Linear, {"one", "one#2", "own_bias", "free", "free#2", "blocks.0.0", "blocks.0.0#2", "embedding"}),
    ],
)
def test_tied_layers_are_matched_by_each_of_their_names(selector, names) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 4, dtype=torch.float64)
    resolved = Composite([(selector, Flat())]).resolve(randomize(Tied()), x)
    assert {name for name, rule in resolved.items() if rule == Flat()} == names


def test_a_module_that_contains_itself_has_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module("again", nn.Identity())
    model.again.up = model
    model.forward = lambda x: model[0](x)
    assert list(lrp.composites.resolve("zplus", model, torch.rand(1, 4))) == ["0"]


MAXIMA = {
    "amax": lambda t: t.amax(1),
    "max(dim)": lambda t: t.max(1).values,
    "max(dim, keepdim)": lambda t: torch.max(t, -1, keepdim=True)[0],
    "max(dim=)": lambda t: t.max(dim=2)[0],
    "max()": lambda t: t.max(),
}


@pytest.mark.parametrize("name", MAXIMA)
def test_a_max_pool_row_reaches_maxima_over_dimensions(name: str) -> None:
    function = MAXIMA[name]
    mean = {"amax": (1,), "max(dim)": (1,), "max(dim, keepdim)": (-1,), "max(dim=)": (2,), "max()": ()}[name]
    x = torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_()
    y = lrp.convert(function)(x, explain=True, rule=Composite({"max_pool": Epsilon(0)}), strict=True)
    assert torch.equal(y, function(x))
    R, averaged = torch.randn_like(y), x.mean(mean, keepdim="keepdim)" in name)
    expected = x.detach() * torch.autograd.grad(averaged, x, R / averaged.detach())[0]
    assert error(torch.autograd.grad(y, x, R)[0], expected) < 1e-12
    winner = lrp.convert(function)(x, explain=True, strict=True)
    assert torch.equal(torch.autograd.grad(winner, x, R)[0], torch.autograd.grad(function(x), x, R)[0])


def test_values_that_are_handed_on_are_no_max_pools() -> None:
    half = torch.full((2, 3, 4), 0.5, dtype=torch.float64)
    for function in (lambda t: t.topk(2, 1).values, lambda t: torch.max(t, half), lambda t: t.max(other=half)):
        x = torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_()
        y = lrp.convert(function)(x, explain=True, rule=Composite({"max_pool": Epsilon(0)}), strict=True)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(function(x).sum(), x)[0])
