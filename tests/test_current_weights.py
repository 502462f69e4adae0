"""A rule explains the weights as they are, whoever wrote them last, and however."""

import copy
import gc
import sys
import threading
from collections.abc import Callable, Sequence

import networks
import pytest
import torch
from torch import Tensor, nn

import lrp
from lrp.engine.backward.propagation import nearest_layers
from lrp.maps import weights
from lrp.rules import AlphaBeta, Epsilon, Gamma, Proportional, ZBox

RULES = [
    *("zplus", "alpha1beta0", "alpha2beta1", "gamma", "gamma+epsilon", "wsquare", "epsilon_plus_flat"),
    *(ZBox(-3.0, 3.0), Epsilon(0.1, exponent=2), Gamma(0.5, generalized=True), AlphaBeta(2, 1, conserve=True)),
]


def fused_step(p: Tensor) -> None:
    p.grad = torch.ones_like(p)
    torch.optim.AdamW([p], lr=0.3, fused=True).step()
    p.grad = None


def step(p: Tensor) -> None:
    p.grad = p.detach().square()
    torch.optim.SGD([p], lr=0.3).step()
    p.grad = None


def by_numpy(p: Tensor) -> None:
    p.detach().numpy()[...] *= -0.5


def one_element_by_numpy(p: Tensor) -> None:
    p.detach().numpy().ravel()[p.numel() // 2] += 1.5


def by_data(p: Tensor) -> None:
    p.data.mul_(-0.5)


def new_data(p: Tensor) -> None:
    p.data = p.detach() * -0.5


def set_(p: Tensor) -> None:
    with torch.no_grad():
        p.set_(p.detach() * -0.5)


def through_the_storage(p: Tensor) -> None:
    p.untyped_storage().copy_((p.detach() * -0.5).untyped_storage())


WRITES = [fused_step, step, by_numpy, one_element_by_numpy, by_data, new_data, set_, through_the_storage]


class Reusing(nn.Module):
    """A layer that is called twice, one of whose weight parts are used, and one that a batch norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 1)
        self.table = nn.Linear(144, 8)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.again(self.again(self.norm(self.conv(x)).relu()).relu()).flatten(1)
        upper, lower = self.table.weight.chunk(2)
        return self.last(torch.tanh(nn.functional.linear(h, upper)) + h @ lower.T)


MODELS = {"reusing": lambda: networks.randomize(Reusing()), "convolutional": lambda: networks.convolutional(True)}


def images(number: int = 2, size: int = 8) -> Tensor:
    return torch.randn(number, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relevance(net: nn.Module, rule: object, x: Tensor | None = None) -> Tensor:
    x = (images() if x is None else x).clone().requires_grad_()
    return torch.autograd.grad(net(x, explain=True, rule=rule)[:, 0].sum(), x)[0]


def linear(width: int = 6) -> nn.Module:
    return networks.randomize(lrp.Sequential(lrp.Linear(5, width), nn.ReLU(), lrp.Linear(width, 3)))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_sees_every_write_between_two_explanations(rule: object, write: Callable[[Tensor], None]) -> None:
    net = lrp.convert(MODELS["reusing"]())
    before = relevance(net, rule)
    for p in net.parameters():
        write(p)
    after = relevance(net, rule)
    assert torch.equal(after, relevance(copy.deepcopy(net), rule))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("rule", ["epsilon", *RULES], ids=str)
@pytest.mark.parametrize("backwards", [0, 1])
def test_a_write_before_backward_is_an_error_or_makes_no_difference(
    rule: object, write: Callable[[Tensor], None], backwards: int
) -> None:
    net, x = linear(), torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    y = net(x, explain=True, rule=rule)[:, 0].sum()
    expected = torch.autograd.grad(net(x, explain=True, rule=rule)[:, 0].sum(), x)[0]
    for _ in range(backwards):
        torch.autograd.grad(y, x, retain_graph=True)
    for p in net.parameters():
        write(p)
    if write is new_data:  # which leaves the old memory as it was
        assert torch.equal(torch.autograd.grad(y, x)[0], expected)
    else:
        with pytest.raises(RuntimeError, match="modified in place between"):
            torch.autograd.grad(y, x)


@pytest.mark.parametrize("write", [fused_step, step, by_numpy, by_data, through_the_storage])
def test_a_large_weight_may_not_change_before_backward(write: Callable[[Tensor], None]) -> None:
    net, x = linear(3000), torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    y = net(x, explain=True, rule="zplus")
    write(net[0].weight)
    with pytest.raises(RuntimeError, match=r"shape \(3000, 5\).* modified in place between"):
        y.sum().backward()


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
def test_the_input_may_not_change_before_backward(rule: str) -> None:
    x = images(3, 6).flatten(1)[:, :5].contiguous().requires_grad_()
    y = linear()(x, explain=True, rule=rule)
    x.detach().numpy()[1] = 0.0
    with pytest.raises(RuntimeError, match="modified in place between"):
        y.sum().backward()


def test_values_that_are_not_numbers_have_not_changed() -> None:
    net, x = linear(), torch.ones(2, 5, dtype=torch.float64, requires_grad=True)
    for weight in net.parameters():
        weight.data.fill_(torch.nan)
    net(x, explain=True).sum().backward()
    assert x.grad is not None


class Counting(Proportional):
    """Makes ``w+`` and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "made", [])

    def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
        return self.share(f, [(x, self.make)], w, None, R)

    def make(self, w: Tensor) -> Tensor:
        self.made.append(w.shape)  # type: ignore[attr-defined]
        return w.clamp(min=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_weight_is_modified_once_for_all_uses_in_one_explanation(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4)
    net = lrp.convert(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)).to(dtype)
    x, rule = torch.rand(3, 4, dtype=dtype, requires_grad=True), Counting()
    y = net(x, explain=True, rule=rule)
    for _ in range(3):
        y.sum().backward(retain_graph=True)
    assert len(rule.made) == (9 if dtype == torch.float16 else 1)  # rules compute float16 in float32: a new tensor


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_modified_weights_end_with_what_backward_needs(make: Callable[[], nn.Module]) -> None:
    y = lrp.convert(make())(images().requires_grad_(), explain=True, rule="zplus")
    memories = [layer.memory for layer in nearest_layers(y)]
    assert all(memory._by_storage for memory in memories)
    y.sum().backward()
    assert not any(memory._by_storage for memory in memories)
    assert y.grad_fn is not None


