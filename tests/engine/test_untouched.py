"""Explaining leaves the model, its parameters, gradients, buffers, hooks, modes and the optimizer as they were."""

import copy
from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lrp
from lrp.engine.backward.kept import TELLS_HOOKS

RULES = [key for key, rule in lrp.rules.KEYS.items() if not rule.needs_pattern]


def network() -> lrp.Sequential:
    """With everything that training changes: batch-norm statistics and random numbers for dropout."""
    torch.manual_seed(0)
    return lrp.Sequential(
        lrp.Conv2d(2, 4, 3), lrp.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, momentum=None), nn.ReLU(), lrp.AdaptiveAvgPool2d(1), nn.Flatten(), lrp.Linear(4, 3),
    ).double()  # fmt: skip


def explain(model: nn.Module, rule: str, x: Tensor) -> None:
    y = model(x, explain=True, rule=rule)
    y[:, 0].sum().backward()


def train(model: nn.Module, explaining: bool, steps: int = 4) -> dict[str, Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    for step in range(steps):
        x, target = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.randint(3, (8,))
        if explaining:
            explain(model, RULES[step % len(RULES)], x.clone().requires_grad_())
        loss = nn.functional.cross_entropy(model(x), target)
        if explaining:  # also between a forward and its backward
            explain(model, RULES[-1 - step], x.clone().requires_grad_())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


@pytest.mark.filterwarnings("ignore::lrp.RelevanceWarning")  # batch statistics have no rule
@pytest.mark.parametrize("training", [True, False])
def test_a_training_loop_that_explains_trains_exactly_as_one_that_does_not(training: bool) -> None:
    states = [train(network().train(training), explaining) for explaining in (False, True)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_of_weights_stay_none(rule: str, differentiable: bool) -> None:
    model, x = networks.convolutional(), networks.images()
    model(x, explain=True, rule=rule, differentiable=differentiable).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_state_hooks_and_modes_stay() -> None:
    model, x = networks.convolutional(), networks.images()
    model.block.train()
    calls = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
    parameters = {name: (id(p), p._version, p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    before = {name: {k: v for k, v in vars(m).items() if not k.startswith("_")} for name, m in model.named_modules()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.warns(lrp.RelevanceWarning, match="batch_norm"):
        explain(model, "alpha2beta1", x)
    assert len(calls) == len(list(model.modules()))
    for name, p in model.named_parameters():
        identity, version, requires_grad, values = parameters[name]
        assert (id(p), p._version, p.requires_grad) == (identity, version, requires_grad)
        assert torch.equal(p, values)
    after = {name: {k: v for k, v in vars(m).items() if not k.startswith("_")} for name, m in model.named_modules()}
    assert after == before
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert x._backward_hooks is None


def test_an_error_in_the_middle_leaves_nothing_changed() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = network().append(Failing())
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    x = networks.images(size=8)
    with pytest.raises(ZeroDivisionError):
        model(x, explain=True)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    del model[-1]
    assert torch.equal(model.eval()(x), model(x, explain=True))


def test_explaining_in_training_mode_says_so() -> None:
    with pytest.warns(lrp.RelevanceWarning, match=r"batch_norm in training mode.*call \.eval\(\)") as caught:
        explain(network(), "epsilon", networks.images(size=8))
    assert len(caught) == 1


class Noise(nn.Module):
    """Draws at random without a module of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.5)) if self.training else x


class Counter(nn.Module):
    """Counts its steps in training mode, and computes the same."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x


MATTERS = [
    nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.RReLU(), Noise(), nn.BatchNorm2d(4),
    nn.InstanceNorm2d(4, track_running_stats=True), nn.Sequential(nn.Sequential(nn.Dropout(0.1))),
]  # fmt: skip
MATTERS_NOT = [
    nn.Dropout(0.0), nn.ReLU(), nn.BatchNorm2d(4).eval(), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), Counter(),
    nn.Dropout(0.5).eval(),
]  # fmt: skip


def in_training(part: nn.Module, x: Tensor) -> None:
    """Explain a model that is in training mode, with a part in the mode that it is in."""
    part.double()
    training = {m: m.training for m in part.modules()}
    model = lrp.Sequential(nn.Conv2d(2, 4, 1), part, nn.Flatten()).double().train()
    for module, mode in training.items():
        module.training = mode
    model(x, explain=True, strict=not isinstance(part, nn.BatchNorm2d) and type(part) not in (Noise, nn.RReLU))


@pytest.mark.parametrize("part", MATTERS, ids=repr)
def test_a_mode_that_matters_is_told_once(part: nn.Module) -> None:
    with pytest.warns(lrp.RelevanceWarning, match=r"in training mode is this Sequential.*call \.eval\(\)") as caught:
        in_training(part, networks.images(size=4))
    assert len(caught) == 1
    lrp.Sequential(nn.Conv2d(2, 4, 1), part).double().eval()(networks.images(size=4), explain=True)


@pytest.mark.parametrize("part", MATTERS_NOT, ids=repr)
def test_a_mode_that_does_not_matter_is_not_told(part: nn.Module) -> None:
    in_training(part, networks.images(size=4))


def test_the_modules_in_training_mode_are_named() -> None:
    model = networks.convolutional()
    model.more[2].train()
    with pytest.warns(lrp.RelevanceWarning, match=r"^in training mode is 'more\.2', which drew"):
        explain(model, "epsilon", networks.images())
    model.block.train()
    with pytest.warns(lrp.RelevanceWarning, match=r"in training mode is 'block', 'more\.2'"):
        explain(model, "epsilon", networks.images())


class Remembering(nn.Module):
    """Writes what depends on its input into a buffer, in a way that is given."""

    def __init__(self, write: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.last = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.register_buffer("memory", torch.ones(4, 5, dtype=torch.float64))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.write(self, self.fc(x)))


def assign(m: Any, h: Tensor) -> Tensor:
    m.memory = h
    return m.memory


def assign_part(m: Any, h: Tensor) -> Tensor:
    m.memory[:, :2] = h[:, :2]
    return m.memory


def write_beside(m: Any, h: Tensor) -> Tensor:
    m.memory.copy_(h)
    return h


WRITES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "copy_": lambda m, h: m.memory.copy_(h),
    "average": lambda m, h: m.memory.mul_(0.5).add_(h),
    "narrow": lambda m, h: m.memory.narrow(0, 1, 2).mul_(h[:2]).relu(),
    "view": lambda m, h: m.memory.view(-1)[:20].add_(h.flatten()).view(4, 5),
    "assigned": assign,
    "part": assign_part,
    "beside": write_beside,
    "out=": lambda m, h: h + torch.add(h.detach(), 1, out=m.memory),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("explain_again", [True, False])
def test_a_buffer_that_a_forward_writes_to_is_a_constant_afterwards(name: str, explain_again: bool) -> None:
    """It has the values that a forward without an explanation gives it, and no graph."""
    model, plain = Remembering(WRITES[name]).eval(), Remembering(WRITES[name]).eval()
    net, x = lrp.convert(model), torch.randn(4, 3, dtype=torch.float64)
    buffer = model.memory
    for _ in range(3):
        explained = x.clone().requires_grad_()
        before = plain.memory.clone()
        net(explained, explain=True, strict=True).sum().backward()
        with torch.no_grad():
            plain(x)
        assert torch.equal(net.memory, plain.memory)
        assert not net.memory.requires_grad
        assert model.memory is buffer
        assert not buffer.requires_grad
        fresh = Remembering(WRITES[name]).eval()
        fresh.memory.copy_(before)
        again = x.clone().requires_grad_()
        lrp.convert(fresh)(again, explain=True).sum().backward()
        assert torch.equal(explained.grad, again.grad)
        if not explain_again:
            copy.deepcopy(net)  # of a tensor with a graph it would be an error
            break


@pytest.mark.filterwarnings("ignore:in training mode:lrp.RelevanceWarning")
@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
@pytest.mark.parametrize("name", WRITES)
def test_what_backward_needs_of_a_buffer_that_is_put_back_is_kept(name: str, rule: str) -> None:
    """The forward computes the same in training mode: so does its backward."""
    x, maps = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), []
    for mode in (False, True):
        y = lrp.convert(Remembering(WRITES[name]).train(mode))(x, explain=True, rule=rule, strict=True)
        maps.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*maps)


def test_a_buffer_is_a_constant_after_an_error_and_in_training_mode() -> None:
    def fail(m: Any, h: Tensor) -> Tensor:
        m.memory.copy_(h)
        raise ZeroDivisionError

    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    model = Remembering(fail).eval()
    with pytest.raises(ZeroDivisionError):
        lrp.convert(model)(x, explain=True)
    assert not model.memory.requires_grad
    model = Remembering(WRITES["copy_"]).train()
    with pytest.warns(lrp.RelevanceWarning, match="in training mode is this Remembering"):
        lrp.convert(model)(x, explain=True)
    assert not model.memory.requires_grad
    assert torch.equal(model.memory, torch.ones_like(model.memory))


def test_a_buffer_that_is_an_output_is_refused_by_name_and_a_view_or_copy_of_it_is_not() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    maps = []
    for take in (lambda t: t, lambda t: t.clone(), lambda t: t[:], lambda t: t.view(-1)):
        model = Remembering(lambda m, h, take=take: take(m.memory.copy_(h))).eval()
        model.last = nn.Identity()
        if not maps:
            with pytest.raises(
                ValueError, match=r"the buffer 'memory' is an output itself.*return self\.memory\.clone"
            ):
                lrp.convert(model)(x, explain=True)
            maps.append(torch.autograd.grad(lrp.convert(model.fc)(x, explain=True).sum(), x)[0])
        else:
            maps.append(torch.autograd.grad(lrp.convert(model)(x, explain=True, strict=True).sum(), x)[0])
    assert all(torch.equal(maps[0], other) for other in maps)


@pytest.mark.skipif(not TELLS_HOOKS, reason="checkpoints are refused before torch 2.7")
@pytest.mark.filterwarnings("ignore:.*in training mode:lrp.RelevanceWarning")
@pytest.mark.parametrize("training", [True, False])
def test_what_a_checkpoint_runs_again_writes_to_no_buffer(training: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
            self.register_buffer("memory", torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.fc(x))
            self.memory.mul_(0.5).add_(h)
            return h.relu()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.b, checkpoint(self.a, x, use_reentrant=False), use_reentrant=False)

    model = Checkpointed().double().train(training)
    net, x = lrp.convert(model), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    buffers = dict(model.named_buffers())
    y = net(x, explain=True)
    before = {name: b.clone() for name, b in buffers.items()}
    y.sum().backward()
    for owner in (model, net):
        assert all(b is buffers[name] and not b.requires_grad for name, b in owner.named_buffers())
    assert all(torch.equal(b, before[name]) for name, b in buffers.items())
