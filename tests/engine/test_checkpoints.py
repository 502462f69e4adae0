"""Checkpoints: the map of the function itself, in the memory of a checkpoint."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import networks
import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import lrp
from lrp import Composite
from lrp.engine.backward.kept import TELLS_HOOKS
from lrp.rules import Epsilon, Rule, ZBox

pytestmark = pytest.mark.skipif(not TELLS_HOOKS, reason="torch 2.6 does not tell of checkpoints, which are refused")

Call = Callable[..., Any]
RULES: list[Rule | str] = [
    "zplus", "gamma", "alpha2beta1", Epsilon(0.1), "epsilon_plus_flat", Epsilon(0.1, bias="distribute"),
    Composite({"first": ZBox(-4.0, 4.0), "last": "zplus", "conv": "gamma"}), "deconvnet",
    Composite({"pool": "flat", "max_pool": "epsilon", "sum": "zplus"}, default="gamma"),
]  # fmt: skip
IDS = [
    getattr(rule, "key", rule) if isinstance(rule, str) else type(rule).__name__ + str(i)
    for i, rule in enumerate(RULES)
]


def layers() -> tuple[nn.Module, ...]:
    module = nn.ModuleList(
        [
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Linear(4, 3),
        ]
    )
    return tuple(networks.randomize(module))


CONV, NORM, MORE, SECOND, LAST = layers()
IMAGES = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def head(h: Tensor) -> Tensor:
    return LAST(F.adaptive_avg_pool2d(h, 1).flatten(1))


def block(h: Tensor) -> Tensor:
    return SECOND(MORE(h)).relu()


def in_place(h: Tensor) -> Tensor:
    y = SECOND(MORE(h))
    y.relu_()
    y += h
    return F.relu(y, inplace=True)


def parts_in_place(h: Tensor) -> Tensor:
    y = MORE(h)
    y[:, :2].relu_()
    y[:, 2:] *= 2
    return y


def once(function: Call, *args: Any, **kwargs: Any) -> Any:
    """The function itself, where a checkpoint stands in the other network."""
    for option in ("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "context_fn", "debug"):
        kwargs.pop(option, None)
    return function(*args, **kwargs)


def contexts() -> tuple[Any, Any]:
    return nullcontext(), nullcontext()


# Networks with checkpoints ``c``; each is explained with and without them.
NETWORKS: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "block": lambda c, x: head(c(block, NORM(CONV(x)).relu())),
    "in place": lambda c, x: head(c(in_place, NORM(CONV(x)).relu())),
    "parts in place": lambda c, x: head(c(parts_in_place, CONV(x).relu())),
    "norm outside": lambda c, x: head(NORM(c(CONV, x)).relu()),
    "norm inside": lambda c, x: head(c(NORM, CONV(x)).relu()),
    "between two": lambda c, x: head(c(lambda y: NORM(y).relu(), c(CONV, x))),
    "identity inside": lambda c, x: head(c(lambda y: NORM(y.clone()).relu(), CONV(x))),
    "norm beside": lambda c, x: head((lambda y: c(NORM, y).relu() + y)(CONV(x))),
    "norm and itself inside": lambda c, x: head(c(lambda y: NORM(y).relu() + y, CONV(x))),
    "norm outside, layer inside": lambda c, x: head((lambda y: NORM(y).relu() + c(MORE, y))(CONV(x))),
    "moved": lambda c, x: head(c(lambda y: NORM(y.flatten(2).unflatten(2, (6, 6))).relu(), CONV(x))),
    "chain": lambda c, x: head(c(lambda y: SECOND(y) * 2, NORM(c(CONV, x)))),
    "scale": lambda c, x: head(c(lambda h: MORE(h).mul_(2).add_(1).relu_(), CONV(x).relu())),
    "nested": lambda c, x: head(c(lambda h: c(block, c(in_place, h)) + h, NORM(CONV(x)).relu())),
    "whole": lambda c, x: c(lambda x: head(in_place(NORM(CONV(x)).relu())), x),
    "whole, nested": lambda c, x: c(lambda x: head(c(in_place, NORM(CONV(x)).relu())), x),
    "nested thrice": lambda c, x: head(c(lambda h: c(lambda h: c(in_place, h) * 2, h.relu()), CONV(x))),
    "reused": lambda c, x: head(c(block, c(block, c(block, CONV(x).relu())))),
    "dropout": lambda c, x: head(c(lambda h: SECOND(F.dropout(MORE(h), 0.5, False, True)), CONV(x).relu())),
    "coinciding shapes": lambda c, x: head(c(lambda t: torch.maximum(MORE(t), MORE(t * 2)), CONV(x).relu())),
    "two arguments": lambda c, x: head(c(lambda a, b: MORE(a) * b.sigmoid() + b, CONV(x).relu(), CONV(x).tanh())),
    "two arguments in place": lambda c, x: head(c(lambda a, b: MORE(a).add_(b).relu_() + b, CONV(x).relu(), CONV(x))),
    "one argument twice": lambda c, x: head((lambda h: c(lambda a, b: MORE(a) + b, h, h))(CONV(x).relu())),
    "by name": lambda c, x: head(c(lambda a, scale, b: MORE(a) * scale + b, CONV(x).relu(), scale=2.0, b=CONV(x))),
    "list": lambda c, x: head(
        c(lambda ab: MORE(ab[0]) + ab[1]["b"], [CONV(x).relu(), {"b": torch.ones_like(x[:, :1])}])
    ),
    "constant": lambda c, x: head(c(lambda a, b: MORE(a) + b, CONV(x).relu(), torch.ones(4, 6, 6).double())),
    "several outputs": lambda c, x: head(
        (lambda t: t[0] + t[1] * t[2])(c(lambda a: (MORE(a), a.relu(), a.sigmoid()), CONV(x)))
    ),
    "unused output": lambda c, x: head(c(lambda a: (MORE(a), MORE(a * 2)), CONV(x))[0]),
    "unused layer": lambda c, x: head(c(lambda a: (lambda y: (y, SECOND(y)))(MORE(a)), CONV(x))[1]),
    "gate": lambda c, x: head((lambda h: c(torch.mul, h, h.mean((2, 3), keepdim=True).sigmoid()))(CONV(x).relu())),
    "makes a gate": lambda c, x: head((lambda h: h * c(lambda a: a.mean((2, 3), True).sigmoid(), h))(CONV(x).relu())),
    "written after": lambda c, x: head(c(MORE, CONV(x).relu()).relu_()),
    "from around": lambda c, x: head((lambda h: c(lambda a: MORE(a) + h, h.relu()))(CONV(x))),
    "pool": lambda c, x: head(c(lambda a: F.max_pool2d(MORE(a), 2), CONV(x).relu())),
    "modules": lambda c, x: head(c(nn.Sequential(MORE, SECOND, nn.ReLU(True), nn.Dropout(0.3).eval()), CONV(x).relu())),
    "data": lambda c, x: head(c(lambda x: CONV((x - 0.5) / 2).relu(), x)),
    "data made inside": lambda c, x: head(CONV(c(lambda x: (x - 0.5) / 2, x)).relu()),
    "data made outside": lambda c, x: head(c(lambda x: CONV(x).relu(), (x - 0.5) / 2)),
    "last layer": lambda c, x: c(head, NORM(CONV(x)).relu()),
    "attention": lambda c, x: head(c(lambda a: a * F.softmax(MORE(a).flatten(2), -1).view(a.shape), CONV(x))),
    "layer norm": lambda c, x: head(c(lambda a: F.layer_norm(MORE(a), [6, 6]), CONV(x))),
    "random numbers not kept": lambda c, x: head(c(block, CONV(x).relu(), preserve_rng_state=False)),
    "no check": lambda c, x: head(c(block, CONV(x).relu(), determinism_check="none")),
    "no early stop": lambda c, x: head(c(in_place, CONV(x).relu(), early_stop=False)),
    "contexts": lambda c, x: head(c(block, CONV(x).relu(), context_fn=contexts)),
}


def explained(c: Call, name: str, rule: Rule | str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output, the map, and the relevance of hidden layers."""
    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(lambda x: NETWORKS[name](c, x))(x, explain=True, rule=rule, strict=True)
    (first,) = torch.autograd.grad(y, x, y.detach(), retain_graph=True)
    with lrp.trace.record() as relevances:
        (again,) = torch.autograd.grad(y, x, y.detach())
    assert error(again, first) < 1e-12
    return y.detach(), first, relevances


