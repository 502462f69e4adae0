"""What the MNIST examples share: the network, the digits, and options whose errors take one line.

Pixels go into the network as they are, in [0, 1] and not normalised. The background of a digit is then
exactly zero, and every rule with a factor x leaves it quiet.
"""

from __future__ import annotations

import argparse
import configparser
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import safetensors.torch
import torch
import torchvision
from matplotlib.backend_bases import FigureCanvasBase

import lrp

FOLDER = Path(__file__).resolve().parent / "mnist"


class Digits(NamedTuple):
    """Images, float in [0, 1] and of shape [N, 1, 28, 28], with their labels."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Digits:
        return Digits(self.images.to(device), self.labels.to(device))


def network() -> lrp.Sequential:
    """A small convolutional network for MNIST, untrained."""
    return lrp.Sequential(
        lrp.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        lrp.Conv2d(16, 16, 3, padding=1),
        torch.nn.ReLU(),
        lrp.MaxPool2d(2),
        lrp.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        lrp.Conv2d(32, 32, 3, padding=1),
        torch.nn.ReLU(),
        lrp.MaxPool2d(2),
        torch.nn.Flatten(),
        lrp.Linear(7 * 7 * 32, 128),
        torch.nn.ReLU(),
        lrp.Linear(128, 10),
    )


def load_network(folder: Path = FOLDER) -> lrp.Sequential:
    """The trained network that ships with the repository."""
    model = network()
    model.load_state_dict(safetensors.torch.load_file(folder / "network.safetensors"))
    return model.eval()


def save_network(model: lrp.Sequential, test_accuracy: float, folder: Path = FOLDER) -> Path:
    """Writes what `load_network` reads and returns its path; the accuracy stands in the file's metadata."""
    path = folder / "network.safetensors"
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata={"test_accuracy": f"{test_accuracy:.4f}"})
    return path


def load_digits(folder: Path = FOLDER) -> Digits:
    """The test digits that ship with the repository: the first 50 of each class."""
    with np.load(folder / "digits.npz") as arrays:
        return _digits(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))


def save_digits(digits: Digits, folder: Path = FOLDER) -> Path:
    """Writes what `load_digits` reads and returns its path."""
    path = folder / "digits.npz"
    pixels = (digits.images * 255).round().byte().squeeze(1)
    np.savez_compressed(path, images=pixels.numpy(), labels=digits.labels.byte().numpy())
    return path


def full_mnist(folder: Path, train: bool) -> Digits:
    """All training or all test digits from `folder`, downloaded into it (with a progress bar) when absent.

    Raises an OSError with one line for whoever gave the folder as `--data`.
    """
    try:
        data = torchvision.datasets.MNIST(str(folder), train=train, download=True)
    except Exception as error:  # torchvision has no exception of its own for network, disk and damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        fix = "name a folder with MNIST/raw in it, or one to download it into"
        message = f"argument --data: cannot read or download MNIST in '{folder}' ({reason}); {fix}"
        raise OSError(message) from error
    return _digits(data.data, data.targets)


def first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """The indices of `count` digits: the first of each class in order, then the second of each, and so on."""
    seen = torch.nn.functional.one_hot(labels, 10).cumsum(0)
    rank = seen[torch.arange(len(labels)), labels]
    return torch.argsort(rank * 10 + labels)[:count]


@torch.no_grad()
def accuracy(model: torch.nn.Module, digits: Digits) -> float:
    """The share of the digits that the network names rightly."""
    hits = [
        int((model(images).argmax(1) == labels).sum())
        for images, labels in zip(torch.split(digits.images, 1000), torch.split(digits.labels, 1000), strict=True)
    ]
    return sum(hits) / len(digits.labels)


def mnist_dir() -> Path:
    """Where `config.ini` says that the full MNIST lies."""
    file = Path(__file__).resolve().parents[1] / "config.ini"
    config = configparser.ConfigParser()
    config.read(file)
    return file.parent / config["DEFAULT"]["MnistDir"]


class Options(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number_up_to(highest: int) -> Callable[[str], int]:
    """The type of options that count something."""

    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {highest}")
        return int(text)

    return number


def available_device(name: str) -> torch.device:
    """The type of `--device`: a device that this machine has."""
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # the meta device makes tensors, but has no values
        return probe.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        choices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        message = f"'{name}' is not available here; choose from {', '.join(choices)}"
        raise argparse.ArgumentTypeError(message) from error


def _digits(pixels: torch.Tensor, labels: torch.Tensor) -> Digits:
    return Digits(pixels.unsqueeze(1).float() / 255, labels.long())


def picture_path(text: str) -> Path:
    """The type of `--output`: a file that matplotlib can write, in a folder that is there."""
    path, formats = Path(text), FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise argparse.ArgumentTypeError(f"'{text}' must end in .{', .'.join(sorted(formats))}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is in a folder that does not exist")
    return path
