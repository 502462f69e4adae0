"""Patterns equal those of explicit matrices (tests/oracles/patterns_reference.py), however the data come."""

import copy
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import patterns_reference
from oracles.patterns_reference import KINDS
from strategies import LAYERS, cases, quarters, seeds
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, TensorDataset

import lrp

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_map = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)


class Block(nn.Module):
    """A residual sum, a layer that is called twice, one never, and members in another order than that of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3, bias=False)
        self.unused = nn.Linear(2, 2)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = x + self.relu(self.twice(x))
        x = self.relu(self.twice(x[..., 1:]))
        x = self.dropout(self.up(x)).mean((2, 3))
        return self.last(x)


ORDER = ["first", "twice", "up", "last"]  # of the first calls in Block


def block() -> nn.Module:
    return networks.randomize(Block())


def sequential(channels: int = 4, features: int = 36) -> nn.Sequential:
    """Layers "0", "2" and "5", for images of 2 channels and size 6."""
    first, second, last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, channels, 2), nn.Linear(features, 2)
    return networks.randomize(nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(), nn.Flatten(), last))


def batches(*sizes: int, size: int = 6, seed: int = 0) -> list[Tensor]:
    """Images with means that differ by channel, in batches of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 2, size, size, generator=generator, dtype=torch.float64)
    return list((x + torch.tensor([1.0, -0.5])[:, None, None]).split(sizes))


def statistics(model: nn.Module, data: list) -> "lrp.patterns.PatternStatistics":
    fitted = lrp.patterns.PatternStatistics(model)
    for batch in data:
        fitted.update(batch)
    return fitted


def assert_same(patterns: list[Tensor], expected: list[Tensor | np.ndarray], tolerance: float = 1e-12) -> None:
    """The largest difference, relative to the largest value."""
    assert len(patterns) == len(expected)
    for actual, oracle in zip(patterns, map(torch.as_tensor, expected), strict=True):
        assert actual.shape == oracle.shape
        assert (actual - oracle).abs().max() <= tolerance * oracle.abs().max()


@every_map
@settings(max_examples=40)
@given(data=st.data(), seed=seeds, sizes=st.lists(st.integers(1, 4), max_size=2))
def test_equal_to_explicit_matrices(
    layer_class: type[nn.Module], data: st.DataObject, seed: int, sizes: list[int]
) -> None:
    layer, x = data.draw(cases(layer_class))
    generator = torch.Generator().manual_seed(seed)
    dimensions = 1 if layer_class is nn.Linear else len(layer.kernel_size) + 1
    inputs = [x, *(quarters(generator, n, *x.shape[-dimensions:]) for n in sizes)]
    fitted = statistics(layer, inputs)
    for kind in KINDS:
        (pattern,) = fitted.patterns(kind)
        assert pattern.shape == layer.weight.shape
        assert pattern.isfinite().all()
        estimate = patterns_reference.Estimate.of(layer, inputs, kind)
        expected = estimate.pattern()
        error = np.abs(patterns_reference.rows(layer, pattern) - expected).max(1)
        assert (error <= 1e-9 * np.abs(expected).max(1))[estimate.well_conditioned()].all(), kind


@every_kind
def test_a_network_of_several_layers(kind: str) -> None:
    model, data = block(), [*batches(4, 3), *batches(2, size=9, seed=1)]
    inputs = patterns_reference.captured(model, data, ORDER)
    assert len(inputs["twice"]) == 6
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    layers = {name: model.get_submodule(name) for name in ORDER}
    layers["first"] = fuse_conv_bn_eval(model.first, model.norm)  # what the activation function sees
    expected = [patterns_reference.patterns(layers[name], inputs[name], kind) for name in ORDER]
    expected[0] = torch.as_tensor(expected[0]) * scale.detach()[:, None, None, None]
    assert_same(statistics(model.train(), data).patterns(kind), expected, 1e-9)


def test_patterns_fit_the_explanation_of_their_model() -> None:
    model, data = block(), batches(4, 3)
    patterns = statistics(model, data).patterns()
    explainable = lrp.convert(model)
    assert_same(statistics(explainable, data).patterns(), patterns)
    x = data[0].requires_grad_()
    explainable(x, explain=True, rule="patternattribution", pattern=patterns).sum().backward()
    assert x.grad.abs().sum() > 0