def calls_of(function: Callable[[], object]) -> int:
    """How many functions are called in Python."""
    calls = 0

    def count(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def kept(others: Sequence[weights.Made] = ()) -> list[weights.Made]:
    """What is kept of weights in this process, besides what other tests have left."""
    return [o for o in gc.get_objects() if type(o) is weights.Made and all(o is not other for other in others)]


def test_many_explanations_of_merged_layers_cost_what_one_does() -> None:
    net = lrp.convert(networks.randomize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten())))
    relevance(net, "zplus")
    gc.collect()
    others = kept()
    gc.disable()  # what a collection calls would count
    try:
        first = calls_of(lambda: relevance(net, "zplus"))
        for _ in range(500):
            relevance(net, "zplus")
        assert calls_of(lambda: relevance(net, "zplus")) == first
    finally:
        gc.enable()
    assert not kept(others)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_sweep_over_gamma_keeps_few_modified_weights(is_frozen: bool) -> None:
    net, x = lrp.Linear(64, 64).double(), torch.rand(2, 64, dtype=torch.float64, requires_grad=True)
    others = kept()

    def sweep() -> None:
        for gamma in torch.linspace(0, 1, 30).tolist():
            net(x, explain=True, rule=Gamma(gamma, generalized=True)).sum().backward()

    if is_frozen:
        with lrp.weights.frozen(net):
            sweep()
            made = kept(others)
            assert 0 < sum(t.nbytes for m in made for t in m._kept.values()) <= 4 * net.weight.nbytes
        del made
    else:
        sweep()
    gc.collect()
    assert not kept(others)


def test_frozen_weights_are_modified_once() -> None:
    net, x, rule = linear(), torch.rand(2, 5, dtype=torch.float64, requires_grad=True), Counting()
    expected = torch.autograd.grad(net(x, explain=True, rule=rule).sum(), x)[0]
    assert len(rule.made) == 2
    with lrp.weights.frozen(net):
        for _ in range(3):
            assert torch.equal(torch.autograd.grad(net(x, explain=True, rule=rule).sum(), x)[0], expected)
        assert len(rule.made) == 4
        with lrp.weights.frozen(net):
            net(x, explain=True, rule=rule).sum().backward()
        net(x, explain=True, rule=rule).sum().backward()
        assert len(rule.made) == 4
        lrp.weights.forget()
        net(x, explain=True, rule=rule).sum().backward()
        assert len(rule.made) == 6
    net(x, explain=True, rule=rule).sum().backward()
    assert len(rule.made) == 8


@pytest.mark.parametrize("write", [step, new_data, set_])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_change_of_frozen_weights_that_torch_counts_is_seen(
    make: Callable[[], nn.Module], write: Callable[[Tensor], None]
) -> None:
    net, x = lrp.convert(make()), images()
    with lrp.weights.frozen(net):
        before = relevance(net, "alpha2beta1", x)
        for p in net.parameters():
            write(p)
        after = relevance(net, "alpha2beta1", x)
    assert torch.equal(after, relevance(copy.deepcopy(net), "alpha2beta1", x))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_frozen_weights_are_explained_alike(rule: object) -> None:
    net = lrp.convert(MODELS["reusing"]())
    expected = relevance(net, rule)
    with lrp.weights.frozen(net):
        assert torch.equal(relevance(net, rule), expected)
        assert torch.equal(relevance(net, rule), expected)


def test_frozen_ends_with_its_block_alone() -> None:
    net, rule, entered, leave = linear(), Counting(), threading.Event(), threading.Event()
    x = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)

    def elsewhere() -> None:
        with lrp.weights.frozen(net):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    entered.wait(60)
    with pytest.raises(KeyError), lrp.weights.frozen(net):
        raise KeyError
    for _ in range(2):
        net(x, explain=True, rule=rule).sum().backward()
    assert len(rule.made) == 2
    leave.set()
    thread.join()
    assert not weights._frozen


def test_threads_explain_frozen_weights_side_by_side() -> None:
    net, maps = lrp.convert(MODELS["reusing"]()), []
    expected = {rule: relevance(net, rule) for rule in RULES}

    def explain(rule: object) -> None:
        for _ in range(5):
            maps.append((rule, relevance(net, rule)))

    with lrp.weights.frozen(net):
        threads = [threading.Thread(target=explain, args=(rule,)) for rule in RULES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(maps) == 5 * len(RULES)
    assert all(torch.equal(actual, expected[rule]) for rule, actual in maps)


def test_frozen_takes_a_module() -> None:
    with pytest.raises(TypeError, match=r"frozen\(\): takes a torch.nn.Module, not list"), lrp.weights.frozen([]):  # type: ignore[arg-type]
        pass
