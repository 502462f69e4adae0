"""Bad input: an error that names the argument, its value and what would be right."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import networks
import pytest
import torch

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, PatternAttribution, PatternNet, Rule, ZBox, ZPlus

VALUES = [
    (lambda: AlphaBeta(2, 2), ValueError, r"alpha=2, beta=2: alpha - beta must be 1, so beta=1"),
    (lambda: AlphaBeta(0.5, -0.5), ValueError, r"alpha=0.5: must be finite and at least 1"),
    (lambda: AlphaBeta(1e30, 1e30), ValueError, r"alpha - beta must be 1"),
    (lambda: Epsilon(10**400), ValueError, r"must be finite"),
    (lambda: AlphaBeta("2", 1), TypeError, r"alpha='2': must be a number"),
    (lambda: Epsilon(-0.1), ValueError, r"epsilon=-0.1: must be finite and at least 0"),
    (lambda: Epsilon(float("nan")), ValueError, r"epsilon=nan: must be finite"),
    (lambda: Epsilon(0.1, exponent=0), ValueError, r"exponent=0: must be a positive integer"),
    (lambda: Epsilon(0.1, exponent=1.5), ValueError, r"exponent=1.5: must be a positive integer"),
    (lambda: Gamma(-1), ValueError, r"gamma=-1: must be finite and at least 0"),
    (lambda: ZPlus(bias="keep"), ValueError, r"bias='keep': choose one of 'absorb', 'ignore', 'distribute'"),
    (lambda: ZBox(1, -1), ValueError, r"low=1, high=-1: low must not be above high"),
    (lambda: ZBox(torch.tensor([0.0, 2.0]), 1.0), ValueError, r"low must not be above high"),
    (lambda: ZBox(torch.zeros(2), torch.ones(3)), ValueError, r"low of shape \(2,\) and high of shape \(3,\)"),
    (lambda: ZBox("0", 1), TypeError, r"low='0': must be a number or a tensor"),
    (lambda: Flat(gamma=0.1), TypeError, r"unexpected keyword argument 'gamma'"),
]


@pytest.mark.parametrize(("make", "error", "message"), VALUES, ids=[message for _, _, message in VALUES])
def test_rules_validate_themselves(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


RULES = [
    ("epsilom", ValueError, r"rule='epsilom' is unknown: did you mean 'epsilon'\? the keys are 'gradient', 'epsilon'"),
    ("???", ValueError, r"rule='\?\?\?' is unknown: the keys are"),
    (Epsilon, TypeError, r"rule=Epsilon: this is the class; write Epsilon\(...\)"),
    (0.1, TypeError, r"rule=0.1: must be a key such as 'epsilon', or a lrp.Rule"),
    ("patternnet", ValueError, r"rule=PatternNet\(pattern=None\) needs pattern="),
    (ZBox(torch.zeros(5, 1, 1), 1.0), ValueError, r"low: shape \(5, 1, 1\) does not broadcast to the input's"),
]


@pytest.mark.parametrize(("rule", "error", "message"), RULES, ids=[message for _, _, message in RULES])
def test_rules_that_do_not_fit_the_model(rule, error, message) -> None:  # type: ignore[no-untyped-def]
    model, x = networks.plain(), networks.images(channels=1, size=6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        model(x, explain=True, rule=rule).sum().backward()
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x, explain=True), model(x))


def test_a_model_that_cannot_be_explained_as_asked() -> None:
    model, x = networks.plain(), networks.images(channels=1, size=6)
    with pytest.raises(ValueError, match=r"explain=True needs an input that requires grad: call x.requires_grad_\(\)"):
        model(x.detach(), explain=True)
    with torch.no_grad(), pytest.raises(ValueError, match=r"explain=True under torch.no_grad\(\)"):
        model(x, explain=True)
    with torch.inference_mode(), pytest.raises(ValueError, match="explain=True under"):
        model(x, explain=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'rulle'"):
        model(x, explain=True, rulle="epsilon")
    with pytest.raises(TypeError, match="unexpected keyword argument 'expalin'"):
        model[0](x, expalin=True)


def test_bounds_of_each_pixel_do_not_go_with_padding_that_has_values() -> None:
    layer, x = lrp.Conv2d(1, 2, 3, padding=1, padding_mode="reflect").double(), networks.images(channels=1, size=6)
    layer(x, explain=True, rule=ZBox(torch.full((1, 1, 1), -5.0), 5.0)).sum().backward()
    with pytest.raises(ValueError, match="where padding_mode pads the input first, give a number"):
        layer(x, explain=True, rule=ZBox(torch.full((6, 6), -5.0), 5.0)).sum().backward()


def test_patterns_that_do_not_fit() -> None:
    model, x = networks.plain(), networks.images(channels=1, size=6)
    good = [model[i].weight.detach() for i in (0, 2, 5)]
    with pytest.raises(ValueError, match=r"pattern= has none for layer '5', number 3"):
        model(x, explain=True, rule="patternnet", pattern=good[:2])
    with pytest.raises(ValueError, match=r"pattern= has 4 patterns for 3 layers: \['0', '2', '5'\]"):
        model(x, explain=True, rule="patternnet", pattern=[*good, good[0]])
    with pytest.raises(ValueError, match=r"pattern= has shape \(3, 1, 3, 3\) for layer '2': must be \(4, 3, 2, 2\)"):
        model(x, explain=True, rule="patternnet", pattern=[good[0], good[0], good[2]])
    with pytest.raises(ValueError, match=r"pattern= has none for layer '2'"):
        model(x, explain=True, rule="patternnet", pattern={"0": good[0]})
    with pytest.raises(ValueError, match=r"pattern of shape \(2, 2\): the weight's shape is \(2, 16\)"):
        model(x, explain=True, rule=PatternNet(torch.ones(2, 2)))[0, 0].backward()


@pytest.mark.parametrize(("key", "pattern_of"), [("patternnet", torch.clone), ("patternattribution", torch.ones_like)])
def test_patterns_that_make_the_plain_gradient(key, pattern_of) -> None:  # type: ignore[no-untyped-def]
    model, x = networks.plain(), networks.images(channels=1, size=6)
    patterns = {name: pattern_of(model.get_submodule(name).weight.detach()) for name in ("0", "2", "5")}
    expected = torch.autograd.grad(model(x)[:, 0].sum(), x)[0]
    for pattern in (patterns, list(patterns.values())):
        y = model(x, explain=True, rule=key, pattern=pattern)
        assert networks.error(torch.autograd.grad(y[:, 0].sum(), x)[0], expected) < 1e-14


def test_rules_print_compare_copy_and_pickle() -> None:
    own = [Epsilon(0.2, 3, bias="ignore"), ZBox(-1.0, torch.ones(2)), ZPlus(epsilon=0.5), PatternNet(torch.ones(2))]
    for rule in [*lrp.rules.KEYS.values(), *own]:
        assert pickle.loads(pickle.dumps(rule)) == rule == copy.deepcopy(rule)
        assert hash(rule) == hash(copy.deepcopy(rule))
        with pytest.raises(FrozenInstanceError):
            rule.epsilon = 1.0
    assert repr(Epsilon(0.2, bias="ignore")) == "Epsilon(epsilon=0.2, exponent=1, bias='ignore')"
    assert repr(ZBox(-1.0, torch.ones(2))) == "ZBox(low=-1.0, high=<tensor of shape (2,)>)"
    assert eval(repr(AlphaBeta(2, 1, bias="absorb"))) == AlphaBeta(2, 1, bias="absorb")
    assert Epsilon(0.1) != Epsilon(0.2)
    assert Epsilon(0.1) != Gamma(0.1)
    assert ZBox(0.0, torch.ones(2)) != ZBox(0.0, torch.zeros(2))
    assert PatternNet(torch.ones(2)) != PatternAttribution(torch.ones(2))
    assert replace(Gamma(0.1), gamma=0.5) == Gamma(0.5)
    assert len({Epsilon(0.1), Epsilon(0.1), Epsilon(0.2)}) == 2


@pytest.mark.parametrize(("result", "found"), [
    (lambda x: None, "NoneType"), (lambda x: 1.0, "float"), (lambda x: (x,), "tuple"),
    (lambda x: x[:1], r"shape \(1, 3\)"),
])  # fmt: skip
def test_a_rule_of_ones_own_that_returns_something_else_is_named(result, found) -> None:  # type: ignore[no-untyped-def]
    class Own(Rule):
        def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
            return result(x)

    y = lrp.Linear(3, 2)(torch.rand(2, 3, requires_grad=True), explain=True, rule=Own())
    with pytest.raises(TypeError, match=rf"Own\(\)\.redistribute\(\) returned {found}: must be a tensor of shape"):
        y.sum().backward()
