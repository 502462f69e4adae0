"""The examples, run as a user runs them; MNIST in full is stood in for by the digits that ship with them."""

import importlib
import re
import struct
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

for extra in ("matplotlib", "safetensors", "torchvision", "tqdm"):
    pytest.importorskip(extra)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The three modules of the MNIST example, found as they are when a script beside them runs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    names = ("mnist_network", "train_mnist", "explain_mnist")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def mnist(examples: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder with MNIST as torchvision stores it, where the training and the test digits are the same."""
    digits = examples.mnist_network.load_digits()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = (digits.images * 255).round().byte()
        _write_idx(raw / f"{part}-images-idx3-ubyte", pixels.squeeze(1))
        _write_idx(raw / f"{part}-labels-idx1-ubyte", digits.labels.byte())
    return tmp_path


def _write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


def test_the_shipped_network_reads_the_shipped_digits(examples: SimpleNamespace) -> None:
    digits = examples.mnist_network.load_digits()
    assert digits.labels.bincount().tolist() == [50] * 10
    assert examples.mnist_network.accuracy(examples.mnist_network.load_network(), digits) >= 0.98


def test_the_example_prints_its_predictions_and_draws_them(
    examples: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    examples.explain_mnist.main(["--rules", "epsilon", "zplus", "--digits", "3", "--output", str(picture)])
    *lines, path = capsys.readouterr().out.splitlines()
    for label, line in enumerate(lines):
        assert re.fullmatch(rf"label {label}   predicted {label}   probability \d+\.\d\d%", line)
    assert len(lines) == 3
    assert path == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "gamma+epsilon", "alpha1beta0", "alpha2beta1", "zplus"])
def test_the_background_is_quiet(examples: SimpleNamespace, rule: str) -> None:
    images = examples.mnist_network.load_digits().images[:10]
    relevance = examples.explain_mnist.explain(examples.mnist_network.load_network(), images, rule)
    assert (relevance[images == 0] == 0).all()
    assert (relevance != 0).any()


def test_a_column_has_one_colour_scale_around_zero(examples: SimpleNamespace) -> None:
    relevance = torch.randn(2, 28, 28) * torch.tensor([1.0, 5.0])[:, None, None]
    figure = examples.explain_mnist.draw(torch.rand(2, 28, 28), [4, 7], {"flat": relevance})
    scales = {axis.images[0].get_clim() for axis in figure.axes[1::2]}
    assert [axis.get_title() for axis in figure.axes[:2]] == ["input", "flat"]
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["predicted 4", "predicted 7"]
    assert len(scales) == 1
    low, high = scales.pop()
    assert low == -high < 0


def test_full_mnist_and_training(examples: SimpleNamespace, mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = mnist / "picture.svg"
    examples.explain_mnist.main(
        ["--data", str(mnist), "--train", "--rules", "flat", "--digits", "2", "--output", str(picture)]
    )
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert picture.exists()


def test_training_writes_what_the_example_loads(examples: SimpleNamespace, mnist: Path) -> None:
    output = mnist / "trained" / "here"
    examples.train_mnist.main(["--data", str(mnist), "--epochs", "2", "--output", str(output)])
    model = examples.mnist_network.load_network(output)
    digits = examples.mnist_network.load_digits(output)
    assert torch.equal(digits.images, examples.mnist_network.load_digits().images)
    again = examples.train_mnist.train(digits, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_training_leaves_the_random_numbers_of_the_caller_alone(examples: SimpleNamespace) -> None:
    before = torch.get_rng_state()
    examples.train_mnist.train(examples.mnist_network.load_digits(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("explain_mnist", ["--rules", "epsilom"], ["--rules", "'epsilom'", "gamma+epsilon"]),
        ("explain_mnist", ["--digits", "0"], ["--digits", "'0'", "from 1 to 100"]),
        ("explain_mnist", ["--device", "toaster"], ["--device", "'toaster'", "choose from cpu"]),
        ("explain_mnist", ["--device", "meta"], ["--device", "'meta'", "choose from cpu"]),
        ("explain_mnist", ["--output", "map.docx"], ["--output", "'map.docx'", ".png"]),
        ("explain_mnist", ["--output", "no/such.png"], ["--output", "'no/such.png'", "does not exist"]),
        ("explain_mnist", ["--train"], ["--train", "--data DIR"]),
        ("explain_mnist", ["--data", __file__], ["--data", __file__, "name a folder"]),
        ("train_mnist", [], ["--data"]),
        ("train_mnist", ["--data", __file__], ["--data", __file__, "name a folder"]),
        ("train_mnist", ["--data", ".", "--output", __file__], ["--output", __file__, "folder"]),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_to_do(
    examples: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: list[str],
    parts: list[str],
) -> None:
    module: ModuleType = getattr(examples, script)
    with pytest.raises(SystemExit) as stop:
        module.main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_config_ini_names_a_folder_for_mnist(examples: SimpleNamespace) -> None:
    assert examples.mnist_network.mnist_dir() == EXAMPLES.parent / "data"


def test_pruning_by_relevance_keeps_more_than_by_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    importlib.import_module("prune_mnist").main([])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["pruned", "relevance", "size"]
    by_share = {row[0]: [float(cell.rstrip("%")) for cell in row[1:]] for row in rows[1:]}
    assert by_share["0%"][0] == by_share["0%"][1] > 95
    assert by_share["40%"][0] > 90 > by_share["40%"][1]