def test_signal_is_found_where_the_filter_cancels_a_distractor() -> None:
    """Haufe et al. (2014): x = a s + distractor, and the filter w finds s, w^T a = 1 and w^T distractor = 0."""
    model, signal, x = patterns_reference.haufe(100_000)
    (pattern,) = lrp.patterns.fit_patternnet(model, x.split(10_000))
    w = model[0].weight.detach()
    assert (pattern - signal).abs().max() < 1e-2
    assert (w / (w @ w.T) - signal).abs().max() > 0.1


@pytest.mark.parametrize(("bias", "same", "zero"), [(1e3, "positive", "negative"), (-1e3, "negative", "positive")])
def test_neurons_that_always_fire_or_never(bias: float, same: str, zero: str) -> None:
    model = sequential()
    nn.init.constant_(model[0].bias, bias)
    fitted = statistics(model, batches(4, 3))
    assert_same(fitted.patterns(same)[:1], fitted.patterns("linear")[:1], 1e-9)
    assert fitted.patterns(zero)[0].count_nonzero() == 0


@every_kind
def test_neurons_without_weights_have_no_pattern(kind: str) -> None:
    model = sequential()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.weight[1])
    for pattern in statistics(model, batches(4, 3)).patterns(kind)[:2]:
        assert pattern.isfinite().all()
        assert pattern[1].count_nonzero() == 0


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 4), (7,)])
def test_inputs_that_do_not_vary_have_no_linear_pattern(sizes: tuple[int, ...]) -> None:
    layer = networks.randomize(nn.Linear(4, 3))
    (pattern,) = statistics(layer, [torch.full((n, 4), 0.25, dtype=torch.float64) for n in sizes]).patterns()
    assert pattern.count_nonzero() == 0


@pytest.mark.parametrize("n", [3, 4, 5])
def test_neurons_that_are_zero_where_they_do_not_fire_have_no_negative_pattern(n: int) -> None:
    """After a ReLU and without bias: E-[x y] and E-[x] are zero, and what differs from zero is rounding."""
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    x = torch.tensor([[0, 0], [0.25, 1], [0, 0], [1, 1], [0.5, 0.5]], dtype=torch.float64)[:n]
    assert statistics(layer, [x]).patterns("negative")[0].count_nonzero() == 0


@every_kind
def test_a_large_mean_in_float32_costs_nothing(kind: str) -> None:
    model = nn.Sequential(networks.randomize(nn.Linear(6, 4)).float())
    x = torch.randn(3000, 6, generator=torch.Generator().manual_seed(0)) + 100
    with torch.no_grad():
        model[0].bias.copy_(-100 * model[0].weight.sum(1))  # so that either sign is frequent
    patterns = statistics(model, [*x.split(700)]).patterns(kind)
    assert_same([p.double() for p in patterns], [patterns_reference.patterns(model[0], x, kind)], 1e-4)


