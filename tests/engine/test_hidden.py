"""Relevance at hidden tensors: their gradient, wherever batch norms are merged, and what hooks make of it."""

import threading
from collections.abc import Callable

import networks
import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import AlphaBeta, Epsilon, Gamma, Rule

Function = Callable[[Tensor], Tensor]
RULES: list[Rule | str] = [
    "zplus", "gamma", "alpha2beta1", "flat", Epsilon(0.1), Epsilon(0.1, bias="distribute"), Gamma(0.25, bias="ignore"),
    AlphaBeta(2, 1, conserve=True),
]  # fmt: skip


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
    return tuple(networks.randomize(module).requires_grad_(False))


CONV, NORM, MORE, SECOND, LAST = layers()
SCALE = torch.randn(4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
MASK = (torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)) > 0.5).double()


def head(h: Tensor) -> Tensor:
    return LAST(F.adaptive_avg_pool2d(h, 1).flatten(1))


def explained(network: Function, rule: Rule | str) -> Tensor:
    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(network)(x, explain=True, rule=rule, strict=True)
    return torch.autograd.grad(y, x, y.detach())[0]


# Ways to use the output of a convolution; each pair is of one convolution and of two.
USES: dict[str, tuple[Function, Function]] = {
    "norm and itself": (lambda y: NORM(y).relu(), lambda y: y),
    "itself and norm": (lambda y: y, lambda y: NORM(y).relu()),
    "two norms": (lambda y: NORM(y).relu(), SECOND),
    "the same norm": (NORM, NORM),
    "norm and convolution": (lambda y: NORM(y).relu(), lambda y: MORE(y.tanh())),
    "norm and scale": (NORM, lambda y: y * SCALE + 1),
    "scales": (lambda y: y * 2, lambda y: y * SCALE),
    "clones": (lambda y: NORM(y.clone()), lambda y: y.clone() * 1.5),
    "views": (lambda y: NORM(y.view(y.shape)), lambda y: y[...]),
    "moved": (lambda y: NORM(y).relu(), lambda y: (y.permute(0, 2, 3, 1) * SCALE.view(-1)).permute(0, 3, 1, 2)),
    "chain": (lambda y: NORM(SECOND(y)), lambda y: SECOND(y).relu()),
    "in place": (lambda y: NORM(y.clone().mul_(SCALE)), Tensor.relu),
    "detached": (NORM, lambda y: y.detach() * 2),
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", USES)
def test_a_convolution_that_is_used_twice_is_two_convolutions(name: str, rule: Rule | str) -> None:
    one, other = USES[name]

    def network(x: Tensor) -> Tensor:
        y = CONV(x)
        return head(one(y) + other(y))

    assert error(explained(network, rule), explained(lambda x: head(one(CONV(x)) + other(CONV(x))), rule)) < 1e-9


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", USES)
def test_relevance_at_the_output_of_a_convolution(name: str, rule: Rule | str) -> None:
    """Hooks and ``retain_grad`` see all of it: what both uses give, merged or not."""
    one, other = USES[name]
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        y = CONV(x)
        y.retain_grad()
        y.register_hook(seen.append)
        seen.append(y)
        return head(one(y) + other(y))

    x = IMAGES.clone().requires_grad_()
    z = lrp.convert(network)(x, explain=True, rule=rule)
    z.backward(z.detach())
    y, hooked = seen
    assert torch.equal(y.grad, hooked)
    assert error(hooked, gradient_at_output(one, other, rule)) < 1e-10


def gradient_at_output(one: Function, other: Function, rule: Rule | str) -> Tensor:
    """What both uses hand to outputs of their own, summed up."""
    parts: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        a, b = CONV(x), CONV(x)
        parts.extend([a, b])
        return head(one(a) + other(b))

    z = lrp.convert(network)(IMAGES.clone().requires_grad_(), explain=True, rule=rule)
    shares = torch.autograd.grad(z, parts, z.detach(), materialize_grads=True)
    return shares[0] + shares[1]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_relevance_at_hidden_tensors_is_that_of_the_rest_of_the_network(rule: Rule | str) -> None:
    cuts: list[tuple[Function, Function]] = [
        (CONV, lambda h: head(h.relu())),
        (lambda x: NORM(CONV(x)), lambda h: head(h.relu())),
        (lambda x: CONV(x).relu(), lambda h: head(MORE(h))),
        (lambda x: MORE(CONV(x).relu()), lambda h: head(h.tanh() + h)),
        (lambda x: SECOND(MORE(NORM(CONV(x)).relu())), lambda h: head(h.relu_())),
    ]
    for before, after in cuts:
        hidden: list[Tensor] = []

        def network(x: Tensor, before: Function = before, after: Function = after, hidden: list = hidden) -> Tensor:
            hidden.append(before(x))
            hidden[0].retain_grad()
            return after(hidden[0].clone())

        y = lrp.convert(network)(IMAGES.clone().requires_grad_(), explain=True, rule=rule)
        y.backward(y.detach())
        h = hidden[0].detach().clone().requires_grad_()
        y = lrp.convert(lambda h, after=after: after(h.clone()))(h, explain=True, rule=rule)
        y.backward(y.detach())
        assert error(hidden[0].grad, h.grad) < 1e-10


HOOKS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "mask": lambda R: R * MASK,
    "zero": lambda R: R * 0,
    "nothing": lambda R: None,
    "scale": lambda R: R * 3,
    "clone": lambda R: R.clone(),
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", ["norm and itself", "itself and norm", "two norms", "norm and convolution", "clones"])
def test_a_hook_at_a_convolution_changes_every_part_of_its_relevance(
    name: str, hook: str, late: bool, rule: Rule | str
) -> None:
    """Against the convolution called for each use, with the hook at each output that its norm is merged to."""
    one, other = USES[name]
    outputs: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        y = CONV(x)
        outputs.append(y)
        if not late:
            y.register_hook(HOOKS[hook])
        return head(one(y) + other(y))

    def twice(x: Tensor) -> Tensor:
        a, b = CONV(x), CONV(x)
        a.register_hook(HOOKS[hook])
        b.register_hook(HOOKS[hook])
        return head(one(a) + other(b))

    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(network)(x, explain=True, rule=rule)
    if late:
        outputs[0].register_hook(HOOKS[hook])
    actual = torch.autograd.grad(y, x, y.detach())[0]
    assert (actual - explained(twice, rule)).abs().max() < 1e-9 * explained(
        lambda x: head(one(CONV(x))), rule
    ).abs().max()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_mask_at_a_convolution_is_one_at_the_norm_that_is_merged_with_it(rule: Rule | str) -> None:
    def masked(at_norm: bool) -> Function:
        def network(x: Tensor) -> Tensor:
            y = CONV(x)
            z = NORM(y)
            (z if at_norm else y).register_hook(lambda R: R * MASK)
            return head(z.relu())

        return network

    assert error(explained(masked(False), rule), explained(masked(True), rule)) < 1e-12


def test_module_hooks_see_relevance() -> None:
    got: list[Tensor] = []
    handles = [
        m.register_full_backward_hook(lambda m, into, out: got.extend((*out, *into))) for m in (LAST, NORM, CONV)
    ]
    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(lambda x: head(NORM(CONV(x)).relu()))(x, explain=True, rule="zplus", strict=True)
    y.backward(y.detach())
    for handle in handles:
        handle.remove()
    (of_output, _, of_norm, into_norm, of_conv, into_conv) = got
    assert torch.equal(of_output, y)
    assert torch.equal(into_norm, of_conv)
    assert torch.equal(of_norm, into_norm)
    assert torch.equal(into_conv, x.grad)
    assert torch.equal(x.grad, explained(lambda x: head(NORM(CONV(x)).relu()), "zplus"))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", USES)
def test_backwards_in_parts_and_in_batches(name: str, rule: Rule | str) -> None:
    one, other = USES[name]
    hidden: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        hidden.append(CONV(x))
        return head(one(hidden[0]) + other(hidden[0]))

    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(network)(x, explain=True, rule=rule)
    keep = {"retain_graph": True}
    (of_input,) = torch.autograd.grad(y, x, y.detach(), **keep)
    (of_hidden,) = torch.autograd.grad(y, hidden[0], y.detach(), **keep)
    both = torch.autograd.grad(y, (x, hidden[0]), y.detach(), **keep)
    assert error(both[0], of_input) < 1e-14
    assert error(both[1], of_hidden) < 1e-14
    assert error(torch.autograd.grad(y, x, y.detach(), **keep)[0], of_input) < 1e-14
    # from the hidden tensor on, nobody knows of what is merged: the layer's own rule
    (rest,) = torch.autograd.grad(hidden[0], x, of_hidden, **keep)
    x_alone = IMAGES.clone().requires_grad_()
    (own,) = torch.autograd.grad(lrp.convert(CONV)(x_alone, explain=True, rule=rule), x_alone, of_hidden)
    assert error(rest, own) < 1e-12
    starts = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    together = torch.autograd.grad(y, x, starts, is_grads_batched=True, **keep)[0]
    alone = torch.stack([torch.autograd.grad(y, x, start, **keep)[0] for start in starts])
    assert error(together, alone) < 1e-10


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", USES)
def test_trace_reports_all_of_a_layers_relevance(name: str, rule: Rule | str) -> None:
    one, other = USES[name]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = CONV, LAST

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return head(one(y) + other(y))

    x = IMAGES.clone().requires_grad_()
    y = lrp.convert(Network())(x, explain=True, rule=rule)
    with lrp.trace.record() as relevances:
        y.backward(y.detach())
    assert torch.equal(relevances["conv"], x.grad)


def test_threads_do_not_disturb_each_other() -> None:
    maps: dict[int, Tensor] = {}

    def work(i: int) -> None:
        maps[i] = explained(lambda x: (lambda y: head(NORM(y).relu() + y))(CONV(x)), "zplus")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(maps[0], maps[i]) for i in range(4))
