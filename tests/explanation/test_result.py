"""What an explanation says of itself, and that it can be kept."""

import re
from pathlib import Path

import pytest
import torch
from networks import convolutional, images, randomize
from safetensors.torch import save_file
from torch import Tensor, nn

import lrp
from lrp.rules import Epsilon


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def explained(**settings: object) -> lrp.Explanation:
    return lrp.explain(convolutional(), images(3).detach(), rule="zplus", layers=["first"], **settings)


@pytest.mark.parametrize("target", [None, lrp.Top(2), "all"])
def test_samples(target: object) -> None:
    e = explained(target=target)
    assert len(e) == 3
    for i in (0, 2, -1):
        for name in ("relevance", "output", "target", "initial_relevance", "inputs"):
            whole = getattr(e, name)
            assert torch.equal(getattr(e[i], name), whole[i].unsqueeze(0)), name
        assert torch.equal(e[i].layers["first"], e.layers["first"][i].unsqueeze(0))
        assert len(e[i]) == 1
        assert (e[i].rules, e[i].form) == (e.rules, e.form)
    assert [torch.equal(one.relevance[0], e.relevance[i]) for i, one in enumerate(e)] == [True] * 3
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"sample {i}: there are 3"):
            e[i]


def test_it_is_frozen() -> None:
    e = explained()
    with pytest.raises(AttributeError):
        e.form = "gradient"  # type: ignore[misc]


def test_maps_sum_the_channels() -> None:
    e, several = explained(), explained(target=lrp.Top(2))
    assert torch.equal(e.map(), e.relevance.sum(1))
    assert torch.equal(several.map(), several.relevance.sum(2))
    flat = lrp.explain(nn.Linear(4, 2), torch.randn(3, 4))
    assert torch.equal(flat.map(), flat.relevance)
    assert (e.numpy() == e.relevance.numpy()).all()


def test_top_features() -> None:
    e = explained()
    values, indices = e.top(5)
    assert values.shape == (3, 5)
    assert indices.shape == (3, 5, 3)
    for sample, found, places in zip(e.relevance, values, indices, strict=True):
        assert torch.equal(found, sample.flatten().sort(descending=True).values[:5])
        assert torch.equal(torch.stack([sample[tuple(place.tolist())] for place in places]), found)
    flat = lrp.explain(nn.Linear(4, 2), torch.randn(3, 4))
    assert flat.top(9).indices.shape == (3, 4)
    assert torch.equal(flat.relevance.gather(1, flat.top(2).indices), flat.top(2).values)
    with pytest.raises(TypeError, match="one target"):
        explained(target=lrp.Top(2)).top(1)


@pytest.mark.parametrize(
    "target", [None, 1, [0, 1, 2], lrp.Top(2), lrp.Difference(0, 1), lambda y: y[:, 0] * 2], ids=range(6)
)
def test_files(target: object, tmp_path: Path) -> None:
    e = explained(target=target)
    e.save(tmp_path / "e.safetensors")
    read = lrp.Explanation.load(tmp_path / "e.safetensors")
    for name in ("relevance", "output", "initial_relevance", "layers", "inputs", "form"):
        assert same(getattr(read, name), getattr(e, name)), name
    assert read.rules == {name: repr(rule) for name, rule in e.rules.items()}
    assert same(read.target, e.target) if isinstance(e.target, Tensor) else read.target == repr(e.target)
    assert repr(read) == repr(e)
    assert torch.equal(read[1].relevance, e[1].relevance)
    read.save(tmp_path / "again.safetensors")
    assert same(lrp.Explanation.load(tmp_path / "again.safetensors").rules, read.rules)


def test_files_of_structures(tmp_path: Path) -> None:
    model = nn.Bilinear(3, 4, 2)
    head = nn.Linear(2, 2)
    inputs = {"a": torch.randn(2, 3), "pair": [torch.randn(2, 2), torch.arange(2)]}
    e = lrp.explain(lambda a, pair: (a.sum(1, keepdim=True) + head(pair[0]),), inputs, 0, rule=Epsilon(0.1))
    e.save(tmp_path / "e.safetensors")
    read = lrp.Explanation.load(tmp_path / "e.safetensors")
    assert same(read.relevance, e.relevance)
    assert list(e.relevance) == ["a", "pair"]
    assert len(e.relevance["pair"]) == 1
    assert same(read.inputs, e.inputs)
    assert model is not None


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no explanation that lrp has saved"):
        lrp.Explanation.load(tmp_path / "other.safetensors")


def test_the_share_that_reached_the_input() -> None:
    e = lrp.explain(convolutional(), images(3).detach(), lrp.Top(2), rule=Epsilon(0.0, bias="ignore"))
    torch.testing.assert_close(e.reached, e.relevance.flatten(2).sum(2))
    torch.testing.assert_close(e.share, e.reached / e.initial_relevance)


def test_it_says_what_it_is() -> None:
    e = explained(target=1)
    reached, started = float(e.relevance.sum()), float(e.initial_relevance.sum())
    assert repr(e).splitlines()[0] == "Explanation of shape (3, 2, 10, 10) by ZPlus()"
    assert repr(e).splitlines()[1] == f"  {reached:.4g} of {started:.4g} reached the input, in relevance form"


class Scaled(nn.Module):
    def __init__(self, weights: list[float], bias: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([weights]))
            self.layer.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


DOUBTS = {
    "cancel: absolute values add up to 2e[+]04": (Scaled([1e4, -1e4], 1.0), [1.0, 1.0]),
    "no relevance reached the input": (Scaled([1.0, 1.0], 1.0), [0.0, 0.0]),
    "almost all relevance was absorbed": (Scaled([1e-3, 0.0], 1.0), [1.0, 1.0]),
    "not finite": (Scaled([3e38, 3e38]), [3.0, -3.0]),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_and_what_looks_wrong(doubt: str) -> None:
    model, x = DOUBTS[doubt]
    e = lrp.explain(model, torch.tensor([x]), rule=Epsilon(0.0))
    assert re.search(f"looks wrong: .*{doubt}", repr(e)), repr(e)
    assert "looks wrong" not in repr(lrp.explain(randomize(nn.Linear(3, 2)), torch.ones(1, 3).double()))


@pytest.mark.parametrize(("target", "columns"), [(None, 1), (lrp.Top(2), 2)])
def test_pictures(target: object, columns: int) -> None:
    e = explained(target=target)
    figure = e.plot()
    assert len(figure.axes) == 3 * columns
    drawn = figure.axes[columns].images[0]
    expected = e.map()[1] if target is None else e.map()[1, 0]
    assert (drawn.get_array() == expected.float().numpy()).all()
    assert drawn.get_clim() == pytest.approx((-float(expected.abs().max()), float(expected.abs().max())))


def test_pictures_of_features() -> None:
    e = lrp.explain(nn.Linear(4, 2), torch.randn(1, 4))
    assert [bar.get_height() for bar in e.plot().axes[0].patches] == pytest.approx(e.relevance[0].tolist())
    with pytest.raises(TypeError, match="draws one input"):
        lrp.explain(lambda a, b: a + b, (torch.ones(2, 3), torch.ones(2, 3))).plot()
    with pytest.raises(TypeError, match="one or two dimensions"):
        lrp.explain(nn.Conv3d(1, 2, 2), torch.randn(1, 1, 3, 3, 3), (0, 0, 0, 0)).plot()
