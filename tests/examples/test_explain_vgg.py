"""The example on photographs, run as a user runs it, with small networks and without the internet."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision

import lrp

EXAMPLES = Path(__file__).parents[2] / "examples"

for extra in ("matplotlib", "PIL", "safetensors", "skimage", "torchvision", "tqdm"):
    pytest.importorskip(extra)


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The two modules of the example, with an empty config.ini, and with no way to download weights."""
    monkeypatch.syspath_prepend(EXAMPLES)
    modules = {name: importlib.import_module(name) for name in ("imagenet", "explain_vgg")}
    monkeypatch.setattr(modules["imagenet"], "CONFIG", tmp_path / "config.ini")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", _no_internet)
    return SimpleNamespace(**modules)


@pytest.fixture
def squeezenet(tmp_path: Path) -> Path:
    """A file with random weights of squeezenet1_1."""
    import torchvision

    return _save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeezenet.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with five pictures, some of them in a folder within it, and one file that is none."""
    from PIL import Image

    for i, name in enumerate(("a.png", "b.jpg", "c/d.JPEG", "c/e.png", "f.png")):
        file = tmp_path / "photographs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (80, 60 + i), 50 * i).save(file)
    (tmp_path / "photographs" / "names.txt").write_text("text")
    return tmp_path / "photographs"


def _no_internet(*args: object, **kwargs: object) -> None:
    raise URLError("Name or service not known")


def _save(state: dict[str, torch.Tensor], file: Path) -> Path:
    torch.save(state, file)
    return file


def test_it_names_what_photographs_show_and_explains_it(
    examples: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    picture = tmp_path / "picture.png"
    rules = ["--rules", "epsilon_gamma_box", "epsilon_plus"]
    examples.explain_vgg.main(["--model", "efficientnet_lite0", "--count", "2", *rules, "--output", str(picture)])
    chelsea, coffee, path = capsys.readouterr().out.splitlines()
    assert re.match(r"chelsea: (tabby|tiger cat|Egyptian cat) \d+\.\d%, ", chelsea)
    assert re.match(r"coffee: (espresso|cup) \d+\.\d%, ", coffee)
    assert chelsea.count("%") == coffee.count("%") == 5
    assert path == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_relevance_lies_on_the_cup(examples: SimpleNamespace) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = examples.imagenet.load_network("efficientnet_lite0")
    coffee = examples.imagenet.photographs([], 2)[1]
    rule = examples.explain_vgg.rule_for("epsilon_gamma_box", network)
    model = examples.imagenet.explainable(network.model)
    relevance = examples.explain_vgg.explain(model, network.transforms(coffee.image)[None], rule).clamp(min=0)
    cup = relevance[:140, 30:180].sum() / relevance.sum()  # 42 % of the picture
    assert cup > 0.6


def test_removing_the_most_relevant_tenth_costs_more_than_a_random_tenth(
    examples: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.syspath_prepend(EXAMPLES.parent / "benchmarks")
    patches = importlib.import_module("patches")
    monkeypatch.setattr(patches, "RULES", (patches.BOX,))
    monkeypatch.setattr(patches, "SHARES", (0, 0.1))
    network = examples.imagenet.load_network("efficientnet_lite0")
    images = [network.transforms(photograph.image) for photograph in examples.imagenet.photographs([], 3)[1:]]
    curves = patches.measure(network, images, "blur", orders=5)
    for relevant, random in zip(curves[patches.BOX], curves["random"], strict=True):
        assert relevant[0, 0] == random[0, 0]
        assert relevant[0, 1] < random[:, 1].mean() - 0.5


def test_a_network_of_torchvision_explains_a_folder(
    examples: SimpleNamespace, squeezenet: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "squeezenet1_1", "--weights", str(squeezenet), "--images", str(folder)]
    output = ["--rules", "gradient", "zplus", "--count", "2", "--output", str(folder / "picture.svg")]
    examples.explain_vgg.main([*arguments, *output])
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["a", "d", str(folder / "picture.svg")]


def test_patterns_from_a_file_add_their_rules(
    examples: SimpleNamespace, squeezenet: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = examples.imagenet.load_network("squeezenet1_1", squeezenet)
    patterns = lrp.patterns.fit_patternnet_positive(network.model, [torch.randn(2, 3, 64, 64)])
    file = tmp_path / "patterns.safetensors"
    lrp.patterns.save(file, patterns)
    drawn = {}
    monkeypatch.setattr(
        examples.explain_vgg, "draw", lambda _, __, maps: drawn.update(maps) or SimpleNamespace(savefig=print)
    )
    trained = ["--model", "squeezenet1_1", "--weights", str(squeezenet), "--patterns", str(file)]
    examples.explain_vgg.main([*trained, "--images", str(folder), "--count", "1", "--rules", "epsilon"])
    assert list(drawn) == ["epsilon", "patternnet", "patternattribution"]
    assert not torch.equal(*(drawn[rule][0] for rule in ("patternnet", "patternattribution")))


def test_config_ini_names_a_folder_of_photographs(
    examples: SimpleNamespace, squeezenet: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "config.ini").write_text(f"[DEFAULT]\nImageNetDir = {folder.name}/c\n")
    picture = str(folder / "picture.png")
    examples.explain_vgg.main(
        ["--model", "squeezenet1_1", "--weights", str(squeezenet), "--rules", "flat", "--output", picture]
    )
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["d", "e", picture]


def test_the_config_ini_of_the_repository_has_the_setting() -> None:
    assert re.search(r"^ImageNetDir *=", (EXAMPLES.parent / "config.ini").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("efficientnet_lite_pytorch", ["--model", "efficientnet_lite0"]),
        ("skimage.data", ["--model", "squeezenet1_1", "--weights", "{squeezenet}"]),
    ],
)
def test_a_missing_package_is_named(
    examples: SimpleNamespace,
    squeezenet: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    arguments: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stop:
        examples.explain_vgg.main([argument.format(squeezenet=squeezenet) for argument in arguments])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1
    assert "pip install" in message


def test_a_vgg_is_flat_when_it_is_explained(examples: SimpleNamespace, tmp_path: Path) -> None:
    import safetensors.torch
    import torchvision

    with torch.device("meta"):
        empty = torchvision.models.vgg11().state_dict()
    # half precision keeps the file small; loading makes it float32
    state = {key: torch.full(value.shape, 0.01, dtype=torch.float16) for key, value in empty.items()}
    safetensors.torch.save_file(state, tmp_path / "vgg11.safetensors")
    network = examples.imagenet.load_network("vgg11", tmp_path / "vgg11.safetensors")
    model = examples.imagenet.explainable(network.model)
    assert type(model) is lrp.Sequential
    output = examples.explain_vgg.checked_output(network.model, model, torch.rand(1, 3, 64, 64))
    assert output.shape == (1000,)


def test_a_twin_with_other_outputs_is_an_error(examples: SimpleNamespace) -> None:
    original = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    other = lrp.Sequential(torch.nn.Flatten(), lrp.Linear(12, 5))
    with pytest.raises(RuntimeError, match="twin's outputs differ"):
        examples.explain_vgg.checked_output(original, other, torch.rand(1, 3, 2, 2))


@pytest.mark.parametrize(("colour", "bound", "brightness"), [("black", 0, 0.0), ("white", 1, 1.0)])
def test_no_input_lies_beyond_the_bounds(
    examples: SimpleNamespace, squeezenet: Path, colour: str, bound: int, brightness: float
) -> None:
    from PIL import Image

    network = examples.imagenet.load_network("squeezenet1_1", squeezenet)
    x = network.transforms(Image.new("RGB", (300, 260), colour))
    torch.testing.assert_close(x, network.bounds()[bound].expand(3, 224, 224))
    torch.testing.assert_close(network.pixels(x), torch.full((224, 224, 3), brightness))


def test_a_map_has_a_colour_scale_around_zero_of_its_own(examples: SimpleNamespace) -> None:
    maps = {"flat": [torch.randn(8, 8), 9 * torch.randn(8, 8)]}
    figure = examples.explain_vgg.draw([torch.rand(8, 8, 3)] * 2, ["tabby", "cup"], maps)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["input", "flat"]
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["tabby", "cup"]
    (low, high), (other_low, other_high) = (axis.images[0].get_clim() for axis in figure.axes[1::2])
    assert low == -high > other_low == -other_high


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "vgg17"], ["--model", "'vgg17'", "did you mean vgg1"]),
        (["--model", "toaster"], ["--model", "'toaster'", "efficientnet_lite0"]),
        (["--model", "squeezenet1_1"], ["--model", "Name or service", "--weights FILE", "efficientnet_lite0"]),
        (["--model", "alexnet", "--weights", "{squeezenet}"], ["--weights", "squeezenet.pt", "alexnet", "state_dict"]),
        (["--model", "alexnet", "--weights", "{text}"], ["--weights", "names.txt", "alexnet", "state_dict"]),
        (["--model", "alexnet", "--weights", "no.safetensors"], ["--weights", "'no.safetensors'", "state_dict"]),
        (["--images", "{empty}"], ["--images", "empty", "has no pictures", ".jpg", "ImageNetDir"]),
        (["--images", "no/such"], ["--images", "'no/such'", "does not exist", ".jpg", "ImageNetDir"]),
        (["--images", "{text}"], ["--images", "names.txt", "cannot be read", "name a picture"]),
        (["--patterns", "no.safetensors"], ["--patterns", "'no.safetensors'", "lrp.patterns.save"]),
        (["--patterns", "{text}"], ["--patterns", "names.txt", "cannot be used", "lrp.patterns.save"]),
        (["--patterns", "{patterns}"], ["--patterns", "layer '0'", "SqueezeNet", "lrp.patterns.save"]),
        (["--rules", "epsilom"], ["--rules", "'epsilom'", "epsilon_gamma_box"]),
        (["--output", "map.docx"], ["--output", "'map.docx'", ".png"]),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_to_do(
    examples: SimpleNamespace,
    squeezenet: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    (folder / "empty").mkdir()
    paths = {"squeezenet": squeezenet, "empty": folder / "empty", "text": folder / "names.txt"}
    paths["patterns"] = folder / "patterns.safetensors"
    lrp.patterns.save(paths["patterns"], [torch.ones(2, 2)])
    trained = ["--model", "squeezenet1_1", "--weights", str(squeezenet)] if arguments[0] != "--model" else []
    with pytest.raises(SystemExit) as stop:
        examples.explain_vgg.main([*trained, *(argument.format(**paths) for argument in arguments)])
    *announced, message = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert all(line.startswith("Downloading: ") for line in announced)  # torch says so itself
    for part in parts:
        assert part in message


def test_whether_a_map_is_to_be_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example, imagenet = importlib.import_module("believe"), importlib.import_module("imagenet")
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 5, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    model = torch.nn.Sequential(*layers).eval()
    model(torch.zeros(1, 3, 224, 224))
    network = imagenet.Network(model, transforms, ["a", "b", "c"])
    monkeypatch.setattr(example, "load_network", lambda name: network)
    example.main(["--output", str(tmp_path / "believe.png")])
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"rank correlation with the map of random weights -?[\d.]+, flip gap -?[\d.]+", printed[0])
    assert printed[1] == str(tmp_path / "believe.png")
    assert (tmp_path / "believe.png").stat().st_size > 10_000
