"""Removing what is relevant: curves by hand, on models whose features count as their weights say."""

import pytest
import torch
from networks import convolutional, images
from torch import Tensor, nn

import lrp
from lrp.evaluate import Flip, flip
from lrp.rules import Epsilon


class Weighed(nn.Module):
    """The sum of all pixels, each with its weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


def test_features_by_hand() -> None:
    model, x = Weighed(torch.tensor([4.0, -1.0, 2.0, 1.0])), torch.ones(2, 4)
    e = lrp.explain(model, x, rule=Epsilon(0.0))
    found = flip(model, x, e, steps=4, baseline=0.0)
    assert found.most.tolist() == [6, 2, 0, -1, 0]
    assert found.least.tolist() == [6, 7, 6, 4, 0]
    assert found.random[0] == 6
    assert found.random[-1] == 0
    assert found.gap == pytest.approx(16 / 5)
    assert found.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    half = flip(model, x, e, steps=2, baseline=0.0, most=0.5)
    assert half.most.tolist() == [6, 2, 0]
    shifted = flip(model, x, e, steps=1, baseline=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert shifted.most.tolist() == [6, 12]


def test_patches_by_hand() -> None:
    weight = torch.zeros(2, 5, 7)
    weight[:, :2, :2], weight[:, 2:4, 4:6], weight[:, 4:, 6:] = 3.0, 1.0, -5.0
    model, x = Weighed(weight), torch.ones(1, 2, 5, 7)
    found = flip(model, x, lrp.explain(model, x, rule=Epsilon(0.0)), patch=2, steps=12, baseline=0.0)
    assert found.most.tolist()[:3] == [22, -2, -10]
    assert found.least.tolist()[:2] == [22, 32]
    assert found.most[-1] == found.least[-1] == 0


@pytest.mark.parametrize("shape", [(2, 3, 20), (2, 3, 9, 30), (2, 1, 6, 6, 6)])
@pytest.mark.parametrize("baseline", ["grey", "blur"])
def test_baselines_and_shapes(shape: tuple[int, ...], baseline: str) -> None:
    torch.manual_seed(0)
    model, x = Weighed(torch.ones(shape[1:])), torch.rand(shape)
    e = lrp.explain(model, x, rule=Epsilon(0.0))
    found = flip(model, x, e, baseline=baseline)
    assert found.most.shape == (11,)
    if baseline == "grey":  # the mean of a channel keeps the sum of all
        assert found.most[-1] == pytest.approx(float(found.most[0]), rel=1e-5)
    constant = torch.full(shape, 0.5)
    same = flip(model, constant, lrp.explain(model, constant, rule=Epsilon(0.0)), baseline=baseline)
    torch.testing.assert_close(same.most, same.most[:1].expand(11))


TARGETS = [None, 1, [0, 2], lrp.Difference(0, 1), lambda y: y[:, 1], [lambda y: y[0], lambda y: y[2]]]


@pytest.mark.parametrize("number", range(len(TARGETS)))
def test_what_was_explained_is_watched(number: int) -> None:
    model, x = convolutional().eval(), images().detach()
    e = lrp.explain(model, x, TARGETS[number], rule=Epsilon(0.0))
    found = flip(model, x, e, patch=2)
    assert float(found.most[0]) == pytest.approx(float(e.initial_relevance.mean()))
    assert found.least.mean() > found.most.mean()
    assert flip(model, x, e, patch=2).random.tolist() == found.random.tolist()
    assert flip(model, x, e, patch=2, seed=1).random.tolist() != found.random.tolist()


def test_dense_outputs() -> None:
    model, x = nn.Conv2d(2, 3, 3, padding=1).double(), images(size=6).detach()
    for target in ((1, 2, 3), None, lrp.Region(0, torch.ones(6, 6))):
        e = lrp.explain(model, x, target, rule=Epsilon(0.0))
        assert float(flip(model, x, e).most[0]) == pytest.approx(float(e.initial_relevance.mean()))


def test_the_curves_are_drawn() -> None:
    found = Flip(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.8]), torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]))
    axis = found.plot().axes[0]
    assert [line.get_label() for line in axis.lines[:3]] == ["most", "random", "least"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0%", "100%"]


def test_wrong_arguments() -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(model, x, rule="zplus")
    with pytest.raises(TypeError, match="one input, and its explanation of one target"):
        flip(model, x, lrp.explain(model, x, lrp.Top(2), rule="zplus"))
    with pytest.raises(TypeError, match="one input"):
        flip(model, x[:1], e)
    with pytest.raises(ValueError, match="baseline='black': must be one of 'grey', 'blur'"):
        flip(model, x, e, baseline="black")
    with pytest.raises(ValueError, match="steps=0"):
        flip(model, x, e, steps=0)