def test_autocast_changes_the_model_and_not_the_sums() -> None:
    layer = networks.randomize(nn.Conv2d(8, 8, 3)).float()
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = statistics(layer, [x]).patterns()
        y = layer(x).detach().double().flatten(2).movedim(1, -1).flatten(0, 1)
    X = nn.functional.unfold(x.double(), 3).mT.flatten(0, 1)
    covariance = (y - y.mean(0)).T @ (X - X.mean(0))
    expected = covariance / (covariance * layer.weight.detach().flatten(1)).sum(1, keepdim=True)
    assert_same([actual.flatten(1)], [expected], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_kind
def test_same_patterns_whatever_the_batch_size(kind: str, dtype: torch.dtype) -> None:
    model, data = sequential().to(dtype), torch.cat(batches(24)).to(dtype)
    expected = statistics(model, [data]).patterns(kind)
    for n in (1, 5, 12):
        assert_same(statistics(model, data.split(n)).patterns(kind), expected, 1e-6)


@every_kind
def test_same_patterns_however_the_data_are_merged(kind: str) -> None:
    model, data = block(), batches(3, 1, 5, 2)
    expected = statistics(model, data).patterns(kind)
    for split in (0, 1, 3):
        first, second = (statistics(model, part) for part in (data[:split], data[split:]))
        assert_same(statistics(model, data[split:]).merge(first).patterns(kind), expected, 1e-9)
        assert first.merge(second) is first
        assert_same(first.patterns(kind), expected, 1e-9)


LABELS = torch.arange(7)


PACKED = {
    "tuple": lambda x: (x, LABELS[: len(x)]),
    "list": lambda x: [x, LABELS[: len(x)]],
    "longer": lambda x: (x, LABELS[: len(x)], ["name"] * len(x)),
    "alone": lambda x: (x,),
    "dict": lambda x: {"x": x},
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_kinds_of_batches(packed: Callable[[Tensor], object]) -> None:
    model, data = block(), batches(4, 3)
    assert_same(statistics(model, [packed(x) for x in data]).patterns(), statistics(model, data).patterns())


@pytest.mark.parametrize("kind", ["linear", "positive"])
def test_fits_to_a_loader(kind: str) -> None:
    fit = {"linear": lrp.patterns.fit_patternnet, "positive": lrp.patterns.fit_patternnet_positive}[kind]
    model, (x,) = block(), batches(7)
    expected = statistics(model, x.split(2)).patterns(kind)
    loader = DataLoader(TensorDataset(x, LABELS), batch_size=2)
    assert_same(fit(model, loader), expected)
    assert_same(fit(model, loader, max_iter=100, device=torch.device("cpu")), expected)
    assert_same(fit(model, loader, max_iter=2), statistics(model, x.split(2)[:2]).patterns(kind))
    assert_same(fit(model, itertools.cycle(loader), max_iter=4), expected)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_batch_that_is_not_finite_changes_nothing(bad: float) -> None:
    """At once, or first after some layers: 1 / 0 is infinite."""
    model = networks.randomize(nn.Sequential(nn.Linear(2, 2, bias=False), Inverse(), nn.Linear(2, 2)))
    good, later = (torch.randn(5, 2, dtype=torch.float64) for _ in range(2))
    broken = good.clone()
    broken[2] = bad
    fitted = statistics(model, [good])
    before = fitted.patterns()
    with pytest.raises(ValueError, match="finite"):
        fitted.update(broken)
    assert_same(fitted.patterns(), before, 0)
    fitted.update(later)
    assert_same(fitted.patterns(), statistics(model, [good, later]).patterns())
    with pytest.raises(ValueError, match="finite"):
        lrp.patterns.fit_patternnet(model, [good, broken])


@pytest.mark.parametrize("batch", ["images", 3, None, object(), [], {}, ("images", 3)], ids=lambda b: type(b).__name__)
def test_batches_of_unknown_type(batch: object) -> None:
    fitted = statistics(sequential(), batches(4))
    before = fitted.patterns()
    with pytest.raises((TypeError, ValueError), match=r"(?i)batch"):
        fitted.update(batch)
    assert_same(fitted.patterns(), before, 0)


@pytest.mark.parametrize("fit", ["fit_patternnet", "fit_patternnet_positive"])
@pytest.mark.parametrize("empty", [[], iter(()), DataLoader([])], ids=["list", "iterator", "loader"])
def test_a_loader_without_batches(fit: str, empty: object) -> None:
    with pytest.raises(ValueError, match=r"(?i)no batch|no data|no sample|empty"):
        getattr(lrp.patterns, fit)(sequential(), empty)


def test_models_without_linear_maps_and_unknown_kinds() -> None:
    with pytest.raises(ValueError, match=r"(?i)linear"):
        lrp.patterns.fit_patternnet(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)).double(), batches(4))
    with pytest.raises(ValueError, match=r"'two-component'"):
        statistics(sequential(), batches(4)).patterns("two-component")


