"""Explaining leaves the model, its parameters, gradients, buffers, hooks, modes and the optimizer as they were."""

import copy

import networks
import pytest
import torch
from torch import Tensor, nn

import lrp

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
    with pytest.warns(lrp.RelevanceWarning, match=r"batch_norm in training mode"):
        explain(network(), "epsilon", networks.images(size=8))
