"""Products with a constant tensor, in all spellings, are linear layers: explained and fitted as such."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from oracles.patterns_reference import KINDS
from torch import Tensor, nn
from torch.nn import functional as F

import lrp


class Case(NamedTuple):
    """A product, and how its input and weight are those of a linear layer: rows of samples, and of neurons."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    x: tuple[int, ...]
    w: tuple[int, ...]
    samples: Callable[[Tensor], Tensor] = lambda x: x.reshape(-1, 4)
    rows: Callable[[Tensor], Tensor] = lambda w: w.T


def added_in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = x @ w
    z += b
    return z.clamp_(min=0)


CASES = {
    "matmul": Case(lambda x, w, b: x @ w + b, (6, 5, 4), (4, 3)),
    "method": Case(lambda x, w, b: b + x.matmul(w), (6, 5, 4), (4, 3)),
    "mm": Case(lambda x, w, b: torch.mm(x, mat2=w) + b, (9, 4), (4, 3)),
    "addmm": Case(lambda x, w, b: torch.addmm(b, x, w), (9, 4), (4, 3)),
    "in place": Case(added_in_place, (9, 4), (4, 3)),
    "one batch for all": Case(lambda x, w, b: x @ w + b, (6, 5, 4), (1, 4, 3), rows=lambda w: w[0].T),
    "from the left": Case(
        lambda x, w, b: w @ x + b[:, None], (6, 4, 5), (3, 4), lambda x: x.mT.reshape(-1, 4), lambda w: w
    ),
    "left of a matrix": Case(lambda x, w, b: w.mm(x) + b[:, None], (4, 9), (3, 4), lambda x: x.T, lambda w: w),
    "mv": Case(lambda x, w, b: torch.mv(x, w) + b, (9, 4), (4,), rows=lambda w: w[None]),
    "inner": Case(lambda x, w, b: torch.inner(x, w) + b, (6, 5, 4), (3, 4), rows=lambda w: w),
    "tensordot": Case(
        lambda x, w, b: torch.tensordot(x, w, ([1, 2], [1, 0])) + b, (9, 2, 4), (4, 2, 3),
        lambda x: x.reshape(9, 8), lambda w: w.permute(2, 1, 0).reshape(3, 8),
    ),
    "tensordot of two": Case(
        lambda x, w, b: torch.tensordot(x, w) + b, (9, 2, 4), (2, 4, 3),
        lambda x: x.reshape(9, 8), lambda w: w.reshape(8, 3).T,
    ),
    "einsum": Case(
        lambda x, w, b: torch.einsum("nchw, dc -> ndhw", x, w) + b[:, None, None], (2, 4, 3, 5), (3, 4),
        lambda x: x.movedim(1, -1).reshape(-1, 4), lambda w: w,
    ),
    "einsum with dots": Case(lambda x, w, b: torch.einsum("...i,io->...o", x, w) + b, (6, 5, 4), (4, 3)),
    "einsum without arrow": Case(lambda x, w, b: torch.einsum("...i,io", [x, w]) + b, (6, 5, 4), (4, 3)),
    "einsum of lists": Case(lambda x, w, b: torch.einsum(x, [0, 1, 2], w, [2, 3], [0, 1, 3]) + b, (6, 5, 4), (4, 3)),
    "einsum of a left weight": Case(
        lambda x, w, b: torch.einsum("oi,i...->...o", w, x) + b, (4, 6, 5), (3, 4),
        lambda x: x.movedim(0, -1).reshape(-1, 4), lambda w: w,
    ),
    "bias beside a linear layer": Case(lambda x, w, b: F.linear(x, w) + b, (6, 5, 4), (3, 4), rows=lambda w: w),
    "two dimensions of outputs": Case(
        lambda x, w, b: torch.einsum("ni,hid->nhd", x, w) + b, (9, 4), (2, 4, 3), rows=lambda w: w.mT.reshape(6, 4)
    ),
}  # fmt: skip


