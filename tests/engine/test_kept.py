"""What backward needs is told apart by the memory that it has now."""

import pytest
import torch
from torch import Tensor, nn

import lrp
from lrp.engine.backward.kept import Keeper


class Saved(torch.autograd.Function):
    """Saves a tensor for backward."""

    @staticmethod
    def forward(x: Tensor, saved: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, R: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return R * ctx.saved_tensors[0].to_dense(), None


def saved(keeper: Keeper, t: Tensor) -> Tensor:
    """An output whose backward needs ``t``."""
    with keeper.saving():
        return Saved.apply(torch.ones(t.shape, requires_grad=True), t)


def relevance(output: Tensor) -> Tensor:
    return output.grad_fn.saved_tensors[0]  # type: ignore[union-attr]


def give_back(t: Tensor) -> None:
    with torch.autograd._unsafe_preserve_version_counter(t):
        t.untyped_storage().resize_(0)


def take_again(t: Tensor, values: Tensor) -> None:
    with torch.autograd._unsafe_preserve_version_counter(t):
        t.untyped_storage().resize_(values.nbytes)
        t.copy_(values)


def moved(w: Tensor, values: Tensor) -> Tensor:
    """Let ``w`` have other memory with these values; a tensor that has the memory it had before."""
    here = w.detach()
    with torch.autograd._unsafe_preserve_version_counter(w):
        w.data = values.clone()
    return here


def test_a_tensor_whose_memory_is_that_of_others_now_is_not_copied() -> None:
    keeper, w = Keeper(), torch.ones(64)
    output = saved(keeper, w)
    here = moved(w, torch.full((64,), 2.0))
    for _ in range(2):
        assert keeper.rescue(here) is None
        assert relevance(output) is w


def test_a_tensor_that_has_moved_is_copied_where_it_is() -> None:
    keeper, w, values = Keeper(), torch.ones(64), torch.full((64,), 2.0)
    output = saved(keeper, w)
    keeper.rescue(moved(w, values))
    assert torch.equal(keeper.rescue(w), values)
    w.zero_()
    assert torch.equal(relevance(output), values)


class Wrapper(Tensor):
    """A subclass whose values lie in another tensor."""

    @staticmethod
    def __new__(cls, t: Tensor) -> Tensor:
        return Tensor._make_wrapper_subclass(cls, t.shape, dtype=t.dtype)  # type: ignore[attr-defined]

    def __init__(self, t: Tensor) -> None:
        self.inner = t

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        unwrapped = [t.inner if isinstance(t, cls) else t for t in args]
        result = func(*unwrapped, **(kwargs or {}))
        return cls(result) if func is torch.ops.aten.detach.default else result


LAYOUTS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "wrapper": lambda: Wrapper(torch.eye(3)),
    "meta": lambda: torch.eye(3, device="meta"),
    "empty": lambda: torch.empty(0),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_without_memory_are_kept(make) -> None:  # type: ignore[no-untyped-def]
    keeper, t = Keeper(), make()
    output = saved(keeper, t)
    assert keeper.rescue(make()) is None
    assert relevance(output) is t
    keeper.rescue(t)
    assert relevance(output).shape == t.shape


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha2beta1"])
def test_operations_in_place_without_memory(rule: str) -> None:
    net = lrp.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)))
    x = torch.empty(0, 3, requires_grad=True)
    net(x, explain=True, rule=rule).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha2beta1"])
def test_a_batch_of_backwards(rule: str) -> None:
    net = lrp.Sequential(lrp.Linear(3, 5), nn.ReLU(inplace=True), lrp.Linear(5, 4)).double()
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    y = net(x, explain=True, rule=rule)
    starts = torch.eye(4, dtype=torch.float64).unsqueeze(1).expand(4, 2, 4)
    (together,) = torch.autograd.grad(y, x, starts, retain_graph=True, is_grads_batched=True)
    alone = [torch.autograd.grad(y, x, start, retain_graph=True)[0] for start in starts]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-12)


def test_memory_that_is_not_taken_again_is_an_error() -> None:
    keeper, w = Keeper(), torch.ones(64)
    output = saved(keeper, w)
    give_back(w)
    with pytest.raises(RuntimeError, match=r"shape \(64,\) .* has no memory in backward"):
        relevance(output)


class Resharded(nn.Linear):
    """Has memory for its weight only while it runs, as a sharded layer has."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.whole = self.weight.detach().clone()
        give_back(self.weight)
        return y


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha2beta1"])
@pytest.mark.parametrize("size", [8, 16])
def test_layers_that_give_back_their_memory(rule: str, size: int) -> None:
    class Network(nn.Module):
        def __init__(self, kind: type[nn.Linear]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(kind(size, size, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = (layer(x) + 1).relu_().mul_(2)
            return x

    maps = []
    for kind in (nn.Linear, Resharded):
        net, x = lrp.convert(Network(kind)), torch.ones(size, size, requires_grad=True)
        y = net(x, explain=True, rule=rule)
        for layer in net.layers if kind is Resharded else ():
            with torch.no_grad():
                take_again(layer.weight, layer.whole)
        y.sum().backward()
        maps.append(x.grad)
    assert torch.equal(*maps)


def fill(t: Tensor, values: Tensor) -> None:
    with torch.autograd._unsafe_preserve_version_counter(t):
        t.copy_(values)


def test_memory_that_is_taken_again_is_not_copied_before_it_is_filled() -> None:
    """At the same address there is anything in it then."""
    keeper, w = Keeper(), torch.ones(64)
    output, other = saved(keeper, w), saved(keeper, here := torch.ones(64))
    keeper.taken_again(w)
    fill(w, torch.full((64,), float("nan")))
    keeper.rescue(w)
    fill(w, torch.ones(64))
    assert torch.equal(relevance(output), torch.ones(64))
    assert keeper.rescue(here) is not None
    here.zero_()
    assert torch.equal(relevance(other), torch.ones(64))


def test_a_model_that_takes_memory_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is whose parameters are sharded, between two calls of a layer."""
    torch.manual_seed(0)
    weight = torch.randn(8, 8).double()
    values, seen = weight.clone(), []
    taken_again = Keeper.taken_again
    monkeypatch.setattr(Keeper, "taken_again", lambda self, t: (seen.append(t is weight), taken_again(self, t)))

    def forward(x: Tensor) -> Tensor:
        h = torch.relu(x @ weight.T)
        give_back(weight)
        take_again(weight, values)
        return h @ weight.T

    x, y = torch.randn(3, 8).double().requires_grad_(), torch.randn(3, 8).double()
    expected = torch.autograd.grad(
        lrp.convert(lambda t: torch.relu(t @ values.T) @ values.T)(x, explain=True, rule="zplus"), x, y
    )[0]
    found = torch.autograd.grad(lrp.convert(forward)(x, explain=True, rule="zplus"), x, y)[0]
    torch.testing.assert_close(found, expected)
    assert True in seen
