"""What is asked of an explained forward: right, or an error that names argument, value and remedy."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lrp
from lrp import Composite
from lrp.rules import AlphaBeta, Epsilon, Gamma, ZBox, ZPlus


class Named(nn.Module):
    """Inputs with names, in a list, and beside indices."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, pair: Any = (), *more: Tensor, scale: Any = 1.0) -> Tensor:
        return sum((self.fc(t) for t in (*pair, *more)), self.fc(x)) * scale


def net() -> Any:
    return lrp.convert(Named().eval())


def ones(**kwargs: Any) -> Tensor:
    return torch.ones(2, 3, **kwargs)


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
PLACES = {
    "'x'": lambda t: ((t,), {}),
    "'pair'[1]": lambda t: ((ones(requires_grad=True), [ones(), t]), {}),
    "argument 3": lambda t: ((ones(), (), t), {}),
    "'scale'": lambda t: ((ones(),), {"scale": t[:, :2]}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_input_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    for name, arguments in PLACES.items():
        t = ones()
        t[1, 0] = value
        args, kwargs = arguments(t.to(dtype).requires_grad_())
        message = f"{name} is not finite: 1 of .* elements are not, the first {value} at [1, 0]; mask it"
        pattern = message.replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(ValueError, match=pattern):
            net()(*args, explain=True, **kwargs)


@given(st.sampled_from([torch.float32, torch.float64, torch.float16]), st.integers(1, 20), st.sampled_from([1, -1]))
def test_a_large_finite_input_is_finite(dtype: torch.dtype, n: int, sign: int) -> None:
    x = torch.full((n,), sign * torch.finfo(dtype).max, dtype=dtype, requires_grad=True)
    lrp.convert(torch.relu)(x, explain=True).backward(torch.ones_like(x))
    assert torch.equal(x.grad, torch.ones_like(x))


def test_what_is_not_explained_may_be_anything() -> None:
    """A mask of infinities, an input that is constant."""
    x, mask = ones(requires_grad=True), torch.tensor([[0.0, -torch.inf, 0.0]])
    lrp.convert(lambda x, mask: torch.softmax(x + mask, -1)[..., 0])(x, mask, explain=True).sum().backward()
    assert x.grad.isfinite().all()


ARGUMENTS = [
    (np.ones((2, 3), dtype=np.float32), TypeError, r"'x' is a numpy.ndarray; pass torch.from_numpy\(x\)"),
    (np.float32(1), TypeError, r"'x' is a numpy.float32; pass torch.from_numpy"),
    ([[1.0, 2.0]], TypeError, r"'x' is a list; pass torch.tensor\(x, requires_grad=True\)"),
    (3.0, TypeError, r"'x' is a float; pass torch.tensor"),
    (ones().long(), TypeError, r"'x' is of torch.int64, .* explain the output of their embedding"),
    (ones().bool(), TypeError, r"'x' is of torch.bool, which carries no relevance; pass x.float\(\)"),
    (ones(), ValueError, r"call x.requires_grad_\(\) before, on 'x'"),
    (None, ValueError, "there is no tensor among the arguments"),
    (ones(dtype=torch.complex64, requires_grad=True), TypeError, "'x' is complex, and relevance is real"),
]


@pytest.mark.parametrize(("x", "error", "message"), ARGUMENTS, ids=[message for *_, message in ARGUMENTS])
def test_arguments_that_carry_no_relevance(x: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        net()(x, explain=True)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.eye(4).to_sparse(), "is sparse: explain x.to_dense()"),
    (lambda: torch.nested.nested_tensor([torch.rand(2, 4), torch.rand(1, 4)]), "is nested: explain its parts"),
    (lambda: torch.rand(2, 4).to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn, which torch does not compute in"),
], ids=["sparse", "nested", "float8"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_inputs_of_no_usual_kind(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"'input' {re.escape(message)}"):
        lrp.Linear(4, 2)(make().requires_grad_(), explain=True)


def test_tokens_beside_an_embedding_are_fine() -> None:
    embedding, x = nn.Embedding(5, 3), torch.tensor([[1, 2]])
    embedded = embedding(x).detach().requires_grad_()
    lrp.convert(nn.Linear(3, 2))(embedded, explain=True).sum().backward()
    assert embedded.grad.shape == (1, 2, 3)


NUMBERS = [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, dtype=np.float32)]
NUMBERS += [np.int64(2), np.uint8(2), np.array(2), torch.tensor(0.5)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__} {n.dtype}")
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    plain = number.item()
    makes: list[Callable[[Any], Any]] = [Epsilon, Gamma, lambda n: ZPlus(epsilon=n), lambda n: AlphaBeta(1 + n, n)]
    if not isinstance(number, Tensor):
        makes += [lambda n: ZBox(n, n)]
    for make in makes:
        rule = make(number)
        assert rule == make(plain)
        assert hash(rule) == hash(make(plain))
        assert repr(rule) == repr(make(plain))
        assert pickle.loads(pickle.dumps(rule)) == rule
        assert all(type(v) in (int, float, bool, str) for v in vars(rule).values())
    assert Epsilon(0.1, exponent=np.int64(3)) == Epsilon(0.1, exponent=3)


@pytest.mark.parametrize("value", [np.bool_(True), True, "1", None, 1j, np.ones(2), np.ones(1), np.complex64(1)])
def test_what_is_no_number(value: Any) -> None:
    for make in (Epsilon, Gamma, lambda v: ZBox(v, 2.0), lambda v: AlphaBeta(v, 0)):
        with pytest.raises(TypeError, match="must be a number"):
            make(value)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), torch.tensor([0.0, torch.inf]), np.float64("nan")])