class Product(nn.Module):
    """A function of the input and of two parameters."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.function = function
        tensors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        self.parameters_ = nn.ParameterList(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters_).relu()


def product(case: Case) -> tuple[Product, nn.Sequential]:
    """The case, and the linear layer that it is."""
    out_features, in_features = case.rows(torch.empty(case.w)).shape
    model = Product(case.function, case.w, (min(out_features, 3),))
    w, b = model.parameters_
    layer = nn.Linear(in_features, out_features).double()
    layer.weight.data = case.rows(w).detach().contiguous()
    layer.bias.data = b.detach().repeat(out_features // len(b))
    return model, nn.Sequential(layer, nn.ReLU())


def inputs(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.4


@pytest.mark.parametrize("name", CASES)
def test_fitted_as_the_linear_layer_that_they_are(name: str) -> None:
    case = CASES[name]
    model, layer = product(case)
    batches = [inputs(case.x), inputs(case.x, 2)]
    actual, expected = lrp.patterns.PatternStatistics(model), lrp.patterns.PatternStatistics(layer)
    for x in batches:
        actual.update(x)
        expected.update(case.samples(x))
    for kind in KINDS:
        (pattern,), (oracle,) = actual.patterns(kind), expected.patterns(kind)
        assert pattern.shape == case.w
        torch.testing.assert_close(case.rows(pattern), oracle, rtol=1e-9, atol=1e-12)


RULES = {
    "epsilon": lrp.rules.Epsilon(1e-12),
    "gamma": lrp.rules.Gamma(0.25, epsilon=1e-12),
    "alpha2beta1": lrp.rules.AlphaBeta(2, 1, epsilon=1e-12),
    "patternnet": lrp.rules.PatternNet(),
    "patternattribution": lrp.rules.PatternAttribution(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_explained_as_the_linear_layer_that_they_are(name: str, rule: str) -> None:
    case = CASES[name]
    model, layer = product(case)
    model.parameters_[1].data.zero_()  # a bias that is added by itself takes its share as a sum's term does
    layer[0].bias.data.zero_()
    x = inputs(case.x).requires_grad_()
    samples = case.samples(x.detach()).requires_grad_()
    pattern = inputs(case.w, 3) if rule.startswith("pattern") else None
    patterns = (
        [t] if pattern is not None else None for t in (pattern, pattern if pattern is None else case.rows(pattern))
    )
    for net, data, own in zip((model, layer), (x, samples), patterns, strict=True):
        y = lrp.convert(net)(data, explain=True, rule=RULES[rule], strict=True, **({"pattern": own} if own else {}))
        y.square().sum().backward()
    assert samples.grad.any()
    torch.testing.assert_close(case.samples(x.grad), samples.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_batches_are_grouped_convolutions(kind: str) -> None:
    model = Product(lambda x, w, b: torch.bmm(x, w) + b, (2, 4, 3), (3,))
    w, b = model.parameters_
    layer = nn.Conv1d(8, 6, 1, groups=2).double()
    layer.weight.data = w.detach().mT.reshape(6, 4, 1)
    layer.bias.data = b.detach().repeat(2)
    x = inputs((2, 9, 4))
    (actual,) = lrp.patterns.PatternStatistics(model).update(x).update(2 * x).patterns(kind)
    x_of_layer = x.transpose(0, 1).reshape(9, 8, 1)
    net = nn.Sequential(layer, nn.ReLU())
    (expected,) = lrp.patterns.PatternStatistics(net).update(x_of_layer).update(2 * x_of_layer).patterns(kind)
    torch.testing.assert_close(actual.mT.reshape(6, 4, 1), expected, rtol=1e-9, atol=1e-12)
    (rho,) = lrp.patterns.quality(model, [x, 2 * x], [actual]).values()
    assert rho == pytest.approx(lrp.patterns.quality(net, [x_of_layer, 2 * x_of_layer], [expected])["0"])


def test_batch_norm_after_a_product_merges_with_it() -> None:
    class Net(nn.Module):
        def __init__(self, is_product: bool) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
            self.is_product = is_product

        def forward(self, x: Tensor) -> Tensor:
            w, b = self.layer.weight, self.layer.bias
            return self.norm(torch.addmm(b, x, w.T) if self.is_product else F.linear(x, w, b)).relu()

    product, layer = (Net(is_product).double().eval() for is_product in (True, False))
    nn.init.uniform_(layer.norm.running_mean)
    nn.init.uniform_(layer.norm.weight, -1, 1)
    product.load_state_dict(layer.state_dict())
    maps, x = [], inputs((9, 4))
    for net in (product, layer):
        patterns = lrp.patterns.fit_patternnet_positive(net, [x])
        data = x.clone().requires_grad_()
        y = lrp.convert(net)(data, explain=True, rule="patternattribution", pattern=patterns, strict=True)
        y.sum().backward()
        maps.append(data.grad)
    assert maps[0].any()
    torch.testing.assert_close(*maps)


class Tied(nn.Module):
    """One weight, used as it is and transposed."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, features, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu() @ self.weight.T


