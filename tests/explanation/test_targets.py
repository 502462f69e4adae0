"""Each kind of target starts where it says, and adds up to what it says."""

import numpy as np
import pytest
import torch
from networks import convolutional, error, images, randomize
from torch import Tensor, nn

import lrp
from lrp import Difference, Region, Top
from lrp.rules import Epsilon

EXACT = lrp.Composite({family: Epsilon(0.0) for family in ("pool", "sum", "norm")}, default=Epsilon(0.0))


def expected(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """Gradient times input of the outputs, weighed."""
    x = x.detach().requires_grad_()
    return (x * torch.autograd.grad(model(x), x, weights)[0]).detach()


def dense() -> nn.Module:
    torch.manual_seed(0)
    return randomize(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)))


def one_hot(*index: int, n: int = 2, of: int = 3) -> Tensor:
    return (
        torch.eye(of, dtype=torch.float64)[list(index)] if len(index) == n else torch.eye(of)[[index[0]] * n].double()
    )


CLASSIFIERS = {
    "a number": (1, one_hot(1)),
    "of numpy": (np.int64(1), one_hot(1)),
    "from the end": (-1, one_hot(2)),
    "each": ([0, 2], one_hot(0, 2)),
    "an array": (np.array([0, 2]), one_hot(0, 2)),
    "a tensor": (torch.tensor([0, 2]), one_hot(0, 2)),
    "one index": ((1,), one_hot(1)),
    "indices": ([(1,), (2,)], one_hot(1, 2)),
    "difference": (Difference(0, 2), one_hot(0) - one_hot(2)),
    "differences": (Difference([0, 1], torch.tensor([2, 2])), one_hot(0, 1) - one_hot(2, 2)),
    "a function": (lambda y: y[:, 1], one_hot(1)),
    "functions": ([lambda y: y[0], lambda y: y[2]], one_hot(0, 2)),
    "a sum": (lambda y: 2 * y[:, 0] - y[:, 2], 2 * one_hot(0) - one_hot(2)),
}


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_of_a_classifier(kind: str, form: str) -> None:
    model, x = convolutional(), images().detach()
    target, weights = CLASSIFIERS[kind]
    e = lrp.explain(model, x, target, rule=EXACT, form=form)
    assert error(e.relevance, expected(model, x, weights)) < 1e-9
    torch.testing.assert_close(e.initial_relevance, (model(x) * weights).sum(1).detach())


def test_by_itself_it_is_the_largest() -> None:
    model, x = convolutional(), images().detach()
    e = lrp.explain(model, x, rule=EXACT)
    assert torch.equal(e.target, model(x).argmax(1))
    assert error(e.relevance, expected(model, x, torch.eye(3).double()[model(x).argmax(1)])) < 1e-9


SEVERAL = {
    "top": (Top(2), None),
    "a tensor": (torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0, 1], [2, 0]])),
    "lists": ([[0, 1], [2, 0]], torch.tensor([[0, 1], [2, 0]])),
    "all": ("all", torch.tensor([[0, 1, 2], [0, 1, 2]])),
}


@pytest.mark.parametrize("rule", [EXACT, "epsilon_plus_flat", "alpha2beta1", "gradient"])
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_of_one_forward(kind: str, rule: object) -> None:
    model, x = convolutional(), images().detach()
    target, index = SEVERAL[kind]
    e = lrp.explain(model, x, target, rule=rule, layers={"first": "input"})
    index = model(x).topk(2).indices if index is None else index
    assert torch.equal(e.target, index)
    assert e.relevance.shape == (2, index.shape[1], *x.shape[1:])
    torch.testing.assert_close(e.initial_relevance, model(x).detach().gather(1, index))
    for k in range(index.shape[1]):
        one = lrp.explain(model, x, index[:, k], rule=rule, form=e.form)
        assert error(e.relevance[:, k], one.relevance) < 1e-9
        assert error(e.layers["first"][:, k], one.relevance) < 1e-9


def test_many_in_chunks() -> None:
    torch.manual_seed(0)
    model, x = randomize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 50))), torch.randn(3, 4).double()
    e = lrp.explain(model, x, "all", rule=Epsilon(0.1))
    for k in (0, 16, 17, 49):
        assert error(e.relevance[:, k], lrp.explain(model, x, k, rule=Epsilon(0.1)).relevance) < 1e-12
    torch.testing.assert_close(lrp.explain(model, x, "all", rule=Epsilon(0.1), batch_size=2).relevance, e.relevance)