@pytest.mark.parametrize(("of_model", "of_data"), [("meta", "cpu"), ("cpu", "meta")])
def test_a_model_on_another_device(of_model: str, of_data: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        lrp.patterns.fit_patternnet(sequential().to(of_model), batches(4), device=of_data)


def state(model: nn.Module) -> dict[str, object]:
    """Modes, hooks, gradients, and the identity and version of parameters and buffers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {(name, kind): dict(getattr(m, kind)) for name, m in model.named_modules() for kind in hooks},
        "forwards": [name for name, module in model.named_modules() if "forward" in vars(module)],
        "tensors": {name: (id(t), t._version, t.requires_grad, t.grad) for name, t in tensors.items()},
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("bad", [[], [batches(4)[0] * torch.nan]], ids=["fitted", "failed"])
def test_the_model_stays_as_it_was(bad: list[Tensor]) -> None:
    model = block().train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    calls = []
    model.twice.register_forward_hook(lambda *_: calls.append("forward"))
    before, values = state(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="finite") if bad else nullcontext():
        assert not any(p.requires_grad for p in lrp.patterns.fit_patternnet(model, [*batches(4, 3), *bad]))
    assert len(calls) >= 4
    assert state(model) == before
    assert all(torch.equal(v, values[name]) for name, v in model.state_dict().items())


list_or_dict = pytest.mark.parametrize(
    "packed", [list, lambda p: dict(zip(["0", "2", "5"], p, strict=True))], ids=["list", "dict"]
)
# the first layer that differs, and a model that is not that of the patterns
other_models = pytest.mark.parametrize(("name", "other"), [("2", sequential(5, 45)), ("5", sequential(4, 18))])


@pytest.mark.parametrize("as_path", [str, Path])
@list_or_dict
def test_patterns_are_loaded_as_they_were_saved(as_path: Callable, packed: Callable, tmp_path: Path) -> None:
    model, path = sequential(), as_path(tmp_path / "patterns.pt")
    saved = packed(lrp.patterns.fit_patternnet(model, batches(4, 3)))
    lrp.patterns.save(path, saved)
    for loaded in (lrp.patterns.load(path), lrp.patterns.load(path, model)):
        assert isinstance(loaded, dict) == isinstance(saved, dict)
        torch.testing.assert_close(loaded, saved, rtol=0, atol=0)


@other_models
@list_or_dict
def test_patterns_of_another_model_name_the_layer(
    name: str, other: nn.Module, packed: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "patterns.pt"
    lrp.patterns.save(path, packed(statistics(sequential(), batches(4)).patterns()))
    with pytest.raises(ValueError, match=f"'{name}'"):
        lrp.patterns.load(path, other)


@every_kind
def test_resumed_statistics_equal_uninterrupted_ones(kind: str, tmp_path: Path) -> None:
    model, data, path = block(), batches(3, 1, 5, 2), tmp_path / "statistics.pt"
    statistics(model, data[:2]).save(path)
    resumed = lrp.patterns.PatternStatistics.load(path, model)
    for x in data[2:]:
        resumed.update(x)
    assert_same(resumed.patterns(kind), statistics(model, data).patterns(kind))


@other_models
def test_statistics_of_another_model_name_the_layer(name: str, other: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "statistics.pt"
    statistics(sequential(), batches(4)).save(path)
    with pytest.raises(ValueError, match=f"'{name}'"):
        lrp.patterns.PatternStatistics.load(path, other)


def test_quality_is_that_of_the_reference() -> None:
    """Readouts are fitted to every other sample, and measured on the others."""
    model, signal, x = patterns_reference.haufe(2000)
    w = model[0].weight.detach()
    (fitted,) = lrp.patterns.fit_patternnet(model, [x])
    for pattern in (0 * w, w / (w @ w.T), 0.5 * (signal + w / (w @ w.T)), signal, fitted):
        quality = lrp.patterns.quality(model, x.split(500), [pattern])
        (expected,) = patterns_reference.rho(model[0], pattern, x[::2], x[1::2])
        assert list(quality) == ["0"]
        assert float(quality["0"]) == pytest.approx(min(expected, 1), abs=1e-6)


class Gathered(nn.Module):
    """A convolution that meets only some of the samples, between two layers that meet them all."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.some, self.first = nn.Linear(4, 2), nn.Conv1d(1, 2, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden) + self.some(x[:, None][x[:, 0] > 0]).sum()


@every_kind
@pytest.mark.parametrize("sizes", [(0, 20), (0, 0, 20), (20, 0), (7, 0, 13), (0, 1, 19)])
def test_batches_without_samples_change_nothing(kind: str, sizes: tuple[int, ...]) -> None:
    model = networks.randomize(Gathered())
    x = torch.randn(20, 3, dtype=torch.float64) + 3
    x[:7, 0] *= -1  # the first samples do not reach the convolution
    expected = lrp.patterns.PatternStatistics(model).update(x)
    statistics = lrp.patterns.PatternStatistics(model)
    for batch in x.split(sizes):
        statistics.update(batch)
    assert statistics.names == expected.names == ["first", "last", "some"]
    torch.testing.assert_close(statistics.patterns(kind), expected.patterns(kind), rtol=1e-9, atol=1e-12)
    merged = lrp.patterns.PatternStatistics(model).update(x[:0])
    merged.merge(lrp.patterns.PatternStatistics(model).update(x[:7])).merge(statistics)
    twice = lrp.patterns.PatternStatistics(model).update(x[:7]).update(x)
    torch.testing.assert_close(merged.patterns(kind), twice.patterns(kind), rtol=1e-9, atol=1e-12)


def test_layers_without_samples(tmp_path: Path) -> None:
    model, x = networks.randomize(Gathered()), torch.randn(9, 3, dtype=torch.float64)
    x[:, 0] = -1
    statistics = lrp.patterns.PatternStatistics(model).update(x)
    assert statistics.patterns("positive")[2].count_nonzero() == 0
    statistics.save(tmp_path / "statistics")
    loaded = lrp.patterns.PatternStatistics.load(tmp_path / "statistics", model)
    for each in (statistics, loaded):
        each.update(-x)
    torch.testing.assert_close(loaded.patterns(), statistics.patterns())
    assert statistics.patterns()[2].count_nonzero() > 0
    with pytest.raises(ValueError, match="there are no statistics"):
        lrp.patterns.fit_patternnet(model, [x[:0]])


def test_quality_of_batches_without_samples() -> None:
    model, x = (
        networks.randomize(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))),
        torch.rand(40, 1, 3, 3),
    )
    patterns = lrp.patterns.fit_patternnet(model, [x.double()])
    expected = lrp.patterns.quality(model, [x.double()], patterns)
    assert lrp.patterns.quality(model, [x[:0].double(), x.double()], patterns) == pytest.approx(expected)