@pytest.mark.parametrize("features", [4, 6])
def test_a_weight_that_is_also_used_transposed_has_two_patterns(features: int, tmp_path: Path) -> None:
    model, x = Tied(features).double(), inputs((9, 4))
    w = model.weight.detach()
    statistics = lrp.patterns.PatternStatistics(model).update(x)
    patterns = statistics.patterns()
    assert statistics.names == ["Tied", "Tied#2"]
    assert [pattern.shape for pattern in patterns] == [(4, features), (features, 4)]
    statistics.save(tmp_path / "statistics")
    resumed = lrp.patterns.PatternStatistics.load(tmp_path / "statistics", model)
    torch.testing.assert_close(resumed.patterns(), patterns, rtol=0, atol=0)
    for given in (patterns, dict(zip(statistics.names, patterns, strict=True))):
        data = x.clone().requires_grad_()
        lrp.convert(model)(data, explain=True, rule="patternnet", pattern=given, strict=True).sum().backward()
        hidden = (patterns[1].sum(1) * (x @ w > 0)) @ patterns[0].T
        torch.testing.assert_close(data.grad, hidden)


class Parts(nn.Module):
    """A weight of which each half is a layer, called twice, as those of attention are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weight.chunk(2)
        return F.linear(x, first).relu() * 0.5 + F.linear(x, second).relu() + F.linear(x[1:], first).sum()


def test_parts_of_a_weight_have_patterns_of_their_own() -> None:
    model, x = Parts().double(), inputs((9, 4))
    statistics = lrp.patterns.PatternStatistics(model).update(x)
    assert statistics.names == ["Parts", "Parts#2"]
    first, second = model.weight.detach().chunk(2)
    for w, pattern, data in zip((first, second), statistics.patterns(), (torch.cat([x, x[1:]]), x), strict=True):
        covariance = torch.cov(data.T, correction=0) @ w.T
        torch.testing.assert_close(pattern.T, covariance / (w.T * covariance).sum(0))


class Functions(nn.Module):
    """Linear layers whose weights are not the model's."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = [inputs(shape, seed) for seed, shape in enumerate(shapes)]

    def forward(self, x: Tensor) -> Tensor:
        w, v, u = self.weights
        return (F.linear(F.linear(x, w).relu(), v.mT) + x[:, :2]) @ u


def test_statistics_of_functions_are_saved_and_loaded(tmp_path: Path) -> None:
    model, other, x = Functions((3, 4), (3, 2), (2, 2)), Functions((3, 4), (3, 2), (2, 1)), inputs((9, 4))
    statistics = lrp.patterns.PatternStatistics(model).update(x)
    assert statistics.names == ["linear", "linear#2", "matmul"]
    statistics.save(tmp_path / "statistics")
    lrp.patterns.save(tmp_path / "patterns", statistics.patterns())
    resumed = lrp.patterns.PatternStatistics.load(tmp_path / "statistics", model).update(2 * x)
    assert resumed.names == statistics.names
    torch.testing.assert_close(resumed.patterns(), statistics.update(2 * x).patterns(), rtol=0, atol=0)
    patterns = lrp.patterns.load(tmp_path / "patterns", model)
    lrp.convert(model)(x.requires_grad_(), explain=True, rule="patternnet", pattern=patterns).sum().backward()
    with pytest.raises(ValueError, match="'matmul'"):
        lrp.patterns.PatternStatistics.load(tmp_path / "statistics", other).update(x)


UNSUPPORTED = {
    "a diagonal": lambda x, w: torch.einsum("ii,io->o", x, w),
    "a sum over the weight alone": lambda x, w: torch.einsum("ni,io->n", x, w),
    "an outer sum": lambda x, w: torch.einsum("ni,jo->no", x, w),
    "two live tensors": lambda x, w: (x @ w) @ x,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_products_are_named_in_an_error(name: str) -> None:
    w = inputs((4, 4))
    with pytest.raises(RuntimeError, match=r"einsum|addmm|matmul"):
        lrp.convert(lambda x: UNSUPPORTED[name](x, w))(inputs((4, 4)).requires_grad_(), explain=True, strict=True)
