"""Time and memory of explaining, as ratios to the plain gradient measured in the same run.

    python benchmarks/cost.py --model resnet50 --rules epsilon epsilon_plus --batch 1 --compiled

Time: forward and input gradient, weights frozen, the median of several rounds in which all candidates take turns.
Memory: the peak of a process of its own, beyond that of one that only imports torch; the ratio is to a plain gradient.

"epsilon 0" is ``Epsilon(0.0)``, which is the plain gradient times the input on a piecewise-linear network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr
import torch
import torchvision
from measure import medians, own_peak, peak, report
from torch import Tensor, nn
from torch.nn import functional as F
from zennit.composites import EpsilonPlus, LayerMapComposite, layer_map_base
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Linear

import lrp

ZENNIT: dict[str, Callable[..., Composite]] = {
    "epsilon": lambda **settings: by_one_rule(Epsilon(0.1), **settings),
    "epsilon 1e-6": lambda **settings: by_one_rule(Epsilon(1e-6), **settings),
    "zplus": lambda **settings: by_one_rule(ZPlus(), **settings),
    "gamma": lambda **settings: by_one_rule(Gamma(0.1), **settings),
    "alpha2beta1": lambda **settings: by_one_rule(AlphaBeta(2, 1), **settings),
    "epsilon_plus": EpsilonPlus,
}
RULES: dict[str, Any] = {
    **{key: key for key in ZENNIT},
    "epsilon 0": lrp.rules.Epsilon(0.0),
    "epsilon 1e-6": lrp.rules.Epsilon(1e-6),
}
CAPTUM = {"epsilon": captum.attr._utils.lrp_rules.EpsilonRule}


class Block(nn.Module):
    """What a transformer has beside attention: a norm and a gated MLP, in a residual sum."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(n), nn.Linear(4 * n, n)
        self.gate, self.up = nn.Linear(n, 4 * n), nn.Linear(n, 4 * n)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Blocks(nn.Module):
    """A stack of 12 of them, on embeddings of 128 words."""

    def __init__(self, n: int = 512) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(n, n), nn.Sequential(*(Block(n) for _ in range(12)))
        self.head = nn.Linear(n, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x)).mean(1))


def by_one_rule(rule: Any, **settings: Any) -> Composite:
    """zennit's composite with one rule for all linear layers and convolutions."""
    return LayerMapComposite([*layer_map_base(), (Linear, rule)], **settings)


def model_and_input(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    if options.model == "blocks":
        return Blocks().eval().requires_grad_(False), torch.randn(options.batch, 128, 512)
    model = getattr(torchvision.models, options.model)().eval().requires_grad_(False)
    return model, torch.randn(options.batch, 3, options.size, options.size)


def candidates(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What takes turns: the plain gradient, and each rule by lrp in each form, compiled or not, and by its peers."""
    model, x = model_and_input(options)
    ours = (lrp.convert_vgg if options.model.startswith("vgg") else lrp.convert)(model)
    canonizers = [ResNetCanonizer()] if isinstance(model, torchvision.models.ResNet) else []
    x.requires_grad_()

    def gradient() -> None:
        x.grad = None
        model(x)[:, 0].sum().backward()

    def explain(rule: str, form: Any) -> None:
        x.grad = None
        ours(x, explain=True, rule=RULES[rule], form=form)[:, 0].sum().backward()

    def zennit(rule: str) -> None:
        x.grad = None
        with ZENNIT[rule](canonizers=canonizers).context(model) as hooked:
            hooked(x)[:, 0].sum().backward()

    def trained() -> None:
        model.requires_grad_(True)
        gradient()

    runs: dict[str, Callable[[], object]] = {"gradient": gradient}
    for rule in options.rules:
        for form in options.forms:
            runs[f"lrp {rule}, {form}"] = partial(explain, rule, form)
            if options.compiled:
                compiled = lrp.compile(model, rule=RULES[rule], form=form, target=0)
                runs[f"lrp {rule}, {form}, compiled"] = partial(compiled, x.detach())
        if rule in ZENNIT and not options.no_peers:
            runs[f"zennit {rule}"] = partial(zennit, rule)
        if rule in CAPTUM and not options.no_peers and (captums := of_captum(options, CAPTUM[rule])) is not None:
            runs[f"captum {rule}"] = captums
    return {**runs, "gradient, weights requiring grad": trained}


def of_captum(options: argparse.Namespace, rule: type) -> Callable[[], object] | None:
    """captum's explanation by one rule, which needs a model without operations in place; None where it fails."""
    model, x = model_and_input(options)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.rule = rule()  # type: ignore[assignment]
    explain = partial(captum.attr.LRP(model).attribute, x, target=0)
    try:
        explain()
    except Exception as error:
        print(f"captum: {type(error).__name__}: {str(error)[:100]}")
        return None
    return explain


def run_for_peak(options: argparse.Namespace) -> None:
    """In the process of its own: run the candidate, and print the peak."""
    if options.peak:
        run = candidates(options)[options.peak]
        for _ in range(3):
            run()
    print(own_peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16", help="a classifier of torchvision, or blocks (%(default)s)")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["epsilon", "zplus", "gamma", "alpha2beta1"])
    parser.add_argument("--forms", nargs="+", choices=("relevance", "gradient"), default=["relevance"])
    parser.add_argument("--compiled", action="store_true", help="compiled, too")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true", help="without zennit and captum")
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
        base = "gradient"
        explanations = [f"lrp {rule}, {form}" for rule in options.rules for form in options.forms]
        peers = [f"zennit {rule}" for rule in options.rules if rule in ZENNIT and not options.no_peers]
        nothing = peak("")
        names = (base, "gradient, weights requiring grad", *explanations, *peers)
        report("MiB", {name: peak(name) - nothing for name in names}, base)
    if not options.no_time:
        runs = candidates(options)
        runs.popitem()
        report("seconds", medians(runs, options.rounds), "gradient")


if __name__ == "__main__":
    main()
