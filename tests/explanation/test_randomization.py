"""A map that does not change with the weights shows nothing of what was learned."""

import pytest
import torch
from networks import convolutional, images, randomize
from torch import Tensor, nn

import lrp
from lrp.explanation.randomization import rank_correlation
from lrp.rules import Epsilon


def test_rank_correlations() -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    a, b = torch.randn(3, 50).double(), torch.randn(3, 50).double()
    b[0] = a[0].exp()
    a[1, :20] = b[1, 10:40] = 0.0
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float64))
    assert rank_correlation(torch.zeros(1, 4), torch.randn(1, 4)) == 0


def test_layers_are_drawn_from_the_top() -> None:
    model, x = convolutional().eval(), images().detach()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = lrp.explain(model, x, rule=Epsilon(0.1)).randomized(0)
    assert [*found.curve][:1] == ["last"]
    assert [*found.curve][-1:] == ["first"]
    assert {"norm", "block.conv", "block.shortcut", "alone", "more.0"} <= set(found.curve)
    assert found.correlation == found.curve["first"]
    assert all(-1 <= value <= 1 for value in found.curve.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    again = lrp.explain(model, x, rule=Epsilon(0.1))
    assert again.randomized(0) == found
    assert again.randomized(1) != found


def test_it_is_of_the_map_that_the_drawn_model_has() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
    e = lrp.explain(model, x, rule=Epsilon(0.1))
    found = e.randomized(3)
    drawn = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    drawn.load_state_dict(model.state_dict())
    before = lrp.explain(model, x, e.target, rule=Epsilon(0.1), initial_relevance="one").relevance
    torch.manual_seed(3)
    for name in ("2", "0"):
        drawn.get_submodule(name).reset_parameters()
        now = lrp.explain(drawn, x, e.target, rule=Epsilon(0.1), initial_relevance="one").relevance
        assert found.curve[name] == pytest.approx(float(rank_correlation(before, now).mean()))


def test_a_map_that_does_not_look_at_the_weights_stays() -> None:
    model, x = nn.Sequential(nn.Linear(6, 1, bias=False)), torch.rand(4, 6)
    flat = lrp.explain(model, x, rule="flat", initial_relevance="one")
    assert flat.randomized(0).correlation == 0  # all ranks are one
    torch.testing.assert_close(flat.relevance, torch.full((4, 6), 1 / 6))
    with torch.no_grad():
        model[0].weight.abs_()
    assert lrp.explain(model, x, rule="gradient").randomized(0).correlation < 1


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"target": lrp.Top(2)}, {"target": lambda y: y[:, 1]}])
def test_whatever_is_asked(settings: dict[str, object]) -> None:
    model, x = convolutional().eval(), images(3).detach()
    found = lrp.explain(model, x, rule="zplus", **settings).randomized(0)
    assert -1 <= found.correlation <= 1
    if "batch_size" in settings:
        assert found.curve == pytest.approx(lrp.explain(model, x, rule="zplus").randomized(0).curve)


def test_the_curve_is_drawn() -> None:
    model, x = convolutional().eval(), images().detach()
    found = lrp.explain(model, x, rule="zplus").randomized(0)
    line = found.plot().axes[0].lines[0]
    assert [*line.get_ydata()] == [*found.curve.values()]


def test_what_cannot_be_drawn() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    with pytest.raises(TypeError, match="no layer of the model has reset_parameters"):
        lrp.explain(Own(), torch.randn(2, 3)).randomized(0)
    with pytest.raises(TypeError, match="is a function, whose weights cannot be drawn"):
        lrp.explain(lambda x: randomize(nn.Linear(3, 2)).float()(x), torch.randn(2, 3)).randomized(0)
