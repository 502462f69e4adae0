"""A softmax or a log-softmax at the end of a network is told of, once, with the remedy."""

from collections.abc import Callable

import pytest
import torch
from networks import error
from test_handlers import draw, relevances
from torch import Tensor, nn
from torch.nn import functional as F

import lrp

HEADS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: nn.Softmax(1),
    "log-softmax": lambda: nn.LogSoftmax(1),
    "moved": lambda: nn.Sequential(nn.Softmax(1), nn.Unflatten(1, (1, 3))),
    "the log of a softmax": lambda: Function(lambda x: x.softmax(1).log()),
    "several": lambda: Function(lambda x: {"a": x.softmax(1), "b": x.log_softmax(1)}),
}
NO_HEADS: dict[str, Callable[[], nn.Module]] = {
    "a gate": lambda: Function(lambda x: x * x.softmax(1)),
    "beside logits": lambda: Function(lambda x: (x, x.softmax(1))),
    "before a layer": lambda: nn.Sequential(nn.Softmax(1), nn.Linear(3, 2).double()),
    "a sigmoid": lambda: nn.Sigmoid(),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
@pytest.mark.parametrize("name", HEADS)
def test_a_softmax_at_the_end_is_told_once(name: str, rule: str) -> None:
    model = lrp.Sequential(nn.Linear(4, 3).double(), HEADS[name]())
    with pytest.warns(lrp.RelevanceWarning, match="explain the logits") as told:
        model(draw(2, 4), explain=True, rule=rule, strict=True)
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
@pytest.mark.parametrize("name", NO_HEADS)
def test_a_softmax_elsewhere_is_fine(name: str, rule: str) -> None:
    lrp.Sequential(nn.Linear(4, 3).double(), NO_HEADS[name]())(draw(2, 4), explain=True, rule=rule, strict=True)


def test_a_confident_softmax_vanishes_and_a_log_softmax_is_its_logit() -> None:
    x, weight = draw(2, 4), 50 * draw(3, 4, seed=1).detach()

    def relevance(head: Callable[[Tensor], Tensor]) -> Tensor:
        return relevances(lambda x: head(F.linear(x, weight)).max(1).values, x, R=torch.ones(2).double())[0]

    logits = relevance(lambda z: z)
    with pytest.warns(lrp.RelevanceWarning):
        assert error(relevance(lambda z: z.log_softmax(1)), logits) < 1e-12
    with pytest.warns(lrp.RelevanceWarning):
        assert relevance(lambda z: z.softmax(1)).abs().max() < 1e-6 * logits.abs().max()


@pytest.mark.parametrize(
    "log_softmax", [torch.log_softmax, torch.special.log_softmax, Tensor.log_softmax, F.log_softmax]
)
def test_a_log_softmax_passes_relevance_unchanged(log_softmax: Callable[[Tensor, int], Tensor]) -> None:
    x, R = draw(4, 3), draw(4, 3, seed=2).detach()
    with pytest.warns(lrp.RelevanceWarning, match="explain the logits"):
        assert torch.equal(relevances(lambda x: log_softmax(x, 1), x, R=R)[0], R)