def test_bounds_are_finite(bound: Any) -> None:
    with pytest.raises(ValueError, match=r"high=.*: must be finite"):
        ZBox(0.0, bound)


def test_bounds_are_exact_in_float64() -> None:
    x, low, high = torch.rand(3, 4, dtype=torch.float64), -2.1, 2.7
    w = torch.randn(2, 4, dtype=torch.float64)
    maps = []
    for rule in (ZBox(low, high), ZBox(torch.tensor(low, dtype=x.dtype), torch.tensor(high, dtype=x.dtype))):
        t = x.clone().requires_grad_()
        lrp.functional.linear(t, w, rule=rule).sum().backward()
        maps.append(t.grad)
    assert torch.equal(*maps)


TOO_LARGE = [Epsilon(1e39), ZPlus(epsilon=1e300), Gamma(1e20), AlphaBeta(2, 1, epsilon=1e39), ZBox(-1e39, 0.0)]


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: Composite({"last": r}), lambda r: Composite({"first": r})])
@pytest.mark.parametrize("rule", TOO_LARGE, ids=repr)
def test_numbers_beyond_the_dtype_are_named_in_the_forward(rule: Any, wrap: Any) -> None:
    model = lrp.Sequential(nn.Linear(3, 2)).eval()
    message = rf"=-?1e\+\d+: is beyond torch.float32, .* wider dtype; the layer is '0', its rule {type(rule).__name__}"
    with pytest.raises(ValueError, match=message):
        model(ones(requires_grad=True), explain=True, rule=wrap(rule))
    x = ones(dtype=torch.float64, requires_grad=True)
    model.double()(x, explain=True, rule=wrap(rule)).sum().backward()
    assert x.grad.isfinite().all()


