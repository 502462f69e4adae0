"""Functions that add up terms, in all spellings: linear maps of all their terms together, under every rule."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import error
from oracles import reference
from test_handlers import draw, gradient_times_input, relevances
from torch import Tensor
from torch.nn import functional as F

import lrp
from lrp import Composite
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, WSquare, ZPlus

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce", "ignore:The reduce argument")

AT = torch.tensor([0, 2, 2, 1, 0])
GRID = torch.tensor([[0, 2, 1], [2, 2, 0], [1, 0, 3], [3, 3, 3], [0, 1, 2]])
CONSTANT = draw(4, 3, seed=9).detach()

# a of shape (4, 3) is what is written to, b of shape (5, 3) what is added
TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": lambda a, b: torch.index_add(a, 0, AT, b),
    "index_add, method, scaled": lambda a, b: a.index_add(0, AT, b, alpha=2.5),
    "index_add, subtracted": lambda a, b: torch.index_add(a, 0, AT, b, alpha=-2),
    "index_add_": lambda a, b: a.clone().index_add_(0, AT, b, alpha=-0.5),
    "index_add_ of a slice": lambda a, b: torch.cat([a, a])[2:6].index_add_(0, AT, b),
    "index_add_ into zeros": lambda a, b: torch.zeros(4, 3).double().index_add_(0, AT, b).index_add_(0, AT[:4], a),
    "index_add_ into constants": lambda a, b: CONSTANT.clone().index_add_(0, AT, b).index_add_(0, AT[:4], a),
    "scatter_add": lambda a, b: torch.scatter_add(a, 0, GRID, b),
    "scatter_add_": lambda a, b: torch.zeros(4, 3).double().scatter_add_(0, GRID, b).scatter_add_(0, GRID, b) + a,
    "scatter_reduce": lambda a, b: a.scatter_reduce(0, GRID, b, "sum"),
    "scatter_reduce_, mean": lambda a, b: a.clone().scatter_reduce_(0, GRID, b, reduce="mean"),
    "scatter_reduce, without itself": lambda a, b: a.scatter_reduce(0, GRID, b, "mean", include_self=False),
    "index_reduce": lambda a, b: a.index_reduce(0, AT, b, "mean"),
    "index_put": lambda a, b: torch.index_put(a, (AT,), b, accumulate=True),
    "index_put, two": lambda a, b: a.index_put((AT, torch.tensor([0, 1, 1, 2, 0])), b[:, 0], True),
    "index_put_": lambda a, b: a.clone().index_put_((AT,), b, accumulate=True),
    "index_put_ into zeros": lambda a, b: torch.zeros(4, 3).double().index_put_((AT,), b, accumulate=True) - a,
    "put": lambda a, b: a.put(GRID, b, accumulate=True),
    "put_": lambda a, b: a.clone().put_(GRID, b, True),
    "of one tensor": lambda a, b: a.index_add(0, AT[:4], a) + b[:4],
    "of itself, scaled": lambda a, b: a.index_add(0, AT[:4], a, alpha=-0.5) + b[:4],
    "views of one memory": lambda a, b: _into_itself(torch.cat([a, b])),
    "lerp": lambda a, b: torch.lerp(a, b[1:], 0.3),
    "lerp beyond": lambda a, b: a.lerp(b[1:], 1.5),
    "lerp by a tensor": lambda a, b: torch.lerp(a, b[1:], CONSTANT),
    "lerp_": lambda a, b: a.clone().lerp_(b[1:], -0.5),
    "addcmul": lambda a, b: torch.addcmul(a, b[1:], CONSTANT, value=-2),
    "addcmul_": lambda a, b: a.clone().addcmul_(CONSTANT[0], b[1:]),
    "addcdiv": lambda a, b: a.addcdiv(b[1:], CONSTANT, value=0.5),
    "diff": lambda a, b: torch.diff(torch.cat([a, b]), dim=0),
    "diff, joined": lambda a, b: a.diff(2, 0, prepend=CONSTANT, append=b),
    "outer sum": lambda a, b: a[:, :, None] + b[0][None, None],
    "operator": lambda a, b: torch.ops.aten.index_add.default(a, 0, AT, b, alpha=-1),
}


def _into_itself(t: Tensor) -> Tensor:
    t[:4].index_put_((AT,), t[4:], accumulate=True)
    return t


IMAGE = (2, 3, 4, 5)
PLACES = draw(2, 3, 3, 2, seed=4).detach().tanh()
BOXES = torch.tensor([[0, 0, 0, 3.5, 3], [1, 0.5, 1, 2.5, 4]]).double()
ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: torch.cumsum(x, 1),
    "cumsum_": lambda x: x.clone().cumsum_(-1),
    "trace": lambda x: torch.stack([torch.trace(x[0, 0]), x[1, 2].trace()]),
    "einsum, sum": lambda x: torch.einsum("abcd->bc", x),
    "einsum, diagonal": lambda x: torch.einsum("ab...cc->bc", x[..., :4]),
    "einsum by numbers": lambda x: torch.einsum(x, [0, 1, 2, 3], [3, 1]),
    "grid_sample": lambda x: F.grid_sample(x, PLACES, align_corners=False),
    "grid_sample, border": lambda x: F.grid_sample(x, 2 * PLACES, "bilinear", "border", align_corners=True),
    "grid_sample, nearest": lambda x: F.grid_sample(x, PLACES, mode="nearest", align_corners=False),
    "grid_sample, bicubic": lambda x: F.grid_sample(x, PLACES, mode="bicubic", align_corners=False),
    "segment_reduce": lambda x: torch.segment_reduce(x[0, 0], "sum", lengths=torch.tensor([1, 3])),
    "segment_reduce, mean": lambda x: torch.segment_reduce(x[0, 0], "mean", lengths=torch.tensor([1, 3])),
    "segment_reduce, max": lambda x: torch.segment_reduce(x[0, 0], "max", lengths=torch.tensor([1, 3])),
    "into a bag of rows": lambda x: torch.zeros(3, 5).double().index_add(0, AT, x.flatten(0, 2)[:5]),
    "upsampled": lambda x: torch._C._nn.upsample_bilinear2d(x, [7, 8], False),
    "upsampled by an operator": lambda x: torch.ops.aten.upsample_bicubic2d.default(x, [7, 8], False),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x[..., :4], 2, return_indices=True), 2),
    "winners so far": lambda x: x.cummax(1)[0] + torch.cummin(x, -1).values,
    "scatter_reduce, amax": lambda x: x[0, 0].scatter_reduce(0, GRID[:4].repeat(1, 2)[:, :5], x[1, 1], "amax"),
}


def inputs_of(name: str) -> tuple[Tensor, ...]:
    return (draw(4, 3), draw(5, 3, seed=1)) if name in TWO else (draw(*IMAGE),)


@pytest.mark.parametrize("name", [*TWO, *ONE])
def test_terms_share_in_proportion(name: str) -> None:
    """Relevance ``z v`` gives the inputs ``x`` times the gradient of ``v z``."""
    function, inputs = TWO.get(name) or ONE[name], inputs_of(name)
    y = function(*inputs)
    v = draw(*y.shape, seed=7).detach()
    gradients = torch.autograd.grad(y, inputs, v)
    for settings in ({}, {"differentiable": True}):
        actual = relevances(function, *inputs, R=y.detach() * v, **settings)
        for x, gradient, relevance in zip(inputs, gradients, actual, strict=True):
            assert (relevance - x.detach() * gradient).abs().max() < 1e-9


@pytest.mark.parametrize("name", [*TWO, *ONE])
def test_the_gradient_rule_is_the_gradient(name: str) -> None:
    function, inputs = TWO.get(name) or ONE[name], inputs_of(name)
    y = function(*inputs)
    R = draw(*y.shape, seed=7).detach()
    expected = torch.autograd.grad(y, inputs, R)
    actual = relevances(function, *inputs, rule=Gradient(), R=R)
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(actual, expected, strict=True))


RULES: dict[str, tuple[lrp.Rule, Callable[..., Tensor]]] = {
    "epsilon": (Epsilon(0.1), lambda *m, **o: reference.epsilon(*m, **o)),
    "ignored": (Epsilon(0.1, bias="ignore"), lambda *m, **o: reference.epsilon(*m, bias="ignore", **o)),
    "distributed": (Epsilon(0.1, bias="distribute"), lambda *m, **o: reference.epsilon(*m, bias="distribute", **o)),
    "gamma": (Gamma(0.3, generalized=True), lambda *m, **o: reference.gamma(*m, 0.3, **o)),
    "alphabeta": (AlphaBeta(2, 1), lambda *m, **o: reference.alphabeta(*m, 2, 1, **o)),
    "absorbed": (AlphaBeta(2, 1, bias="absorb"), lambda *m, **o: reference.alphabeta(*m, 2, 1, bias="absorb", **o)),
    "zplus": (ZPlus(), lambda *m, **o: reference.zplus(*m, **o)),
    "wsquare": (WSquare(epsilon=1e-12), lambda *m, **o: reference.wsquare(*m, epsilon=1e-12, **o)),
    "flat": (Flat(epsilon=1e-12), lambda *m, **o: reference.flat(*m, epsilon=1e-12, **o)),
}
WEIGHTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: TWO[name] for name in TWO if name.startswith(("index_add", "index_put", "put", "scatter_add", "index_r"))},
    "constant source": lambda a, b: a.index_add(0, AT, CONSTANT[[0, 1, 2, 3, 0]], alpha=-1.5),
    "constant target": lambda a, b: CONSTANT.index_add(0, AT, b, alpha=-1.5),
    "constant target_": lambda a, b: CONSTANT.clone().index_add_(0, AT, b),
    "add": lambda a, b: torch.add(a, b[1:], alpha=-2.5),
    "sub": lambda a, b: a.sub(b[1:], alpha=0.5),
    "rsub": lambda a, b: torch.rsub(a, b[1:], alpha=-3),
    "diff": lambda a, b: torch.diff(torch.stack([a, b[1:]]), dim=0),
}
NESTED = ("index_add_ into zeros", "index_add_ into constants", "index_put_ into zeros", "scatter_add_")


UNEVEN = ("index_put", "index_put, two", "index_put_", "index_reduce")  # whose weights may differ within an output


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [name for name in WEIGHTED if name not in NESTED])
def test_any_rule_is_that_of_the_matrix(name: str, rule: str) -> None:
    function, (chosen, formula) = WEIGHTED[name], RULES[rule]
    a, b = draw(4, 3), draw(5, 3, seed=1)
    if name in UNEVEN and rule in ("wsquare", "flat"):
        with pytest.raises(NotImplementedError, match=r"index_\w+ "):
            relevances(function, a, b, rule=Composite({"sum": chosen}))
        return
    z = function(a, b)
    R = draw(*z.shape, seed=5).detach()
    actual = relevances(function, a, b, rule=Composite({"sum": chosen, "pool": chosen}), R=R)
    jacobians = torch.autograd.functional.jacobian(function, (a.detach(), b.detach()))
    W = torch.cat([j.reshape(z.numel(), -1) for j in jacobians], 1)
    bias = function(torch.zeros_like(a), torch.zeros_like(b)).detach().flatten()
    x = torch.cat([a.detach().flatten(), b.detach().flatten()])
    expected = formula(W, bias, x, R.flatten(), mask=(W != 0).double())
    assert error(torch.cat([part.flatten() for part in actual]), expected) < 1e-8


def spelled(buffer: Tensor, index: Sequence[int], source: Tensor) -> Tensor:
    """A sum of one-hot products, which takes no scattering function."""
    hot = F.one_hot(torch.tensor(index), len(buffer)).double()
    return torch.cat([buffer, source]).T @ torch.cat([torch.eye(len(buffer)).double(), hot])


@given(
    index=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    rule=st.sampled_from([*RULES][:-2]),
)
def test_a_scattered_sum_is_a_product_with_a_matrix(index: list[int], seed: int, rule: str) -> None:
    """Under all rules but those that would spread over a matrix' zeros, too."""
    chosen = RULES[rule][0]
    a, b = draw(4, 3, seed=seed), draw(len(index), 3, seed=seed + 1)
    R = draw(3, 4, seed=seed + 2).detach()
    at = torch.tensor(index)
    by_sum = relevances(lambda a, b: a.index_add(0, at, b).T, a, b, rule=Composite({"sum": chosen}), R=R)
    by_product = relevances(lambda a, b: spelled(a, index, b), a, b, rule=chosen, R=R)
    assert all((x - y).abs().max() < 1e-8 * max(1, y.abs().max()) for x, y in zip(by_sum, by_product, strict=True))


