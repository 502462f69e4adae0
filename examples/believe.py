"""Whether a map is to be believed: a trained network beside the same network with random weights, and three numbers.

    python examples/believe.py

A picture alone proves nothing: with random weights the map of a cat still lights its eyes. What tells them apart is how
the map changes as layers are drawn anew, and what happens to the output as relevant patches are removed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from imagenet import LITE, Network, load_network, photographs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mnist_network import Options, picture_path
from torch import Tensor, nn

import lrp

FOLDER = Path(__file__).resolve().parent / "photographs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the numbers and the path of the picture."""
    parser = Options(prog="believe.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=picture_path, default=FOLDER / "believe.png", help="where the picture goes")
    options = parser.parse_args(arguments)
    try:
        network, photograph = load_network(LITE), photographs([], 1)[0]
    except OSError as error:
        parser.error(str(error))
    x = network.transforms(photograph.image).unsqueeze(0)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    believe(network, x).savefig(options.output, dpi=110)
    print(options.output)


def believe(network: Network, x: Tensor) -> Figure:
    """The picture of one photograph."""
    e = lrp.explain(network.model, x)
    by_chance = lrp.explain(drawn_anew(network.model), x, int(e.target), initial_relevance="one")
    randomized = e.randomized(seed=0)
    flip = lrp.evaluate.flip(network.model, x, e)
    print(f"rank correlation with the map of random weights {randomized.correlation:.2f}, flip gap {flip.gap:.2f}")
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    axes = figure.subplots(1, 5)
    axes[0].imshow(network.pixels(x[0]).numpy())
    axes[0].set(title=network.classes[int(e.target)], xticks=[], yticks=[])
    _map(axes[1], e.map()[0], "trained")
    _map(axes[2], by_chance.map()[0], "random weights")
    axes[3].plot([*randomized.curve.values()], color="0.3")
    axes[3].set(title="rank correlation with the map", xlabel="layers drawn anew, from the top", ylim=(-0.1, 1))
    for name, color in (("least", "tab:blue"), ("random", "0.6"), ("most", "tab:red")):
        axes[4].plot(
            flip.fractions.numpy(),
            getattr(flip, name).numpy(),
            color=color,
            label=f"{name} relevant" if name != "random" else name,
        )
    axes[4].set(title="output as patches are removed", xlabel="fraction removed")
    axes[4].legend(frameon=False)
    return figure


def drawn_anew(model: nn.Module) -> nn.Module:
    """A copy of the model whose weights are random."""
    copied = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in copied.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return copied


def _map(axis: Axes, relevance: Tensor, title: str) -> None:
    end = float(relevance.abs().max())
    axis.imshow(relevance.numpy(), cmap="seismic", vmin=-end, vmax=end)
    axis.set(title=title, xticks=[], yticks=[], xlabel=f"\u00b1{end:.2g}")


if __name__ == "__main__":
    main()