def test_dense_outputs() -> None:
    model, x = dense(), images(size=5).detach()
    y = model(x)
    weights = torch.zeros_like(y)
    weights[:, 1, 2, 3] = 1
    assert error(lrp.explain(model, x, (1, 2, 3), rule=EXACT).relevance, expected(model, x, weights)) < 1e-9
    weights = torch.zeros_like(y)
    weights[0, 1, 2, 3] = weights[1, 2, 0, 4] = 1
    e = lrp.explain(model, x, [(1, 2, 3), (2, 0, -1)], rule=EXACT)
    assert error(e.relevance, expected(model, x, weights)) < 1e-9
    assert e.target.tolist() == [[1, 2, 3], [2, 0, 4]]
    largest = lrp.explain(model, x, rule=EXACT)
    assert [y[i][tuple(largest.target[i].tolist())] for i in range(2)] == [y[i].max() for i in range(2)]
    weights = torch.zeros_like(y)
    weights[:, 1] = 1
    assert error(lrp.explain(model, x, 1, rule=EXACT).relevance, expected(model, x, weights)) < 1e-9


@pytest.mark.parametrize("is_each", [False, True])
def test_regions(is_each: bool) -> None:
    model, x = dense(), images(size=5).detach()
    mask = torch.rand(2, 5, 5) > 0.5 if is_each else torch.rand(5, 5) > 0.5
    target = torch.tensor([0, 2]) if is_each else 2
    weights = torch.zeros_like(model(x))
    weights[torch.arange(2), target] = mask.double()
    e = lrp.explain(model, x, Region(target, mask), rule=EXACT)
    assert error(e.relevance, expected(model, x, weights)) < 1e-9
    torch.testing.assert_close(
        lrp.explain(model, x, Region(target, mask), rule=EXACT, batch_size=1).relevance, e.relevance
    )


def test_one_number_a_sample() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)))
    x = torch.randn(3, 4).double()
    column = lrp.explain(model, x, rule=EXACT)
    flat = lrp.explain(lambda t: model(t).squeeze(1), x, rule=EXACT)
    single = lrp.explain(lambda t: model(t).squeeze(), x[:1], rule=EXACT)
    assert error(column.relevance, expected(model, x, torch.ones(3, 1).double())) < 1e-9
    assert torch.equal(flat.relevance, column.relevance)
    assert error(single.relevance, column.relevance[:1]) < 1e-12
    assert flat.target is None
    for e in (flat, column):
        torch.testing.assert_close(e.initial_relevance, model(x).squeeze(1).detach())


