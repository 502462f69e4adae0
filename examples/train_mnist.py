"""Trains the network that explain_mnist.py explains.

    python examples/train_mnist.py --data DIR

DIR holds MNIST as torchvision stores it; what is absent is downloaded. The weights and a sample of the test
digits are written into examples/mnist, over those that ship with the repository, unless --output names
another folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mnist_network import (
    FOLDER,
    Digits,
    Options,
    accuracy,
    available_device,
    first_of_each_class,
    full_mnist,
    network,
    number_up_to,
    save_digits,
    save_network,
)
from tqdm import tqdm

import lrp

EPOCHS = 8
LEARNING_RATE = 3e-3
BATCH = 128
SHIFT = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and saves, as the command line asks."""
    options, parser = _options(arguments)
    try:
        training, test = full_mnist(options.data, train=True), full_mnist(options.data, train=False)
    except OSError as error:
        parser.error(str(error))
    model = train(training, epochs=options.epochs, device=options.device)
    reached = accuracy(model, test.to(options.device))
    sample = first_of_each_class(test.labels, 500).sort().values
    print(f"test accuracy {reached:.2%}")
    print(save_network(model, reached, options.output))
    print(save_digits(Digits(test.images[sample], test.labels[sample]), options.output))


def train(digits: Digits, epochs: int = EPOCHS, device: torch.device | str = "cpu", seed: int = 0) -> lrp.Sequential:
    """A network trained on the digits. The seed decides all; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU, where all random numbers are drawn
        model = network().to(device).train()
        orders = [torch.randperm(len(digits.labels)) for _ in range(epochs)]
        batches = [chosen for order in orders for chosen in torch.split(order, BATCH)]
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
        for chosen in tqdm(batches, desc="training", unit="batch", disable=None):
            scores = model(_shifted(digits.images[chosen]).to(device))
            loss = torch.nn.functional.cross_entropy(scores, digits.labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """The batch, moved by up to SHIFT pixels in each direction, with background moving in."""
    height, width = images.shape[2:]
    top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    padded = torch.nn.functional.pad(images, [SHIFT] * 4)
    return padded[:, :, top : top + height, left : left + width]


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Options]:
    parser = Options(description="Trains the network of the MNIST example.")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder for MNIST")
    add("--epochs", type=number_up_to(1000), default=EPOCHS, metavar="N", help="passes over the data (%(default)s)")
    add("--device", type=available_device, default="cpu", help="cpu, cuda, ... (%(default)s)")
    add("--output", type=_folder, default=FOLDER, metavar="DIR", help="where to write (%(default)s)")
    return parser.parse_args(arguments), parser


def _folder(text: str) -> Path:
    """The type of `--output`: a folder, made before the long training if it is not there."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"'{text}' cannot be a folder ({error.strerror})") from error
    return Path(text)


if __name__ == "__main__":
    main()
