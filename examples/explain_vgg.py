"""Explains what networks trained on ImageNet see in photographs, with many rules, as one picture.

    python examples/explain_vgg.py                              # VGG16, whose weights torchvision downloads
    python examples/explain_vgg.py --model efficientnet_lite0   # a smaller network, whose weights are in a package

The photographs are those of `--images`, or of the folder that config.ini names, or else four that come with
scikit-image. `--model` takes any classifier of torchvision.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from imagenet import LITE, Network, Photograph, explainable, imagenet_dir, load_network, network_name, photographs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mnist_network import Options, available_device, number_up_to, picture_path
from safetensors import SafetensorError
from torch import Tensor

import lrp

Patterns = list[Tensor] | dict[str, Tensor]

BOX = "epsilon_gamma_box"
PATTERN_RULES = ("patternnet", "patternattribution")
DEFAULT_RULES = ("gradient", "epsilon", "epsilon_alpha2_beta1", "epsilon_plus", "epsilon_plus_flat", BOX)
RULES = (
    *DEFAULT_RULES,
    *("gamma", "gamma+epsilon", "alpha1beta0", "alpha2beta1", "zplus", "wsquare", "flat"),
    *("epsilon_alpha2_beta1_flat", "guided_backprop", "deconvnet", "excitation_backprop"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Explains the photographs that the command line asks for, and prints the path of the picture."""
    options, parser = _options(arguments)
    try:
        network = load_network(options.model, options.weights)
        chosen = photographs(options.images, options.count)
        model = explainable(network.model.to(options.device))
        patterns = load_patterns(options.patterns, model) if options.patterns else None
    except OSError as error:
        parser.error(str(error))
    rules = [*options.rules, *(PATTERN_RULES if patterns else ())]
    figure = explain_photographs(network, model, chosen, rules, patterns, options.device)
    try:
        figure.savefig(options.output)
    except OSError as error:
        parser.error(f"argument --output: {error}")
    print(options.output.resolve())


def explain_photographs(
    network: Network, model: torch.nn.Module, chosen: Sequence[Photograph], rules: Sequence[str],
    patterns: Patterns | None, device: torch.device,
) -> Figure:  # fmt: skip
    """Prints what the network, whose explainable twin is given, makes of each photograph, and draws why."""
    images = [network.transforms(photograph.image)[None].to(device) for photograph in chosen]
    outputs = [checked_output(network.model, model, image) for image in images]
    for photograph, output in zip(chosen, outputs, strict=True):
        print(f"{photograph.name}: {top(network.classes, output)}")
    predicted = [network.classes[int(output.argmax())] for output in outputs]
    maps = {key: [explain(model, image, rule_for(key, network), patterns) for image in images] for key in rules}
    return draw([network.pixels(image[0]) for image in images], predicted, maps)


def load_patterns(file: Path, model: torch.nn.Module) -> Patterns:
    """The patterns in a file; an OSError with one line if they are none, or of another model."""
    try:
        patterns = lrp.patterns.load(file, model)
    except (OSError, ValueError, SafetensorError) as error:
        problem = f"argument --patterns: '{file}' cannot be used ({error})"
        raise OSError(f"{problem}; name a file that lrp.patterns.save has written for this model") from error
    return patterns


def checked_output(original: torch.nn.Module, model: torch.nn.Module, image: Tensor) -> Tensor:
    """The output for one image; a RuntimeError if the explainable twin of a network has another one."""
    with torch.no_grad():
        expected: Tensor = original(image)
    output: Tensor = model(image.clone().requires_grad_(), explain=True).detach()
    if not torch.allclose(output, expected, rtol=1e-4, atol=1e-4):
        error = (output - expected).abs().max().item()
        raise RuntimeError(f"the explainable twin's outputs differ from the original's by up to {error:g}")
    return output[0]


def top(classes: Sequence[str], output: Tensor) -> str:
    """The five most probable classes, with their probabilities."""
    probabilities, indices = output.softmax(0).topk(5)
    pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
    return ", ".join(f"{classes[index]} {probability:.1%}" for index, probability in pairs)


def rule_for(key: str, network: Network) -> str | lrp.Rule:
    """The rule of a key. One has no key in lrp, since the network's smallest and largest inputs are part of it."""
    if key != BOX:
        return key
    low, high = network.bounds()
    return lrp.composites.EpsilonGammaBox(low=low, high=high)


def explain(model: torch.nn.Module, image: Tensor, rule: str | lrp.Rule, patterns: Patterns | None = None) -> Tensor:
    """The relevance of each pixel of one image for the predicted class, in the unit of its output."""
    x = image.clone().requires_grad_()
    highest = model(x, explain=True, rule=rule, pattern=patterns).max(1).values
    (relevance,) = torch.autograd.grad(highest, x, highest.detach())
    return relevance[0].sum(0).cpu()


def draw(pictures: Sequence[Tensor], predicted: Sequence[str], maps: Mapping[str, Sequence[Tensor]]) -> Figure:
    """One row a photograph: the input, then one column a rule. Red speaks for the prediction, blue against it.

    Each map has its own colour scale, symmetric around zero.
    """
    rows, columns = len(pictures), 1 + len(maps)
    figure = Figure(figsize=(1.6 * columns, 1.55 * rows + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, title in zip(axes[0], ["input", *maps], strict=True):
        axis.set_title(title, fontsize="small")
    for axis, picture, name in zip(axes[:, 0], pictures, predicted, strict=True):
        axis.set_ylabel(name)
        axis.imshow(picture.numpy())
    for column, relevances in zip(axes[:, 1:].T, maps.values(), strict=True):
        for axis, relevance in zip(column, relevances, strict=True):
            _draw_map(axis, relevance)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def _draw_map(axis: Axes, relevance: Tensor) -> None:
    # a few extreme pixels would make the rest look pale; the lower bound is for a map of zeros
    limit = max(relevance.abs().quantile(0.995).item(), 1e-12)
    axis.imshow(relevance.numpy(), cmap="seismic", vmin=-limit, vmax=limit)


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Options]:
    parser = Options(description="Explains photographs with many rules, as one picture.")
    add = parser.add_argument
    add("--model", type=_network, default="vgg16", metavar="NAME", help=f"{LITE} or torchvision's name (%(default)s)")
    add("--weights", type=Path, metavar="FILE", help="its state_dict: .pt, .pth or .safetensors (the pretrained one)")
    add("--images", nargs="+", type=Path, default=imagenet_dir(), metavar="PATH", help="photographs, or their folders")
    add("--count", type=number_up_to(100), default=4, metavar="N", help="how many photographs (%(default)s)")
    keys = f"of {', '.join(RULES)} (the first {len(DEFAULT_RULES)})"
    add("--rules", nargs="+", choices=RULES, default=DEFAULT_RULES, metavar="KEY", help=keys)
    help_on_patterns = f"adds {' and '.join(PATTERN_RULES)}, with patterns that lrp.patterns.save has written"
    add("--patterns", type=Path, metavar="FILE", help=help_on_patterns)
    add("--device", type=available_device, default="cpu", help="cpu, cuda, ... (%(default)s)")
    add("--output", type=picture_path, default="explain_vgg.png", metavar="PATH", help="the picture (%(default)s)")
    return parser.parse_args(arguments), parser


def _network(text: str) -> str:
    """The type of `--model`."""
    try:
        return network_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