def test_relevance_that_reaches_a_sum_twice_is_conserved() -> None:
    """The instance that was a move: nine of six."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    at = torch.tensor([0, 0, 1])
    y = lrp.convert(lambda x: torch.zeros(2).index_put((at,), x, accumulate=True))(x, explain=True, strict=True)
    y.backward(y.detach())
    assert torch.allclose(x.grad, x.detach(), rtol=1e-5)


def test_what_is_scattered_by_an_index_that_changes_later() -> None:
    """Backward needs the index as it was."""
    at = AT.clone()

    def function(a: Tensor, b: Tensor) -> Tensor:
        y = a.index_add(0, at, b)
        at.zero_()
        return y

    a, b = draw(4, 3), draw(5, 3, seed=1)
    expected = gradient_times_input(TWO["index_add"], a, b)
    y = lrp.convert(function)(a, b, explain=True, rule=Epsilon(0), strict=True)
    actual = torch.autograd.grad(y, (a, b), y.detach())
    assert all(error(*pair) < 1e-10 for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    "name", ["index_add_", "scatter_reduce_, mean", "put_", "lerp_", "addcmul_", "lerp by a tensor"]
)
def test_the_outputs_of_vmap_and_one_by_one(name: str) -> None:
    a, b = draw(4, 3), draw(5, 3, seed=1)
    y = lrp.convert(TWO[name])(a, b, explain=True, rule=Epsilon(0.1))
    starts = torch.stack([draw(*y.shape, seed=i).detach() for i in range(3)])
    together = torch.autograd.grad(y, (a, b), starts, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, (a, b), start, retain_graph=True) for start in starts]
    for all_at_once, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert error(all_at_once, torch.stack(parts)) < 1e-12


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_regions_of_interest(kind: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    x = draw(*IMAGE)

    def function(x: Tensor) -> Tensor:
        return getattr(torchvision.ops, kind)(x, BOXES, 2)

    assert error(relevances(function, x)[0], gradient_times_input(function, x)[0]) < 1e-9
    if kind == "roi_pool":
        assert error(relevances(function, x, differentiable=True)[0], relevances(function, x)[0]) < 1e-9


def _named(function: Callable[..., Tensor], *inputs: Tensor) -> str:
    with pytest.raises(NotImplementedError, match="there is no rule") as raised:
        lrp.convert(function)(*inputs, explain=True, strict=True)
    return str(raised.value)


@pytest.mark.parametrize("name", ["mean", "cumsum", "index_add"])
def test_each_output_is_explained_by_its_own_inputs_under_gamma(name: str) -> None:
    """Whether an input is negative is asked of those that an output has, not of the batch."""
    function = {
        "mean": lambda x: x.mean((2, 3)),
        "cumsum": lambda x: x.cumsum(-1),
        "index_add": lambda x: (x + 0.0).index_add(-1, torch.tensor([0, 0, 1, 2, 4]), 2 * x),
    }[name]
    x = torch.stack([draw(3, 4, 5), draw(3, 4, 5).abs()]).detach().requires_grad_()
    composite = Composite({"pool": Gamma(0.5), "sum": Gamma(0.5)})
    R = draw(*function(x).shape, seed=3).detach()
    whole = relevances(function, x, R=R, rule=composite)[0]
    for i in range(2):
        one = x[i : i + 1].detach().requires_grad_()
        assert error(whole[i : i + 1], relevances(function, one, R=R[i : i + 1], rule=composite)[0]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision(dtype: torch.dtype) -> None:
    a, b = (t.detach().abs().requires_grad_() for t in (draw(4, 3), draw(5, 3, seed=1)))
    R = draw(4, 3, seed=2).detach()
    for name in ("index_add, method, scaled", "index_put_", "scatter_add"):
        expected = relevances(TWO[name], a, b, R=R, rule=Epsilon(0.1))
        low = [t.detach().to(dtype).requires_grad_() for t in (a, b)]
        actual = relevances(TWO[name], *low, R=R.to(dtype), rule=Epsilon(0.1))
        assert all(part.dtype == dtype for part in actual)
        assert all(error(part.double(), whole) < 0.02 for part, whole in zip(actual, expected, strict=True))


def test_what_is_no_sum_is_named() -> None:
    a, b, x = draw(4, 3), draw(5, 3, seed=1), draw(*IMAGE)
    with pytest.raises((NotImplementedError, RuntimeError), match="scatter"):
        lrp.convert(lambda a, b: a.scatter(0, GRID, b, reduce="add"))(a, b, explain=True, strict=True)
    assert "scatter_reduce" in _named(lambda a, b: a.scatter_reduce(0, GRID, b, "prod"), a, b)
    assert "index_reduce" in _named(lambda a, b: a.index_reduce(0, AT, b, "prod"), a, b)
    assert "segment_reduce" in _named(
        lambda x: torch.segment_reduce(x[0, 0], "sum", lengths=torch.tensor([1, 3]), initial=1.0), x
    )
    grid = PLACES.clone().requires_grad_()
    assert "grid_sample" in _named(lambda x, grid: F.grid_sample(x, grid, align_corners=False), x, grid)
    assert "norm" in _named(lambda x: torch.linalg.vector_norm(x, 0), x)


def test_a_live_weight_of_a_lerp_is_what_its_spelling_is() -> None:
    a, b, g = draw(4, 3), draw(4, 3, seed=1), draw(4, 3, seed=2)
    R = draw(4, 3, seed=3).detach()
    for weight in (torch.sigmoid, lambda g: g @ torch.eye(3).double()):
        actual = relevances(lambda a, b, g, w=weight: torch.lerp(a, b, w(g)), a, b, g, R=R)
        y, mask = torch.lerp(a, b, weight(g)).detach(), weight(g).detach()
        parts = (1 - mask) * a.detach() * R / y, mask * b.detach() * R / y
        share = 1.0 if weight is torch.sigmoid else 0.5
        assert all(error(x, share * part) < 1e-9 for x, part in zip(actual, parts, strict=False))
        assert bool(actual[2].any()) == (weight is not torch.sigmoid)


ROOTS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: torch.norm(x),
    "method": lambda x: x.norm(dim=1),
    "of order 1": lambda x: x.norm(1, dim=-1, keepdim=True),
    "of order 3": lambda x: torch.linalg.vector_norm(x, ord=3, dim=(1, 2)),
    "largest": lambda x: torch.linalg.vector_norm(x, torch.inf, dim=0),
    "linalg": lambda x: torch.linalg.norm(x, dim=-1),
    "std": lambda x: x.std(1),
    "std, biased": lambda x: torch.std(x, dim=-1, correction=0),
    "std_mean": lambda x: torch.std_mean(x, -1)[0],
}
SQUARES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "norm": (lambda x: x.norm(dim=1), lambda x: x.square().sum(1).sqrt()),
    "order 1": (lambda x: x.norm(1, dim=-1), lambda x: x.abs().sum(-1)),
    "order 4": (lambda x: torch.linalg.vector_norm(x, 4, dim=-1), lambda x: x.pow(4).sum(-1).pow(0.25)),
    "var": (lambda x: x.var(-1), lambda x: (x - x.mean(-1, keepdim=True)).square().sum(-1) / 4),
    "std": (lambda x: x.std(1), lambda x: ((x - x.mean(1, keepdim=True)) ** 2).sum(1).div(2).sqrt()),
    "var_mean": (
        lambda x: torch.var_mean(x, -1, correction=0)[0],
        lambda x: (x - x.mean(-1, keepdim=True)).square().mean(-1),
    ),
    "mean": (lambda x: torch.var_mean(x, -1)[1], lambda x: x.mean(-1)),
    "of std": (lambda x: torch.std_mean(x, 1)[1], lambda x: x.mean(1)),
}


@pytest.mark.parametrize("name", SQUARES)
def test_norms_and_variances_are_what_their_parts_are(name: str) -> None:
    function, parts = SQUARES[name]
    x = draw(*IMAGE)
    R = draw(*function(x).shape, seed=3).detach()
    expected = torch.autograd.grad(lrp.convert(parts)(x, explain=True, rule=Epsilon(0), strict=True), x, R)[0]
    assert error(relevances(function, x, R=R)[0], expected) < 1e-9
    assert error(relevances(function, x, R=R, differentiable=True)[0], expected) < 1e-9


@pytest.mark.parametrize("name", ROOTS)
def test_a_norm_hands_on_all_it_has(name: str) -> None:
    x = draw(*IMAGE)
    (actual,) = relevances(ROOTS[name], x)
    assert abs(actual.sum() - ROOTS[name](x).sum()) < 1e-9
    if not name.startswith("std"):
        assert error(actual, gradient_times_input(ROOTS[name], x)[0]) < 1e-9


def test_the_deviation_of_equal_numbers_is_finite() -> None:
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    assert relevances(lambda x: x.std(1), x, R=torch.ones(2).double())[0].isfinite().all()