@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_of_the_function_itself(name: str, rule: Rule | str) -> None:
    y, actual, hidden = explained(partial(checkpoint, use_reentrant=False), name, rule)
    y_expected, expected, hidden_expected = explained(once, name, rule)
    assert torch.equal(y, y_expected)
    assert error(actual, expected) < 1e-10
    assert hidden.keys() == hidden_expected.keys()
    assert all(torch.allclose(hidden[key], hidden_expected[key]) for key in hidden)
    assert all(p.grad is None for layer in (CONV, NORM, MORE, SECOND, LAST) for p in layer.parameters())


@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("segments", [2, 3, 4])
def test_checkpoint_sequential(segments: int, rule: Rule | str) -> None:
    model = networks.randomize(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(),
            nn.Dropout(0.2), nn.Conv2d(4, 4, 2), nn.ReLU(),
        )
    )  # fmt: skip
    maps = []
    for network in (partial(checkpoint_sequential, model, segments, use_reentrant=False), model):
        x = IMAGES.clone().requires_grad_()
        y = lrp.convert(lambda x, network=network: network(x))(x, explain=True, rule=rule, strict=True)
        maps.append(torch.autograd.grad(y, x, y.detach())[0])
    assert error(*maps) < 1e-10


def test_batches_of_outputs() -> None:
    starts = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    maps = []
    for c in (partial(checkpoint, use_reentrant=False), once):
        x = IMAGES.clone().requires_grad_()
        y = lrp.convert(lambda x, c=c: NETWORKS["in place"](c, x))(x, explain=True, rule="zplus")
        maps.append(torch.autograd.grad(y, x, starts, is_grads_batched=True)[0])
    assert error(*maps) < 1e-12