@given(st.floats(0, 1.8e19), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_any_gamma_that_is_taken_gives_relevance(gamma: float, dtype: torch.dtype) -> None:
    x, w = torch.tensor([[1.0, 2.0]], dtype=dtype, requires_grad=True), torch.tensor([[3.0, -1.0]], dtype=dtype)
    lrp.functional.linear(x, w, rule=Gamma(gamma)).backward()
    expected = torch.tensor([[3 * (1 + gamma), -2.0]], dtype=torch.float64) / (3 * (1 + gamma) - 2)
    assert torch.allclose(x.grad.double(), expected, rtol=0.05, atol=1e-3)


def test_an_epsilon_that_vanishes_is_named_under_last_too() -> None:
    x = ones(requires_grad=True).detach().half().requires_grad_()
    with pytest.raises(ValueError, match=r"epsilon=1e-09: is 0 in torch.float16.*the layer is '0'"):
        lrp.Sequential(nn.Linear(3, 2)).half()(x, explain=True, rule=Composite({"last": Epsilon(1e-9)}))


PATTERNS = [
    ("patterns.safetensors", r"pattern='patterns.safetensors': is a path; .* lrp.patterns.load\(path, model\)"),
    (np.zeros((2, 3)), "pattern= is a ndarray: must be a list"),
    (torch.zeros(2, 2, 3), "pattern= is a Tensor: must be a list"),
    ([np.zeros((2, 3))], r"pattern\[0\] is a ndarray: must be a tensor"),
    ({"0": [1.0]}, r"pattern\['0'\] is a list: must be a tensor"),
    (iter([torch.zeros(2, 3)]), "pattern= is a list_iterator: must be a list"),
    (3, "pattern= is a int"),
]


@pytest.mark.parametrize(("pattern", "message"), PATTERNS, ids=[message for _, message in PATTERNS])
@pytest.mark.parametrize("rule", ["patternnet", "epsilon", Composite({"last": "patternattribution"})])
def test_patterns_that_are_none(pattern: Any, message: str, rule: Any) -> None:
    with pytest.raises(TypeError, match=message):
        lrp.Sequential(nn.Linear(3, 2))(ones(requires_grad=True), explain=True, rule=rule, pattern=pattern)


@pytest.mark.parametrize(("rule", "error"), [("nonsense", ValueError), (Epsilon, TypeError), (0.1, TypeError)])
def test_the_rule_is_checked_without_an_explanation(rule: Any, error: type) -> None:
    calls = [
        lambda: net()(ones(), rule=rule),
        lambda: lrp.Sequential(nn.Linear(3, 2))(ones(), rule=rule),
        lambda: lrp.Linear(3, 2)(ones(), explain=False, rule=rule),
        lambda: lrp.functional.linear(ones(), ones(), rule=rule),
    ]
    for call in calls:
        with pytest.raises(error, match="rule="):
            call()


@pytest.mark.parametrize("rule", [*(k for k, r in lrp.composites.KEYS.items() if not r.needs_pattern), ZBox(-9.0, 9.0)])
def test_a_tensor_without_dimensions_is_one_with_a_dimension_of_1(rule: Any) -> None:
    def function(t: Tensor) -> Tensor:
        return (t.sum() + t.mean() * 3).relu() + t.amax() - t.max() * 0.5

    maps = []
    for shape in ((), (1,)):
        x = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
        lrp.convert(function)(x, explain=True, rule=rule).backward()
        maps.append(x.grad)
    assert torch.equal(maps[0], maps[1][0])


@pytest.mark.parametrize("rule", [*(k for k, r in lrp.composites.KEYS.items() if not r.needs_pattern), ZBox(-9.0, 9.0)])
def test_meta_tensors_give_shapes(rule: Any) -> None:
    x = torch.empty(2, 2, 10, 10, dtype=torch.float64, device="meta", requires_grad=True)
    networks.convolutional().to("meta")(x, explain=True, rule=rule).sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.is_meta


STRANGE = {
    "sparse @ x": (lambda x: torch.eye(3).to_sparse() @ x, "matmul of sparse tensors, which .to_dense()"),
    "x @ sparse": (lambda x: x @ torch.eye(3).to_sparse(), "matmul of sparse tensors"),
    "csr @ x": (lambda x: torch.eye(3).to_sparse_csr() @ x, "matmul of sparse tensors"),
    "linear": (lambda x: nn.functional.linear(x, torch.eye(3).to_sparse()), "linear of sparse tensors"),
    "sparse.mm": (lambda x: torch.sparse.mm(torch.eye(3).to_sparse(), x), "_sparse_mm of sparse tensors"),
    "x + sparse": (lambda x: x + torch.eye(3).to_sparse(), "add of sparse tensors"),
    "complex @": (lambda x: (x.to(torch.complex64) @ torch.eye(3, dtype=torch.complex64)).real, "matmul of complex"),
    "complex weight": (lambda x: (x * torch.ones(3, dtype=torch.complex64)).abs(), "mul of complex numbers"),
    "complex number": (lambda x: (x + 2j).real, "add of complex numbers"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", STRANGE)
def test_sparse_tensors_and_complex_numbers_are_named(name: str) -> None:
    function, message = STRANGE[name]
    model, x = lrp.convert(function), torch.rand(3, 3, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning, match=message):
        y = model(x, explain=True)
    assert torch.equal(y, function(x))
    with pytest.raises(NotImplementedError, match=message):
        model(x, explain=True, strict=True)
