"""Time and memory of explaining, as ratios to the plain gradient measured in the same run.

    python benchmarks/cost.py --model resnet50 --rules epsilon epsilon_plus

Time: forward and input gradient, weights frozen, the median of several rounds in which all candidates take turns.
Memory: the peak of a process of its own, beyond that of one that only imports torch; the ratio is to a plain gradient
with weights that require grad.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from measure import medians, own_peak, peak, report
from zennit.composites import EpsilonPlus, LayerMapComposite, layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Linear

import lrp

ZENNIT: dict[str, Callable[..., Composite]] = {
    "epsilon": lambda **settings: by_one_rule(Epsilon(0.1), **settings),
    "zplus": lambda **settings: by_one_rule(ZPlus(), **settings),
    "gamma": lambda **settings: by_one_rule(Gamma(0.1), **settings),
    "alpha2beta1": lambda **settings: by_one_rule(AlphaBeta(2, 1), **settings),
    "epsilon_plus": EpsilonPlus,
}


def by_one_rule(rule: Any, **settings: Any) -> Composite:
    """zennit's composite with one rule for all linear layers and convolutions."""
    return LayerMapComposite([*layer_map_base(), (Linear, rule)], **settings)


def candidates(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What takes turns: the plain gradient, and each rule by lrp and by zennit."""
    model = getattr(torchvision.models, options.model)().eval().requires_grad_(False)
    x = torch.randn(options.batch, 3, options.size, options.size, requires_grad=True)
    ours = (lrp.convert_vgg if options.model.startswith("vgg") else lrp.convert)(model)
    canonizers = [ResNetCanonizer()] if isinstance(model, torchvision.models.ResNet) else []

    def gradient() -> None:
        x.grad = None
        model(x)[:, 0].sum().backward()

    def explain(rule: str) -> None:
        x.grad = None
        ours(x, explain=True, rule=rule)[:, 0].sum().backward()

    def zennit(rule: str) -> None:
        x.grad = None
        with ZENNIT[rule](canonizers=canonizers).context(model) as hooked:
            hooked(x)[:, 0].sum().backward()

    def trained() -> None:
        model.requires_grad_(True)
        gradient()

    return {
        "gradient": gradient,
        **{f"lrp {rule}": partial(explain, rule) for rule in options.rules},
        **{f"zennit {rule}": partial(zennit, rule) for rule in options.rules},
        "gradient, weights requiring grad": trained,
    }


def run_for_peak(options: argparse.Namespace) -> None:
    """In the process of its own: run the candidate, and print the peak."""
    if options.peak:
        run = candidates(options)[options.peak]
        for _ in range(3):
            run()
    print(own_peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16", help="a classifier of torchvision (%(default)s)")
    parser.add_argument("--rules", nargs="+", choices=ZENNIT, default=["epsilon", "zplus", "gamma", "alpha2beta1"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-time", action="store_true", help="measure memory alone")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        run_for_peak(options)
        return
    threads = torch.get_num_threads()
    print(f"{options.model}, batch {options.batch}, {options.size} px, torch {torch.__version__}, {threads} threads")
    if not options.no_memory:
        base = "gradient, weights requiring grad"
        explanations = [f"{library} {rule}" for rule in options.rules for library in ("lrp", "zennit")]
        nothing = peak("")
        report("MiB", {name: peak(name) - nothing for name in (base, "gradient", *explanations)}, base)
    if not options.no_time:
        runs = candidates(options)
        runs.popitem()
        report("seconds", medians(runs, options.rounds), "gradient")


if __name__ == "__main__":
    main()