class Detector(nn.Module):
    """Boxes and scores, as many as an image has."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        scores = self.backbone(x).amax(3).flatten(1)
        return [{"scores": s.sort(descending=True).values[: 2 + i]} for i, s in enumerate(scores)]


def test_a_detector() -> None:
    model, x = randomize(Detector()), images().detach()
    best = [lambda found: found["scores"][0]] * 2
    e = lrp.explain(model, x, best, rule=EXACT)
    x.requires_grad_()
    scores = torch.stack([found["scores"][0] for found in model(x)])
    assert error(e.relevance, x.detach() * torch.autograd.grad(scores.sum(), x)[0]) < 1e-9
    assert torch.equal(e.output[1]["scores"], model(x)[1]["scores"])
    parts = lrp.explain(model, x, best, rule=EXACT, batch_size=1)
    assert len(parts.output) == 2
    assert torch.equal(parts.output[1]["scores"], model(x[1:])[0]["scores"])
    assert error(parts.relevance, e.relevance) < 1e-12
    assert parts.audit().started == pytest.approx(e.audit().started)
    together = lrp.explain(model, x, lambda found: torch.stack([f["scores"][0] for f in found]), rule=EXACT)
    assert error(together.relevance, e.relevance) < 1e-12


STARTS = {
    "output": lambda y, t: torch.eye(3).double()[t] * y,
    "one": lambda y, t: torch.eye(3).double()[t],
    "probability": lambda y, t: torch.eye(3).double()[t] * y.softmax(1),
    "contrast": lambda y, t: y * (1.5 * torch.eye(3).double()[t] - 0.5),
}


@pytest.mark.parametrize("kind", STARTS)
def test_starts(kind: str) -> None:
    model, x, target = convolutional(), images().detach(), torch.tensor([0, 2])
    y = model(x).detach()
    start = STARTS[kind](y, target)
    e = lrp.explain(model, x, target, rule=EXACT, initial_relevance=kind)
    assert error(e.relevance, expected(model, x, start / y)) < 1e-9
    torch.testing.assert_close(e.initial_relevance, start.sum(1))
    several = lrp.explain(model, x, torch.stack([target, target * 0 + 1], 1), rule=EXACT, initial_relevance=kind)
    assert error(several.relevance[:, 0], e.relevance) < 1e-12
    by_tensor = lrp.explain(model, x, rule=EXACT, initial_relevance=start)
    assert error(by_tensor.relevance, e.relevance) < 1e-12


def test_starts_by_numbers() -> None:
    model, x = convolutional(), images().detach()
    one = lrp.explain(model, x, 1, rule=EXACT, initial_relevance="one").relevance
    R = lrp.explain(model, x, 1, rule=EXACT, initial_relevance=torch.tensor([2.0, -3.0])).relevance
    assert error(R, one * torch.tensor([2.0, -3.0]).view(2, 1, 1, 1)) < 1e-12
    both = lrp.explain(model, x, [[1, 0], [1, 0]], rule=EXACT, initial_relevance=torch.tensor([[2.0, 1], [-3, 1]]))
    assert error(both.relevance[:, 0], R) < 1e-12
    by_function = lrp.explain(model, x, lambda y: y[:, 1], rule=EXACT, initial_relevance=torch.tensor([2.0, -3.0]))
    assert error(by_function.relevance, R) < 1e-12


WRONG = {
    "too large": (3, r"target=3: must be from -3 to 2; the output has shape \(2, 3\)"),
    "too many": ([0, 1, 2], r"N = 2; the output has shape \(2, 3\)"),
    "a fraction": (0.5, r"must be a number, one for each sample.*\(2, 3\)"),
    "fractions": (torch.tensor([0.5, 1.0]), r"of integers, and is of torch.float32; the output has shape \(2, 3\)"),
    "a truth": (True, "must be a number"),
    "a word": ("cat", r"the only word is 'all'; the output has shape \(2, 3\)"),
    "a long index": ((1, 2), r"an index is a tuple of 1 numbers, within \(3,\); the output has shape \(2, 3\)"),
    "few indices": ([(1,)], r"one index for each of 2 samples"),
    "an outer index": ([(1,), (5,)], r"within \(3,\)"),
    "top": (Top(4), r"has 3 outputs a sample; the output has shape \(2, 3\)"),
    "a difference of several": (Difference(Top(2), 1), "compares one output of each sample with another"),
    "a mask": (Region(1, torch.ones(4)), r"the mask has shape \(4,\): must be \(2,\)"),
    "many functions": ([torch.sum] * 3, "has 3 functions: must be one for each of 2 samples"),
    "a matrix": (lambda y: y, r"gives shape \(2, 3\): must be \(2,\)"),
    "nothing": (lambda y: None, "gives a NoneType"),
    "ragged": ([[0], [1, 2]], r"the output has shape \(2, 3\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_target_is_told_in_one_line(kind: str) -> None:
    target, message = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=message) as told:
        lrp.explain(convolutional(), images().detach(), target, rule="zplus")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ("logit", "must be one of 'output', 'one'"),
        (3.0, "is a float: must be a word or a tensor"),
        (torch.ones(5), r"has shape \(5,\): must be \(2,\), or that of the output, \(2, 3\)"),
    ],
)
def test_and_a_wrong_start(initial: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        lrp.explain(convolutional(), images().detach(), 0, rule="zplus", initial_relevance=initial)


def test_what_is_no_class_has_no_probability() -> None:
    with pytest.raises(ValueError, match=r"'probability': needs several classes; the output has shape \(2, 1\)"):
        lrp.explain(nn.Linear(3, 1), torch.randn(2, 3), initial_relevance="probability")


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_top_is_of_some(k: object) -> None:
    with pytest.raises(ValueError, match="must be a positive integer"):
        Top(k)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "expected"), [(1, [16, 16, 16, 2]), (3, [5] * 10), (40, [1] * 50)])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_no_backward_makes_more_maps_than_a_few(
    n: int, expected: list[int], batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomize(nn.Linear(4, 50)), torch.randn(n, 4).double()
    grad, numbers = torch.autograd.grad, []

    def counted(y: Tensor, ends: object, start: Tensor, **settings: object) -> object:
        numbers.append(len(start) if settings.get("is_grads_batched") else 1)
        return grad(y, ends, start, **settings)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    e = lrp.explain(model, x, "all", rule=Epsilon(0.1), batch_size=batch_size)
    assert e.relevance.shape == (n, 50, 4)
    assert numbers == expected * (2 if batch_size is not None and n > batch_size else 1)
