"""Gradient form: the same maps as in relevance form, or a refusal by name."""

import threading
import warnings
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from generators import KNOWN_TO_FAIL
from generators.checks import Expectation, distance, explained, largest
from generators.drawing import KINDS, random_network
from networks import UNet, convolutional, error, gradient_times_input, images, plain, randomize, relevance
from oracles.cases import CASES
from oracles.detached import detached
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lrp
from lrp.engine.backward.kept import TELLS_HOOKS
from lrp.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Pass,
    PatternNet,
    Proportional,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)

EXACT = {family: Proportional(epsilon=0.0) for family in ("pool", "sum", "norm")}
RULES = {
    "epsilon 0": Epsilon(0.0),
    "epsilon": Epsilon(0.1),
    "relative": Epsilon(0.25, relative=True),
    "ignore": Epsilon(1e-3, bias="ignore"),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25),
    "generalized": Gamma(0.25, generalized=True),
    "alpha2beta1": AlphaBeta(2, 1),
    "absorb": AlphaBeta(2, 1, bias="absorb"),
    "conserve": AlphaBeta(2, 1, conserve=True),
}
FIRST = {"gradient": Gradient(), "flat": Flat(), "wsquare": WSquare(), "zbox": ZBox(-5.0, 5.0)}
COMPOSITES = {
    **{name: lrp.Composite(EXACT, default=rule) for name, rule in RULES.items()},
    **{f"{name} first": lrp.Composite({"first": rule, **EXACT}, default=ZPlus()) for name, rule in FIRST.items()},
    "last": lrp.Composite({"last": Epsilon(0.0), "conv": Gamma(0.25), **EXACT}, default=Epsilon(0.1)),
    "max pool": lrp.Composite({"max_pool": Proportional(epsilon=0.0), **EXACT}, default=Epsilon(0.0)),
}


