"""Prunes the MNIST network by the relevance that flows through its filters, and by their size, and compares.

    python examples/prune_mnist.py

Relevance is that of some digits for their own labels, `lrp.explain(...).weights(layer)`, summed over each filter; size
is the sum of a filter's absolute weights. The filters and hidden units with the least are set to zero, the same share
in each layer; nothing is trained again. The idea is that of Yeom et al. 2021 (arXiv 1912.08881).

With `--data DIR` the relevance is that of training digits, and the accuracy that on all test digits. Without, both are
of the digits that ship with the repository, the first twenty of each class and the others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mnist_network import Digits, Options, accuracy, first_of_each_class, full_mnist, load_digits, load_network
from torch import Tensor, nn

import lrp

SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the accuracy by the share of the filters that are pruned."""
    parser = Options(prog="prune_mnist.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with the full MNIST")
    options = parser.parse_args(arguments)
    try:
        known, others = _digits(options.data)
    except OSError as error:
        parser.error(str(error))
    model = load_network()
    scores = {"relevance": by_relevance(model, known), "size": by_size(model)}
    print("pruned   " + "".join(f"{name:>12}" for name in scores))
    for share in SHARES:
        cells = [f"{accuracy(pruned(model, of_filters, share), others):12.1%}" for of_filters in scores.values()]
        print(f"{share:6.0%}   " + "".join(cells))


def by_relevance(model: nn.Module, digits: Digits, rule: str = "epsilon") -> dict[str, Tensor]:
    """The relevance of each filter, by the name of its layer."""
    e = lrp.explain(model, digits.images, digits.labels, rule=rule)
    return {name: e.weights(name).flatten(1).sum(1).abs() for name in _hidden(model)}


def by_size(model: nn.Module) -> dict[str, Tensor]:
    """The size of each filter."""
    return {name: layer.weight.detach().abs().flatten(1).sum(1) for name, layer in _hidden(model).items()}


@torch.no_grad()
def pruned(model: nn.Module, scores: Mapping[str, Tensor], share: float) -> nn.Module:
    """A copy of the model, in whose hidden layers this share of the filters, those of the least score, is zero."""
    copied = copy.deepcopy(model)
    for name, of_filters in scores.items():
        least = of_filters.argsort()[: round(share * len(of_filters))]
        layer = _hidden(copied)[name]
        for parameter in layer.parameters():
            parameter[least] = 0.0
    return copied


def _hidden(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that make hidden features: all but the last."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    return dict([*layers.items()][:-1])


def _digits(folder: Path | None) -> tuple[Digits, Digits]:
    """Digits whose relevance is looked at, and others to test with."""
    if folder is not None:
        train = full_mnist(folder, train=True)
        return _some(train, first_of_each_class(train.labels, 200)), full_mnist(folder, train=False)
    digits = load_digits()
    known = first_of_each_class(digits.labels, 200)
    is_other = torch.ones(len(digits.labels), dtype=torch.bool).index_fill(0, known, False)
    return _some(digits, known), _some(digits, is_other.nonzero().flatten())


def _some(digits: Digits, index: Tensor) -> Digits:
    return Digits(digits.images[index], digits.labels[index])


if __name__ == "__main__":
    main()
