"""The data stays data, and a change of its unit is none of the model: the map is that of preprocessing outside."""

import networks
import pytest
import torch
from networks import error
from spellings import CONV, IMAGES, Function, draw, explained
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Epsilon, Rule, ZBox

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)[:, None, None]
STD = torch.tensor([2.0, 0.5], dtype=torch.float64)[:, None, None]
OTHER = networks.randomize(nn.Conv2d(2, 4, 3), seed=3).requires_grad_(False)


def in_place(x: Tensor) -> Tensor:
    t = x.clone()
    t -= MEAN
    t /= STD
    return t


def each_channel(x: Tensor) -> Tensor:
    t = x.clone()
    for c in range(2):
        t[:, c] -= MEAN[c, 0, 0]
        t[:, c] /= STD[c, 0, 0]
    return t


def padded(x: Tensor) -> Tensor:
    batch = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    for i in range(2):
        batch[i, :, :6, :6].copy_((x[i] - MEAN) / STD)
    return batch


def assigned(x: Tensor) -> Tensor:
    batch = torch.empty(2, 2, 6, 6, dtype=torch.float64)
    for i, image in enumerate(x):
        batch[i] = (image - MEAN) / STD
    return batch


def sliced(x: Tensor) -> Tensor:
    batch = x.new_zeros(2, 2, 6, 6)
    batch[:, :, :6, :6] = (x - MEAN) / STD
    return batch


UNITS: dict[str, Function] = {
    "(x - mean) / std": lambda x: (x - MEAN) / STD,
    "batched": lambda x: (x - MEAN[None]) / STD[None],
    "expanded": lambda x: (x - MEAN.expand(2, 6, 6)) / STD.expand_as(x),
    "factor": lambda x: x * (1 / STD) + (-MEAN / STD),
    "negative": lambda x: -(MEAN - x) / STD,
    "alpha": lambda x: torch.sub(x, MEAN / 2, alpha=2) / STD,
    "numbers": lambda x: (x - 0.3) / 2,
    "integers": lambda x: (x * 2 - 1) / 2,
    "0-d tensors": lambda x: (x - torch.tensor(0.3)) / torch.tensor(2.0),
    "parameters": lambda x: (x - nn.Parameter(MEAN)) / nn.Parameter(STD),
    "functions": lambda x: torch.true_divide(torch.subtract(x, MEAN), STD),
    "batch norm": lambda x: F.batch_norm(x, MEAN.view(-1), STD.view(-1) ** 2, eps=0.0),
    "instance norm": lambda x: F.instance_norm(x, MEAN.view(-1), STD.view(-1) ** 2, use_input_stats=False, eps=0.0),
    "in place": in_place,
    "each channel": each_channel,
    "channels apart": lambda x: torch.stack([(x[:, c] - float(MEAN[c])) / float(STD[c]) for c in range(2)], 1),
    "channels last": lambda x: ((x.permute(0, 2, 3, 1) - MEAN.view(-1)) / STD.view(-1)).permute(0, 3, 1, 2),
    "flattened": lambda x: ((x.flatten(2) - MEAN[:, 0]) / STD[:, 0]).view(x.shape),
    "images apart": lambda x: torch.stack([(image - MEAN) / STD for image in x]),
    "cat": lambda x: torch.cat([((image - MEAN) / STD)[None] for image in x.unbind(0)]),
    "identities": lambda x: F.dropout((x - MEAN).clone() / STD, 0.5, False).contiguous(),
    "padded batch": padded,
    "assigned batch": assigned,
    "sliced batch": sliced,
}
FIRST = lrp.Composite({"first": ZBox(-4.0, 4.0), "conv": "zplus"})
UNIT_RULES = ["zplus", "gamma", "alpha2beta1", Epsilon(0.1), "epsilon_plus_flat", ZBox(-4, 4), FIRST, "wsquare",
              Epsilon(0.1, bias="distribute")]  # fmt: skip


@pytest.mark.parametrize("rule", UNIT_RULES, ids=str)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("name", UNITS)
def test_a_change_of_unit_is_preprocessing(name: str, branches: int, rule: Rule | str) -> None:
    def network(x: Tensor) -> Tensor:
        return CONV(x).relu() + (OTHER(x) if branches == 2 else 0)

    actual = explained(lambda x: network(UNITS[name](x)), IMAGES, rule)
    assert error(actual, explained(network, UNITS[name](IMAGES), rule)) < 1e-10


@pytest.mark.parametrize("name", UNITS)
def test_first_reaches_every_branch(name: str) -> None:
    def network(x: Tensor) -> Tensor:
        x = UNITS[name](x)
        return CONV(x) + OTHER(x).relu()

    chosen = lrp.Composite({"first": "flat"}).resolve(network, IMAGES)
    assert [rule for key, rule in chosen.items() if key.startswith("conv")] == [lrp.rules.Flat()] * 2


@pytest.mark.parametrize("name", UNITS)
def test_the_gradient_knows_of_no_unit(name: str) -> None:
    x = IMAGES.clone().requires_grad_()

    def network(x: Tensor) -> Tensor:
        return CONV(UNITS[name](x)).relu()

    (expected,) = torch.autograd.grad(network(x).sum(), x)
    y = lrp.convert(network)(x, explain=True, rule="gradient", strict=True)
    assert error(torch.autograd.grad(y.sum(), x)[0], expected) < 1e-12


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 2, 6, 6), (6, 6), (2, 2, 6, 1)])
def test_any_other_constant_is_a_term_of_a_sum(shape: tuple[int, ...]) -> None:
    position = draw(*shape, seed=8)
    actual = explained(lambda x: CONV(x + position), IMAGES, Epsilon(1e-14))
    of_sum = explained(CONV, IMAGES + position, Epsilon(1e-14))
    assert error(actual, of_sum * IMAGES / (IMAGES + position)) < 1e-9