def both(model: nn.Module, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The map in relevance form, and in gradient form."""
    return relevance(model, x, rule, strict=True), relevance(model, x, rule, form="gradient", strict=True)


class Gated(nn.Module):
    """Blocks with norms and gates, a position that is added, a token, residual sums."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.embed, self.gate, self.up, self.down = nn.Linear(3, n), *(nn.Linear(n, n) for _ in range(3))
        self.norm, self.position, self.token = (
            nn.LayerNorm(n),
            nn.Parameter(torch.randn(5, n)),
            nn.Parameter(torch.randn(n)),
        )
        self.head = nn.Linear(n, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = torch.cat([self.token.expand(len(h), 1, -1), h], 1) + self.position
        for _ in range(2):
            normed = self.norm(h)
            h = h + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return self.head(h.mean(1) + h.amax(1))


NETWORKS = {
    "plain": (plain, lambda: images(channels=1, size=6)),
    "convolutional": (convolutional, images),
    "in place": (lambda: convolutional(True), images),
    "unet": (lambda: randomize(nn.Sequential(UNet(), nn.Flatten(), nn.Linear(256, 3))), lambda: images(2, 3, 8)),
    "gated": (lambda: randomize(Gated()), lambda: torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_both_forms_have_one_map(network: str, name: str) -> None:
    make, inputs = NETWORKS[network]
    expected, actual = both(lrp.convert(make()), inputs(), COMPOSITES[name])
    assert error(actual, expected) < 1e-9


@pytest.mark.parametrize("network", ["plain", "convolutional", "in place"])
def test_epsilon_to_zero_is_gradient_times_input(network: str) -> None:
    make, inputs = NETWORKS[network]
    model, x = lrp.convert(make()), inputs()
    assert error(relevance(model, x, Epsilon(0.0), form="gradient"), gradient_times_input(model, x)) < 1e-10


def test_epsilon_to_zero_is_the_detached_network() -> None:
    model = randomize(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(),
            nn.Linear(256, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3),
        )
    )  # fmt: skip
    x = images()
    expected = gradient_times_input(detached(model), x)
    assert error(relevance(lrp.convert(model), x, Epsilon(0.0), form="gradient"), expected) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_have_one_map_in_both_forms(kind: str) -> None:
    found: Counter[str] = Counter()
    for number in range(100):
        case, program = random_network(kind, number, KNOWN_TO_FAIL)
        found[_compared(case, program)] += 1
    assert found["right"] >= 40, found


def _compared(case: str, program: object) -> str:
    """Whether the gradient form of a random program is refused, or what its relevance form is."""
    rule, model, inputs = CASES[case].rule, program.build().requires_grad_(True), program.inputs()
    try:
        expected = explained(model, inputs, rule)
    except (Exception, lrp.RelevanceWarning):
        return "not explained"
    if isinstance(expected, str) or largest(expected) < 1e-9:
        return "nothing"
    try:
        actual = explained(model, inputs, rule, form="gradient")
    except (ValueError, NotImplementedError) as refusal:
        if "form='gradient'" not in str(refusal):
            raise
        return "refused"
    assert not isinstance(actual, str), f"{actual}\n{program}"
    off = distance(actual, expected)
    if off >= 1e-9 and Expectation(program, case).maps is None:
        return "unstable"
    assert off < 1e-9, f"{case}: {off}\n{program}"
    return "right"


# which rules


NO_FORM = {
    "flat": Flat(),
    "wsquare": WSquare(),
    "zbox": ZBox(-1.0, 1.0),
    "distribute": Epsilon(0.1, bias="distribute"),
    "exponent": Epsilon(0.1, exponent=2),
    "gradient": Gradient(),
    "pattern": PatternNet(torch.zeros(3, 3)),
    "pass": Pass(),
}


@pytest.mark.parametrize("name", NO_FORM)
def test_a_rule_without_the_form_is_named_with_its_layer(name: str) -> None:
    model = randomize(lrp.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"form='gradient': the rule of '2', \w+\(.*take form='relevance'"):
        model(x, explain=True, rule=lrp.Composite({"2": NO_FORM[name]}), form="gradient")


@pytest.mark.parametrize("rule", [Gradient(), Deconvnet(), Flat()])
def test_nor_has_an_activation_such_a_rule(rule: Rule) -> None:
    model = randomize(lrp.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"form='gradient': the rule of 'relu'"):
        model(x, explain=True, rule=lrp.Composite({"activation": rule}), form="gradient")


@dataclass(frozen=True)
class Own(Rule):
    """Relevance in proportion to absolute contributions, in both forms."""

    def redistribute(self, f, x, w, b, z, R):
        return x.abs() * self._shared(f, x, w, R)

    def gradient_form(self, f, x, w, b, z, g):
        return torch.sign(x) * self._shared(f, x, w, g * z)

    @staticmethod
    def _shared(f, x, w, R):
        return f.pullback_modified(R / f.forward_modified(x.abs(), torch.abs, w), torch.abs, w)


def test_a_rule_of_ones_own() -> None:
    expected, actual = both(lrp.convert(convolutional()), images(), lrp.Composite(EXACT, default=Own()))
    assert error(actual, expected) < 1e-9


def test_a_rule_that_shares_in_a_way_of_its_own_has_no_form_that_it_does_not_define() -> None:
    class Doubled(Epsilon):
        def redistribute(self, f, x, w, b, z, R):
            return 2 * super().redistribute(f, x, w, b, z, R)

    assert Epsilon().has_gradient_form
    assert not Doubled().has_gradient_form
    assert not Doubled().is_gradient


def test_only_the_forms_that_there_are() -> None:
    model, x = plain(), images(channels=1)
    with pytest.raises(ValueError, match="form='Gradient': must be 'relevance' or 'gradient'"):
        model(x, explain=True, form="Gradient")
    with pytest.raises(ValueError, match="only form='relevance' can be differentiated"):
        model(x, explain=True, form="gradient", differentiable=True)


# functions


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def between(function: object, rule: str = "epsilon 0") -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    return both(lrp.convert(randomize(Between(function))), x, COMPOSITES[rule])


WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FUNCTIONS = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "leaky_relu in place": lambda h: F.leaky_relu(h, 0.1, inplace=True),
    "tanh in place": lambda h: h.tanh_(),
    "overwritten after it was saved": lambda h: (lambda a: a.mul_(2.0) + h)(torch.tanh(h)),
    "square": torch.square,
    "a constant gate": lambda h: h * torch.sigmoid(torch.ones(6, dtype=torch.float64)),
    "a gate": lambda h: h * torch.sigmoid(h),
    "halves": lambda h: h * torch.roll(h, 1, -1),
    "by itself": lambda h: h * h,
    "by its values in place": lambda h: (lambda a: a.mul_(a.detach()))(h + h.flip(-1)),
    "halves in place": lambda h: (lambda a: a.mul_(h))(h + h.flip(-1)),
    "a quotient": lambda h: h / (h.square().sum(-1, keepdim=True) + 1),
    "an inverse": lambda h: 1 / h,
    "a constant over it": lambda h: (WEIGHT[:2, None] / h).sum(0),
    "over itself": lambda h: h / h,
    "normalized": lambda h: F.normalize(h, dim=-1),
    "norm": lambda h: h * 0 + torch.linalg.vector_norm(h, dim=-1, keepdim=True),
    "softmax": lambda h: torch.softmax(h, -1) + h,
    "layer norm": lambda h: F.layer_norm(h, (6,)),
    "rms norm": lambda h: F.rms_norm(h, (6,), eps=1e-6),
    "group norm": lambda h: F.group_norm(h, 2),
    "max": lambda h: torch.maximum(h, h.flip(-1)),
    "sum": lambda h: torch.add(h, h.flip(-1), alpha=-0.5),
    "a term that counts negative": lambda h: h - (-1.0) * h,
    "lerp": lambda h: torch.lerp(h, h.flip(-1), 0.3),
    "cumsum": lambda h: h.cumsum(-1),
    "index_add": lambda h: h.index_add(1, torch.tensor([0, 0, 3]), h[:, :3]),
    "addcmul": lambda h: torch.addcmul(h, h, h.flip(-1), value=0.5),
    "into a product in place": lambda h: torch.ones(3, 6, dtype=torch.float64).addmm_(h, WEIGHT),
    "a product with a weight": lambda h: h @ WEIGHT * torch.linspace(1, 2, 6).double() + 0.5,
    "a constant": lambda h: h + torch.linspace(-1, 1, 6, dtype=torch.float64),
    "written into a buffer": lambda h: torch.zeros(len(h), 6, dtype=torch.float64).index_copy_(1, torch.arange(6), h),
    "a view": lambda h: h.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6),
}


@pytest.mark.parametrize("rule", ["epsilon 0", "epsilon", "zplus"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, rule: str) -> None:
    expected, actual = between(FUNCTIONS[name], rule)
    assert error(actual, expected) < 1e-9


@pytest.mark.parametrize("function", [torch.sigmoid, torch.exp, F.softplus, torch.cos])
def test_a_function_that_makes_something_of_nothing_is_named(function: object) -> None:
    with pytest.raises(NotImplementedError, match=rf"form='gradient': there is none for {function.__name__} \(after"):
        between(function)


def test_so_is_a_gate_that_is_overwritten() -> None:
    """For all that is known, relevance may reach it."""
    with pytest.raises(
        NotImplementedError, match=r"form='gradient': there is none for sigmoid .* or which works in place"
    ):
        between(lambda h: torch.sigmoid(h).mul_(h))


@pytest.mark.parametrize("write", [lambda h: h.data.sub_(1.5), lambda h: h.detach().numpy().__isub__(1.5)])
def test_what_is_written_unseen_is_refused(write: object) -> None:
    def written(h: Tensor) -> Tensor:
        h = torch.tanh(h)
        write(h)
        return h

    with pytest.raises(NotImplementedError, match=r"form='gradient': a tensor of shape \(3, 6\) was written to"):
        between(written)


def test_but_not_where_relevance_does_not_reach_it() -> None:
    expected, actual = between(lambda h: h.detach() * torch.exp(h.detach()) + h)
    assert error(actual, expected) < 1e-9


@pytest.mark.parametrize("x", [[0.0, 0.0], [0.0, 1.0]])
def test_at_zero_an_activation_has_the_limit_of_its_ratio(x: list[float]) -> None:
    """A neuron that is zero has no relevance, but what its inputs get is no NaN."""
    model = lrp.Sequential(nn.Linear(2, 2, bias=False), nn.GELU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    data = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    y = model(data, explain=True, rule=Epsilon(0.0), form="gradient")
    y.backward(y.detach())
    assert torch.equal(data.grad, torch.tensor([[0.0, 1.0]]).double() * y.detach() * data.detach().sum(1, keepdim=True))


def test_plain_gradients_are_what_a_rule_takes_of_functions_without_one() -> None:
    model = lrp.convert(randomize(Between(lambda h: torch.logcumsumexp(h, -1))))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning, match="logcumsumexp"):
        model(x, explain=True, form="gradient")
    with pytest.raises(NotImplementedError, match="strict=True: there is no rule for the relevance of logcumsumexp"):
        model(x, explain=True, form="gradient", strict=True)


# where the data are


class Beside(nn.Module):
    """The data, in another unit and as they are, beside what layers have made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.3) / 0.7
        h = F.relu(self.a(x))
        h = self.b(torch.cat([h, x], -1)) + x
        h[:, :2] = x[:, 2:]
        h = torch.addmm(x, h, WEIGHT[:4, :4], beta=0.5) + torch.lerp(x, h, 0.3)
        return self.c(h * x)


@pytest.mark.parametrize("name", COMPOSITES)
def test_data_beside_what_layers_have_made(name: str) -> None:
    x = torch.rand(3, 4, dtype=torch.float64).add(0.5).requires_grad_()
    expected, actual = both(lrp.convert(randomize(Beside())), x, COMPOSITES[name])
    assert error(actual, expected) < 1e-9


@pytest.mark.parametrize("clamp", [lambda x: x.clamp(0, 1), lambda x: F.relu6(x + 3), torch.sigmoid])
def test_data_within_bounds_are_no_gate(clamp: object) -> None:
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(clamp(x) * self.a(x))

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected, actual = both(lrp.convert(randomize(Weighed())), x, COMPOSITES["epsilon 0"])
    assert error(actual, expected) < 1e-9


def test_what_layers_have_made_is_not_written_among_the_data() -> None:
    fc = randomize(nn.Linear(4, 4))

    def among(x: Tensor) -> Tensor:
        h = x.clone()
        h[:, :2] = fc(x)[:, :2]
        return fc(h)

    def sums_among(x: Tensor) -> Tensor:
        return fc(x.clone().addmm_(fc(x), WEIGHT[:4, :4]))

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for function, name in ((among, r"\[\] ="), (sums_among, "addmm_")):
        with pytest.raises(NotImplementedError, match=rf"{name} writes what layers have made among the data"):
            lrp.convert(function)(x, explain=True, form="gradient")


def test_a_model_without_layers_gives_what_it_is_given() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = lrp.convert(lambda t: t * 2.0)(x, explain=True, form="gradient")
    y.backward(y.detach())
    assert torch.equal(x.grad, y.detach())


# outputs, hooks, traces, checkpoints, norms


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Several(nn.Module):
    def __init__(self, kind: object) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 4), nn.Linear(4, 2), kind

    def forward(self, x: Tensor) -> object:
        h = F.relu(self.a(x))
        return self.kind(self.b(h), h)


KINDS_OF_OUTPUT = {
    "tuple": lambda y, h: (y, h),
    "dict": lambda y, h: {"logits": y, "hidden": [h]},
    "dataclass": lambda y, h: Output(y, (h,)),
    "named tuple": lambda y, h: torch.return_types.max((y, h)),
}


def parts(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    values = vars(output).values() if isinstance(output, Output) else values
    return [] if output is None else [t for value in values for t in (parts(value) if value is not None else [])]


@pytest.mark.parametrize("kind", KINDS_OF_OUTPUT)
def test_relevance_starts_at_each_output_as_it_is(kind: str) -> None:
    model = lrp.convert(randomize(Several(KINDS_OF_OUTPUT[kind])))
    maps = []
    for form in ("relevance", "gradient"):
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        output = model(x, explain=True, rule=Epsilon(1e-3), form=form)
        assert type(output) is type(model(x))
        y, h = parts(output)
        torch.autograd.backward([y, h], [torch.ones_like(y), 0.5 * h.detach()])
        maps.append(x.grad)
    assert error(maps[1], maps[0]) < 1e-12


def test_a_mask_at_a_hidden_tensor_masks() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            if h.requires_grad:
                h.register_hook(lambda R: R * torch.tensor([1.0, 0.0, 0.0, 1.0]).view(4, 1, 1))
            return self.fc(F.relu(self.norm(h)).flatten(1))

    for rule in (Epsilon(0.0), Epsilon(0.1), ZPlus()):
        expected, actual = both(lrp.convert(randomize(Masked())), images(), lrp.Composite(EXACT, default=rule))
        assert error(actual, expected) < 1e-9


@pytest.mark.parametrize("rule", ["epsilon 0", "epsilon", "gamma", "flat first"])
def test_a_trace_has_relevance_in_both_forms(rule: str) -> None:
    model, x, traces = convolutional(), images(), []
    for form in ("relevance", "gradient"):
        with lrp.trace.record() as found:
            relevance(model, x, COMPOSITES[rule], form=form)
        traces.append(found)
    assert [*traces[0]] == [*traces[1]]
    for name, expected in traces[0].items():
        assert torch.allclose(traces[1][name], expected, rtol=1e-9, atol=1e-12), name


def test_a_trace_that_is_asked_for_too_late_says_so() -> None:
    model, x = plain(), images(channels=1, size=6)
    y = model(x, explain=True, form="gradient")
    with lrp.trace.record(), pytest.raises(RuntimeError, match="call the model within the recording"):
        y.sum().backward()


@pytest.mark.skipif(not TELLS_HOOKS, reason="checkpoints are refused before torch 2.7")
@pytest.mark.parametrize("name", ["epsilon 0", "epsilon", "zplus"])
def test_checkpoints(name: str) -> None:
    a, b, c = (randomize(nn.Linear(4, 4), seed) for seed in range(3))

    def part(h: Tensor, x: Tensor) -> Tensor:
        return F.gelu(b(h)) + x

    def with_checkpoint(x: Tensor) -> Tensor:
        h = a(x) + x
        return c(checkpoint(part, h, x, use_reentrant=False) + checkpoint(lambda t: b(t) + x, h, use_reentrant=False))

    def without(x: Tensor) -> Tensor:
        h = a(x) + x
        return c(part(h, x) + b(h) + x)

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected, actual = (
        relevance(lrp.convert(model), x, COMPOSITES[name], form="gradient") for model in (without, with_checkpoint)
    )
    assert error(actual, expected) < 1e-12


@pytest.mark.parametrize("rule", [Epsilon(0.0), Epsilon(0.1)])
@pytest.mark.parametrize("n", [1, 3])
def test_the_gradient_of_a_batch_norm_that_is_transposed(rule: Rule, n: int) -> None:
    """torch's own, of a norm in eval mode on a CPU, is wrong for one sample whose gradient lies otherwise."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 3)
            self.alone = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.conv(x))
            h = h + self.alone(F.relu(h))
            return self.fc(h.flatten(2).transpose(1, 2)).mean(1)

    expected, actual = both(lrp.convert(randomize(Tokens())), images(n), lrp.Composite(EXACT, default=rule))
    assert error(actual, expected) < 1e-9


def test_threads_record_for_themselves() -> None:
    model, x = plain(), images(channels=1, size=6)
    with lrp.trace.record() as found:
        thread = threading.Thread(target=lambda: relevance(model, x, Epsilon(0.0), form="gradient"))
        thread.start()
        thread.join()
    assert not found


def test_parameters_get_nothing() -> None:
    model, x = convolutional(), images()
    relevance(model, x, Epsilon(0.0), form="gradient")
    y = model(x, explain=True, rule=Epsilon(0.1), form="gradient")
    y.sum().backward()
    assert all(p.grad is None for p in model.parameters())


# precision


class GatedBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_it_is_as_precise_as_a_gradient(dtype: torch.dtype, epsilon: float) -> None:
    """Of 12 gated blocks, against float64 and the same weights: at most 1.3 times the error of gradient times input."""
    model = nn.Sequential(nn.Linear(64, 64), *(GatedBlock(64) for _ in range(12)), nn.Linear(64, 4)).to(dtype)
    exact, x = lrp.convert(nn.Sequential(*model).double()), torch.randn(8, 64).to(dtype)
    wide = x.double().requires_grad_()
    expected_relevance = relevance(exact, wide, lrp.Composite(EXACT, default=Epsilon(epsilon)))
    expected_gradient = gradient_times_input(exact, wide)
    model.to(dtype)
    narrow = x.requires_grad_()
    actual = relevance(lrp.convert(model), narrow, Epsilon(epsilon), form="gradient")
    of_gradient = _off(gradient_times_input(model, narrow), expected_gradient)
    assert _off(actual, expected_relevance) < 1.3 * of_gradient


def _off(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def test_float16_does_not_overflow_where_the_gradient_does_not() -> None:
    """Activations from 1e-4 to 1e4."""
    sizes = torch.logspace(-4, 4, 32)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.GELU(), nn.Linear(32, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(sizes))
        model[2].weight.copy_(torch.randn(4, 32) / sizes)
    x = (torch.rand(3, 32) + 0.5).half().requires_grad_()
    model = model.half()
    assert gradient_times_input(model, x).isfinite().all()
    for rule in (Epsilon(0.0), Epsilon(1e-6), ZPlus(), Gamma(0.25)):
        actual = relevance(lrp.convert(model), x, rule, form="gradient")
        assert actual.isfinite().all()
        wide = relevance(lrp.convert(nn.Sequential(*model).double()), x.detach().double().requires_grad_(), rule)
        model.half()
        assert error(actual.double(), wide) < 0.02


class SoftmaxWithin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(torch.softmax(self.a(x), -1))).flatten(1)


@pytest.mark.parametrize("form", ["relevance", "gradient"])
def test_only_a_softmax_that_comes_last_is_told_of(form: str) -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relevance(convolutional(), images(), Epsilon(0.0), form=form)
        lrp.convert(randomize(SoftmaxWithin()))(x, explain=True, rule=Epsilon(0.0), form=form)
    head = lrp.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Unflatten(1, (2, 2))).double()
    with pytest.warns(lrp.RelevanceWarning, match="explain the logits"):
        head(x, explain=True, form=form)
