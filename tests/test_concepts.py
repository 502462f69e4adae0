"""The maps of a layer's channels add up, and the samples are those in which a channel matters most."""

import pytest
import torch
import torchvision
from networks import convolutional, error, images, randomize
from torch import Tensor, nn

import lrp
from lrp import concepts
from lrp.rules import Epsilon

RULES = {
    "epsilon": Epsilon(0.1),
    "zplus": "zplus",
    "gamma": lrp.rules.Gamma(0.25, generalized=True),
    "epsilon_plus_flat": "epsilon_plus_flat",
    "alpha2beta1": "alpha2beta1",
}


def leaky() -> nn.Module:
    """A network whose channels all have relevance."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.3), nn.Conv2d(4, 6, 3), nn.LeakyReLU(0.3)
    return randomize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(216, 3))).eval()


def maps(model: nn.Module, x: Tensor, layer: str, channels: int, rule: object) -> list[Tensor]:
    return [lrp.explain(model, x, 0, rule=rule, concepts={layer: [c]}).relevance for c in range(channels)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layer", "channels"), [("first", 4), ("norm", 4), ("block", 4), ("more.0", 4)])
def test_the_channels_of_a_layer_that_every_path_crosses_add_up(layer: str, channels: int, rule: str) -> None:
    model, x = convolutional(True), images().detach()
    size = lrp.explain(model, x, 0, rule=RULES[rule], layers=[layer]).layers[layer].shape[1]
    whole = lrp.explain(model, x, 0, rule=RULES[rule], form="relevance").relevance
    parts = maps(model, x, layer, size, RULES[rule])
    assert error(sum(parts), whole) < 1e-9
    together = lrp.explain(model, x, 0, rule=RULES[rule], concepts={layer: [0, -1]}).relevance
    assert error(together, parts[0] + parts[-1]) < 1e-9
    assert channels <= size


def test_float32_on_a_resnet() -> None:
    model = randomize(torchvision.models.resnet18(num_classes=3)).float().eval()
    x = torch.randn(2, 3, 32, 32)
    whole = lrp.explain(model, x, 0, rule="epsilon_plus").relevance
    halves = [
        lrp.explain(model, x, 0, rule="epsilon_plus", concepts={"layer2": range(first, first + 64)}).relevance
        for first in (0, 64)
    ]
    exact = lrp.explain(model, x, 0, rule="epsilon_plus", form="relevance").relevance
    assert error(halves[0] + halves[1], exact) < 1e-6
    assert error(exact, whole) < 1e-2


def test_the_mask_is_at_the_layer() -> None:
    model, x = leaky(), images().detach()
    e = lrp.explain(model, x, 0, rule=Epsilon(0.1), concepts={"0": [2]}, layers={"0": "input", "1": "output"})
    assert error(e.layers["0"], e.relevance) < 1e-12
    plain = lrp.explain(model, x, 0, rule=Epsilon(0.1), layers=["1"])
    assert torch.equal(e.layers["1"], plain.layers["1"])
    assert (e.form, len(e.initial_relevance)) == ("relevance", 2)


def test_two_layers_and_several_targets() -> None:
    model, x = leaky(), images().detach()
    asked = {"0": [0, 2], "3": [1]}
    several = lrp.explain(model, x, "all", rule=Epsilon(0.1), concepts=asked)
    for k in range(3):
        one = lrp.explain(model, x, k, rule=Epsilon(0.1), concepts=asked)
        assert error(several.relevance[:, k], one.relevance) < 1e-9
    apart = [lrp.explain(model, x, 0, rule=Epsilon(0.1), concepts={"0": c, "3": 1}).relevance for c in (0, 2)]
    assert error(apart[0] + apart[1], several.relevance[:, 0]) < 1e-9


def test_concepts_that_are_not_there() -> None:
    model, x = convolutional(), images().detach()
    with pytest.raises(ValueError, match="concepts: no module is named 'fist'"):
        lrp.explain(model, x, concepts={"fist": [0]})
    with pytest.raises(ValueError, match=r"the module has 4 channels"):
        lrp.explain(model, x, concepts={"first": [4]})
    with pytest.raises(ValueError, match="form='gradient' with layers= or concepts="):
        lrp.explain(model, x, concepts={"first": [0]}, form="gradient")
    assert not model.first._forward_hooks


def data(n: int = 17) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 2, 10, 10, dtype=torch.float64)


@pytest.mark.parametrize("layer", ["0", "2", "3"])
def test_the_most_relevant_samples(layer: str) -> None:
    model, x = leaky(), data()
    R = lrp.explain(model, x, rule=Epsilon(0.1), layers=[layer]).layers[layer]
    scores = R.flatten(2).sum(2) if R.dim() > 2 else R
    found = concepts.reference(model, x.split(5), layer, 1, k=6, rule=Epsilon(0.1))
    assert found.indices.tolist() == scores[:, 1].argsort(descending=True)[:6].tolist()
    torch.testing.assert_close(found.scores, scores[:, 1].sort(descending=True).values[:6])
    several = concepts.reference(model, [(b, b.sum()) for b in x.split(5)], layer, [1, 0, 2], k=6, rule=Epsilon(0.1))
    assert several.indices.shape == (3, 6)
    assert torch.equal(several.indices[0], found.indices)


def test_and_the_most_active() -> None:
    model, x = convolutional(), data()
    expected = model.first(x)[:, 3].flatten(1).amax(1).argsort(descending=True)[:4]
    found = concepts.reference(model, x.split(4), "first", 3, k=4, by="activation")
    assert torch.equal(found.indices, expected)
    assert not model.first._forward_hooks


def test_processes_merge() -> None:
    model, x = leaky(), data()
    whole = concepts.reference(model, x.split(4), "0", 2, k=5, rule=Epsilon(0.1))
    parts = [
        concepts.reference(model, x[rank::3].split(2), "0", 2, k=5, rule=Epsilon(0.1), indices=range(rank, 17, 3))
        for rank in range(3)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert torch.equal(merged.indices, whole.indices)
    torch.testing.assert_close(merged.scores, whole.scores)
    few = concepts.reference(model, x[:2].split(1), "0", 2, k=5, rule=Epsilon(0.1))
    assert few.indices.shape == (2,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "fist"}, "no module is named 'fist'"),
        ({"layer": "fist", "by": "activation"}, "layer='fist': the model has no such module"),
        ({"channel": 9}, "channel=9: the outputs of 'first' have 4 channels"),
        ({"k": 0}, "k=0"),
        ({"by": "size"}, "by='size'"),
        ({"loader": []}, "gives no batches"),
    ],
)
def test_wrong_references(settings: dict[str, object], message: str) -> None:
    asked = {"loader": data(3).split(2), "layer": "first", "channel": 0, "rule": Epsilon(0.1), **settings}
    with pytest.raises(ValueError, match=message):
        concepts.reference(convolutional(), **asked)  # type: ignore[arg-type]