DAMAGES = {
    "cut off": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "text": lambda raw: b"these are no patterns but a text",
    "a header alone": lambda raw: raw[:9],
    "header overwritten": lambda raw: raw[:20] + bytes(len(raw) - 20),
    "a missing name": lambda raw: raw.replace(rb"[\"0\"", rb"[\"9\""),
    "no list of names": lambda raw: raw.replace(rb"[\"0\", \"2\"]", rb"3                 "[: len(rb"[\"0\", \"2\"]")]),
    "an unknown layer": lambda raw: raw.replace(rb"\"type\": \"Linear\"", rb"\"type\": \"Lineal\""),
    "other words": lambda raw: raw.replace(rb"\"names\"", rb"\"games\"").replace(rb"\"maps\"", rb"\"caps\""),
    "bad JSON": lambda raw: raw.replace(rb"{\"", rb"[\"", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    path = tmp_path / "patterns.safetensors"
    statistics = lrp.patterns.PatternStatistics(model, ["linear"]).update(torch.randn(9, 3))
    damaged: list[bool] = []
    for write, read in (
        (lambda: lrp.patterns.save(path, statistics.patterns()), lambda: lrp.patterns.load(path, model)),
        (lambda: statistics.save(path), lambda: lrp.patterns.PatternStatistics.load(path, model)),
    ):
        write()
        read()
        raw = path.read_bytes()
        changed = DAMAGES[damage](raw)
        damaged.append(changed != raw)
        if damaged[-1]:
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=r"patterns\.safetensors: "):
                read()
    assert any(damaged)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"patterns\.safetensors"):
        lrp.patterns.load(path)