def bytes_alive(c: Call, depth: int) -> int:
    """What an explained forward leaves behind: the memory of all tensors that are reached from its graph."""
    model = networks.randomize(nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth)]))
    x = torch.randn(1, 4, 32, 32, dtype=torch.float64, requires_grad=True)

    def network(x: Tensor) -> Tensor:
        for i in range(0, depth, 4):
            x = c(nn.Sequential(*(m for layer in model[i : i + 4] for m in (layer, nn.Tanh()))), x)
        return x

    gc.collect()
    before = {id(t) for t in gc.get_objects() if issubclass(type(t), Tensor)}
    y = lrp.convert(network)(x, explain=True, rule="epsilon")
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor) and id(t) not in before]
    pieces = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    del y
    return sum(pieces.values())


def test_memory_falls() -> None:
    without, with_checkpoints = (bytes_alive(c, 16) for c in (once, partial(checkpoint, use_reentrant=False)))
    assert with_checkpoints < without / 3


@pytest.mark.parametrize("nested", [False, True])
def test_a_forward_computes_nothing_twice(nested: bool) -> None:
    calls: list[int] = []

    def counted(h: Tensor) -> Tensor:
        calls.append(1)
        return MORE(h)

    c = partial(checkpoint, use_reentrant=False)
    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(lambda x: c(lambda h: c(counted, h).relu() if nested else counted(h), CONV(x).relu()))(
        x, explain=True
    )
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) <= (3 if nested else 2)


def test_reentrant_checkpoints_are_refused_with_the_remedy() -> None:
    sequence = nn.Sequential(CONV, NORM, nn.ReLU(), MORE)
    for network in (
        lambda x: head(checkpoint(block, CONV(x), use_reentrant=True)),
        lambda x: checkpoint(CONV, x, use_reentrant=True),
        lambda x: checkpoint_sequential(sequence, 2, x, use_reentrant=True),
    ):
        with pytest.raises(NotImplementedError, match=r"use_reentrant=True.*write use_reentrant=False"):
            lrp.convert(network)(IMAGES.clone().requires_grad_(), explain=True)


def test_differentiable_checkpoints_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"differentiable=True: within torch.utils.checkpoint"):
        lrp.convert(lambda x: checkpoint(CONV, x, use_reentrant=False))(
            IMAGES.clone().requires_grad_(), explain=True, differentiable=True
        )


def test_a_checkpoint_without_an_explanation_is_as_before() -> None:
    x = IMAGES.clone().requires_grad_()
    network = lrp.convert(lambda x: NETWORKS["nested"](partial(checkpoint, use_reentrant=False), x))
    network(x, explain=True)  # its backward is never run
    frozen = [p.requires_grad_(False) for layer in (CONV, NORM, MORE, SECOND, LAST) for p in layer.parameters()]
    (actual,) = torch.autograd.grad(NETWORKS["block"](partial(checkpoint, use_reentrant=False), x).sum(), x)
    (expected,) = torch.autograd.grad(NETWORKS["block"](once, x).sum(), x)
    for p in frozen:
        p.requires_grad_()
    assert error(actual, expected) < 1e-12
