"""How much a network's output falls when the most relevant patches of a photograph are removed.

    python benchmarks/patches.py

EfficientNet-Lite0's input is divided into patches of 16 x 16 pixels, ranked by the relevance in them for the predicted
class. A share of them is removed, the most relevant first, and the output (logit) of that class is read again. The
better a rule finds what the network relies on, the faster the output falls: faster than with patches in random order.

A removed patch shows what a blurred copy of the photograph has in its place (`--replace blur`). With the photograph's
mean colour (`--replace mean`) random patches cost the network more, so more of the fall is due to the grey squares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.functional import gaussian_blur

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from explain_vgg import BOX, explain, rule_for
from imagenet import BUNDLED, LITE, Network, explainable, load_network, photographs

import lrp

PATCH = 16
SHARES = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
TENTH = SHARES.index(0.1)
RULES = (BOX, "epsilon_plus_flat", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon", "gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=Path, default=[], help="photographs (those of scikit-image)")
    parser.add_argument("--count", type=int, default=len(BUNDLED), help="how many photographs")
    parser.add_argument("--replace", choices=("blur", "mean"), default="blur", help="what removed patches show")
    parser.add_argument("--orders", type=int, default=20, help="how many random orders")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()
    network = load_network(LITE)
    chosen = photographs(options.images, options.count)
    images = [network.transforms(photograph.image) for photograph in chosen]
    curves = measure(network, images, options.replace, options.orders)
    report(curves, [photograph.name for photograph in chosen])
    draw(curves).savefig(options.output)


def measure(network: Network, images: Sequence[Tensor], replace: str, orders: int) -> dict[str, Tensor]:
    """The outputs [photograph, order, share] of each way to rank patches; all but "random" have one order."""
    maps = relevances(network, images)
    rankings = {key: [ranking(relevance)[None] for relevance in maps[key]] for key in maps}
    generator = torch.Generator().manual_seed(0)
    shape = orders, rankings[BOX][0].shape[1]
    rankings = {"random": [torch.rand(shape, generator=generator).argsort(1) for _ in images], **rankings}
    hidden = [replacement(image, replace) for image in images]
    return {
        key: torch.stack([outputs(network, *case) for case in zip(images, hidden, ranked, strict=True)])
        for key, ranked in rankings.items()
    }


def relevances(network: Network, images: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """One map [height, width] a photograph, for each rule and for gradient * input."""
    model = explainable(network.model)
    maps = {key: [explain(model, image[None], rule) for image in images] for key, rule in rules(network).items()}
    return {**maps, "gradient * input": [gradient_times_input(network.model, image) for image in images]}


def rules(network: Network) -> dict[str, str | lrp.Rule]:
    """The rules that are compared."""
    low, high = network.bounds()
    weaker = {f"{BOX}, gamma=0.1": lrp.composites.EpsilonGammaBox(low=low, high=high, gamma=0.1)}
    return {**weaker, **{key: rule_for(key, network) for key in RULES}}


def gradient_times_input(model: torch.nn.Module, image: Tensor) -> Tensor:
    x = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).max(), x)
    return (gradient * x.detach())[0].sum(0)


def ranking(relevance: Tensor) -> Tensor:
    """The numbers of the patches, the most relevant first."""
    return avg_pool2d(relevance[None], PATCH).flatten().argsort(descending=True)


def replacement(image: Tensor, how: str) -> Tensor:
    """What stands in for removed patches. The blur is as wide as a patch."""
    if how == "mean":
        return image.mean((1, 2), keepdim=True).expand_as(image)
    return gaussian_blur(image, [4 * PATCH + 1] * 2, [float(PATCH)] * 2)


@torch.no_grad()
def outputs(network: Network, image: Tensor, hidden: Tensor, rankings: Tensor) -> Tensor:
    """The output for the class that is predicted for the whole image, for each ranking [order, patch] and share."""
    predicted = network.model(image[None]).argmax()
    counts = [round(share * rankings.shape[1]) for share in SHARES]
    rows = [
        network.model(torch.stack([without(image, hidden, ranking[:count]) for count in counts]))[:, predicted]
        for ranking in rankings
    ]
    return torch.stack(rows)


def without(image: Tensor, hidden: Tensor, removed: Tensor) -> Tensor:
    """The image, where the removed patches show the hidden one."""
    height, width = (side // PATCH for side in image.shape[1:])
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[removed] = True
    pixels = mask.view(height, width).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return torch.where(pixels, hidden, image)


def report(curves: dict[str, Tensor], names: Sequence[str]) -> None:
    """A table of the mean over photographs for all shares, and one of all photographs for a tenth."""
    print(f"{'share of the patches removed':28}" + "".join(f"{share:>9.0%}" for share in SHARES))
    for key, values in curves.items():
        print(f"{key:28}" + "".join(f"{value:9.2f}" for value in values.mean((0, 1)).tolist()))
    print(f"{'random, standard deviation':28}" + "".join(f"{value:9.2f}" for value in spread(curves).tolist()))
    print(f"\n{'a tenth removed':28}" + "".join(f"{name:>17}" for name in names))
    print(f"{'nothing removed':28}" + "".join(f"{value:17.2f}" for value in curves["random"][:, 0, 0].tolist()))
    for key, values in curves.items():
        print(f"{key:28}" + "".join(f"{value:17.2f}" for value in values[:, :, TENTH].mean(1).tolist()))
    deviations = curves["random"][:, :, TENTH].std(1)
    print(f"{'random, standard deviation':28}" + "".join(f"{value:17.2f}" for value in deviations.tolist()))


def spread(curves: dict[str, Tensor]) -> Tensor:
    """The standard deviation of the mean over photographs, from one random order to the next."""
    return curves["random"].mean(0).std(0)


def draw(curves: dict[str, Tensor]) -> Figure:
    """The mean over photographs, a line for each way to rank patches."""
    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for key, values in curves.items():
        style = "k--" if key == "random" else "-"
        axes.plot(SHARES, values.mean((0, 1)).numpy(), style, marker=".", label=key)
    middle, deviation = curves["random"].mean((0, 1)), spread(curves)
    axes.fill_between(SHARES, (middle - deviation).numpy(), (middle + deviation).numpy(), color="k", alpha=0.12)
    axes.set(xlabel="share of the patches removed, most relevant first", ylabel="output of the predicted class, mean")
    axes.xaxis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


if __name__ == "__main__":
    main()
