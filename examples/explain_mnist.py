"""Explains what a small network sees in handwritten digits, with every rule, as one picture.

    python examples/explain_mnist.py

The network and some test digits ship with the repository: nothing is trained, nothing is downloaded. With
`--data DIR` the digits come from the full MNIST test set, which is downloaded into DIR when it is not there; without
DIR, into the folder that config.ini names. With `--train` the network is trained anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mnist_network import (
    Digits,
    Options,
    available_device,
    first_of_each_class,
    full_mnist,
    load_digits,
    load_network,
    mnist_dir,
    number_up_to,
    picture_path,
)
from train_mnist import train

import lrp

# A column's rule, and the kind of patterns that it needs. Those of the kind "positive" tell when a neuron fires.
COLUMNS: dict[str, tuple[str, lrp.patterns.Kind | None]] = {
    "gradient": ("gradient", None),
    "epsilon": ("epsilon", None),
    "gamma": ("gamma", None),
    "gamma+epsilon": ("gamma+epsilon", None),
    "alpha1beta0": ("alpha1beta0", None),
    "alpha2beta1": ("alpha2beta1", None),
    "zplus": ("zplus", None),
    "wsquare": ("wsquare", None),
    "flat": ("flat", None),
    "patternnet": ("patternnet", "linear"),
    "patternnet+": ("patternnet", "positive"),
    "patternattribution": ("patternattribution", "linear"),
    "patternattribution+": ("patternattribution", "positive"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Explains the digits that the command line asks for, and prints the path of the picture."""
    options, parser = _options(arguments)
    try:
        model, digits = _model_and_digits(options)
    except OSError as error:
        parser.error(str(error))
    figure = explain_digits(model, digits, options.rules, fit(model, options.rules, options.device))
    try:
        figure.savefig(options.output)
    except OSError as error:
        parser.error(f"argument --output: {error}")
    print(options.output.resolve())


def fit(model: lrp.Sequential, columns: Sequence[str], device: torch.device) -> dict[str, list[torch.Tensor]]:
    """The patterns that the columns need, by their kind, of the digits that ship with the repository."""
    kinds = {kind for _, kind in map(COLUMNS.__getitem__, columns) if kind is not None}
    statistics = lrp.patterns.PatternStatistics(model, kinds)
    for images in load_digits().images.chunk(5) if kinds else ():
        statistics.update(images.to(device))
    return {kind: statistics.patterns(kind) for kind in kinds}


def explain_digits(
    model: lrp.Sequential, digits: Digits, columns: Sequence[str], patterns: Mapping[str, list[torch.Tensor]]
) -> Figure:
    """Prints what the network makes of each digit, and draws why."""
    probabilities, predictions = model(digits.images).softmax(1).max(1)
    for label, prediction, probability in zip(digits.labels, predictions, probabilities, strict=True):
        print(f"label {label}   predicted {prediction}   probability {probability:.2%}")
    maps = {}
    for column in columns:
        rule, kind = COLUMNS[column]
        maps[column] = explain(model, digits.images, rule, patterns[kind] if kind else None).squeeze(1).cpu()
    return draw(digits.images.squeeze(1).cpu(), predictions.tolist(), maps)


def explain(
    model: lrp.Sequential, images: torch.Tensor, rule: str, pattern: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The relevance of each pixel for the class that the network predicts."""
    x = images.clone().requires_grad_()
    y = model(x, explain=True, rule=rule, pattern=pattern)
    y[torch.arange(len(x)), y.argmax(1)].sum().backward()
    assert x.grad is not None
    return x.grad


def draw(images: torch.Tensor, predictions: Sequence[int], maps: Mapping[str, torch.Tensor]) -> Figure:
    """One row a digit: the input, then one column a rule. Red speaks for the prediction, blue against it.

    A column has one colour scale for all its rows, symmetric around zero; its end stands under the column.
    """
    rows, columns = len(images), 1 + len(maps)
    figure = Figure(figsize=(1.15 * columns, 1.1 * rows + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, title in zip(axes[0], ["input", *maps], strict=True):
        axis.set_title(title.replace("pattern", "pattern\n"), fontsize="small")
    for axis, prediction in zip(axes[:, 0], predictions, strict=True):
        axis.set_ylabel(f"predicted {prediction}")
    _draw_column(axes[:, 0], images, "gray_r", (0, 1))
    for column, relevance in zip(axes[:, 1:].T, maps.values(), strict=True):
        # a few extreme pixels would make the rest look pale; the lower bound is for a map of zeros
        limit = max(relevance.abs().quantile(0.995).item(), 1e-12)
        _draw_column(column, relevance, "seismic", (-limit, limit))
        column[-1].set_xlabel(f"±{limit:.2g}", fontsize="small")
    return figure


def _draw_column(axes: Iterable[Axes], images: torch.Tensor, colours: str, limits: tuple[float, float]) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1])
        axis.set(xticks=[], yticks=[])


def _model_and_digits(options: argparse.Namespace) -> tuple[lrp.Sequential, Digits]:
    if options.train:
        model = train(full_mnist(options.data, train=True), device=options.device)
    else:
        model = load_network().to(options.device)
    digits = full_mnist(options.data, train=False) if options.data else load_digits()
    chosen = first_of_each_class(digits.labels, options.digits)
    return model, Digits(digits.images[chosen], digits.labels[chosen]).to(options.device)


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Options]:
    parser = Options(description="Explains handwritten digits with every rule, as one picture.")
    add = parser.add_argument
    columns = ", ".join(COLUMNS)
    add("--rules", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="KEY", help=f"of {columns} (all)")
    add("--digits", type=number_up_to(100), default=6, metavar="N", help="how many digits (%(default)s)")
    folder = mnist_dir()
    add("--data", nargs="?", type=Path, const=folder, metavar="DIR", help=f"explain digits of MNIST in DIR ({folder})")
    add("--train", action="store_true", help="train the network anew on the digits in --data")
    add("--device", type=available_device, default="cpu", help="cpu, cuda, ... (%(default)s)")
    add("--output", type=picture_path, default="explain_mnist.png", metavar="PATH", help="the picture (%(default)s)")
    options = parser.parse_args(arguments)
    if options.train and options.data is None:
        parser.error("argument --train: needs --data DIR, the folder for the digits to train on")
    return options, parser


if __name__ == "__main__":
    main()
