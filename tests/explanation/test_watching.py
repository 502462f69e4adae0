"""The relevance at any module: that of its tensor, whichever functions make it and use it."""

import pytest
import torch
import torchvision
from networks import convolutional, error, images, randomize
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Epsilon


def start_of(y: Tensor) -> Tensor:
    start = torch.zeros_like(y)
    start[:, 0] = y[:, 0]
    return start.detach()


def test_a_container_is_the_sum_over_its_branches() -> None:
    model = randomize(torchvision.models.resnet18(num_classes=3)).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    rule = lrp.Composite({family: Epsilon(0.0) for family in ("sum", "pool")}, default="zplus")
    names = ["layer2", "layer3", "layer4.0", "avgpool"]
    e = lrp.explain(model, x, 0, rule=rule, layers=names)
    with lrp.trace.record() as inputs:
        y = lrp.convert(model)(x.clone().requires_grad_(), explain=True, rule=rule)
        y.backward(start_of(y))
    assert list(e.layers) == names
    assert error(e.layers["layer3"], inputs["layer4.0.conv1"] + inputs["layer4.0.downsample.0"]) < 1e-9
    assert error(e.layers["layer2"], inputs["layer3.0.conv1"] + inputs["layer3.0.downsample.0"]) < 1e-9
    assert error(e.layers["avgpool"].flatten(1), inputs["fc"]) < 1e-9
    before = lrp.explain(model, x, 0, rule=rule, layers={"layer3": "input"})
    assert error(before.layers["layer3"], e.layers["layer2"]) < 1e-12
    assert error(before.relevance, e.relevance) < 1e-12


class Branches(nn.Module):
    """Modules whose outputs are overwritten, viewed, used twice and called again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.same, self.flat, self.head = nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.conv(x)))
        a = self.same(h)
        b = self.same(self.relu(a * 2.0))
        b += h
        return self.head(self.flat(b))


def by_hooks(model: nn.Module, x: Tensor, rule: object) -> dict[str, Tensor]:
    """The gradients of an explained forward at the outputs of modules, as the hooks of tensors see them."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name:

            def see(m: nn.Module, args: object, y: Tensor, name: str = name) -> None:
                number = sum(key.split("#")[0] == name for key in found) + 1
                key = name if number == 1 else f"{name}#{number}"
                found[key] = torch.empty(0)
                y.register_hook(lambda R, key=key: found.__setitem__(key, R))

            module.register_forward_hook(see)
    y = lrp.convert(model)(x.clone().requires_grad_(), explain=True, rule=rule)
    y.backward(start_of(y))
    return found


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
def test_outputs_are_as_hooks_see_them(rule: str) -> None:
    model, x = randomize(Branches()).eval(), images(size=4).detach()
    exact = lrp.Composite({family: Epsilon(0.0) for family in ("sum", "pool")}, default=rule)
    e = lrp.explain(model, x, 0, rule=exact, layers="*")
    expected = by_hooks(randomize(Branches()).eval(), x, exact)
    assert set(e.layers) == set(expected) == {"conv", "norm", "relu", "relu#2", "same", "same#2", "flat", "head"}
    for name, R in expected.items():
        assert error(e.layers[name], R) < 1e-9, name


def test_a_trace_has_them_too() -> None:
    model, x = randomize(Branches()).eval(), images(size=4).detach()
    exact = lrp.Composite({"sum": Epsilon(0.0)}, default="zplus")
    e = lrp.explain(model, x, 0, rule=exact, layers=["conv", "same", "flat"])
    twin = lrp.convert(model)
    with lrp.trace.record(outputs=["conv", "same", "flat"]) as relevances:
        y = twin(x.clone().requires_grad_(), explain=True, rule=exact)
        y.backward(start_of(y), retain_graph=True)
    assert list(relevances) == ["flat", "same#2", "same", "conv"]
    for name, R in relevances.items():
        assert error(R, e.layers[name]) < 1e-9, name
    relevances.clear()
    y.backward(start_of(y))
    assert relevances == {}
    with lrp.trace.record(outputs=["conv"]), pytest.raises(ValueError, match="must be form='relevance'"):
        twin(x.clone().requires_grad_(), explain=True, rule=exact, form="gradient")
    with pytest.raises(ValueError, match="form='gradient' with layers="):
        lrp.explain(model, x, rule=exact, form="gradient", layers=["conv"])
    assert not any(m._forward_hooks for m in (*twin.modules(), *model.modules()))


def test_both_sides_of_several_tensors() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return F.relu(a), 2.0 * b

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pair, self.last = nn.Linear(3, 4), Pair(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.pair(self.first(x), b=self.first(x))
            return self.last(a + b)

    model, x = randomize(Model()), torch.randn(2, 3, dtype=torch.float64)
    rule = lrp.Composite({"sum": Epsilon(0.0)}, default=Epsilon(0.0))
    after = lrp.explain(model, x, 0, rule=rule, layers=["pair"]).layers
    before = lrp.explain(model, x, 0, rule=rule, layers={"pair": "input", "last": "input"}).layers
    assert list(after) == ["pair[0]", "pair[1]"]
    assert list(before) == ["pair[0]", "pair[1]", "last"]
    torch.testing.assert_close(after["pair[0]"] + after["pair[1]"], before["last"])
    torch.testing.assert_close(list(after.values()), list(before.values())[:2])


def test_globs_and_names_that_are_not_there() -> None:
    model, x = convolutional(), images().detach()
    assert list(lrp.explain(model, x, rule="zplus", layers="more*").layers) == ["more.0", "more.1", "more.2", "more"]
    with pytest.raises(ValueError, match="no module is named 'fist'; there are 'first'"):
        lrp.explain(model, x, rule="zplus", layers=["fist"])
    with pytest.raises(ValueError, match="'first': 'outside': must be 'input' or 'output'"):
        lrp.explain(model, x, rule="zplus", layers={"first": "outside"})
    with pytest.raises(ValueError, match="no module is named 'fist'"), lrp.trace.record(outputs=["fist"]):
        model(x.requires_grad_(), explain=True)


def test_what_relevance_does_not_reach_is_zero() -> None:
    model, x = nn.Sequential(randomize(nn.Linear(3, 4)), nn.Identity()), torch.randn(2, 3, dtype=torch.float64)
    e = lrp.explain(lambda t: model(t), x, 0, rule="zplus")
    assert e.layers == {}

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = model[0], randomize(nn.Linear(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return self.used(x)

    layers = lrp.explain(Aside(), x, [[0, 1], [0, 1]], rule="zplus", layers=["aside", "used"]).layers
    assert (layers["aside"] == 0).all()
    assert (layers["aside"].shape, layers["used"].shape) == ((2, 2, 2), (2, 2, 4))
    assert (layers["used"].flatten(1) != 0).sum() == 4
