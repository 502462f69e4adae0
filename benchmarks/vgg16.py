"""Time and memory of explaining VGG16, as ratios to the plain gradient measured in the same run.

    python benchmarks/vgg16.py

Time: forward and input gradient, weights frozen, the median of several rounds in which all candidates take turns.
Memory: the peak of a process of its own, beyond that of one that only imports torch; the ratio is to a plain gradient
with weights that require grad.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from zennit.composites import NameMapComposite
from zennit.rules import AlphaBeta, Epsilon, Gamma, Pass, ZPlus

import lrp

ZENNIT = {
    "epsilon": lambda: Epsilon(0.1),
    "zplus": ZPlus,
    "gamma": lambda: Gamma(0.1),
    "alpha2beta1": lambda: AlphaBeta(2, 1),
}
RULES = list(ZENNIT)


def network() -> nn.Sequential:
    """VGG16's stack of layers, flat, with random weights that are frozen."""
    vgg = torchvision.models.vgg16().eval()
    parts = [*vgg.features, vgg.avgpool, nn.Flatten(), *vgg.classifier]
    return nn.Sequential(*parts).requires_grad_(False).eval()


def candidates(batch: int, size: int) -> dict[str, Callable[[], None]]:
    """What takes turns: the plain gradient, and each rule by lrp and by zennit."""
    model, x = network(), torch.randn(batch, 3, size, size, requires_grad=True)
    ours = lrp.Sequential.from_torch(model)

    def gradient() -> None:
        x.grad = None
        model(x)[:, 0].sum().backward()

    def explain(rule: str) -> None:
        x.grad = None
        ours(x, explain=True, rule=rule)[:, 0].sum().backward()

    def zennit(rule: str) -> None:
        x.grad = None
        layers = [(name, m) for name, m in model.named_children()]
        linear = [name for name, m in layers if isinstance(m, (nn.Conv2d, nn.Linear))]
        passing = [name for name, m in layers if isinstance(m, nn.ReLU)]
        composite = NameMapComposite([(linear, ZENNIT[rule]()), (passing, Pass())])
        with composite.context(model) as hooked:
            hooked(x)[:, 0].sum().backward()

    def trained() -> None:
        model.requires_grad_(True)
        gradient()

    return {
        "gradient": gradient,
        **{f"lrp {rule}": lambda rule=rule: explain(rule) for rule in RULES},
        **{f"zennit {rule}": lambda rule=rule: zennit(rule) for rule in RULES},
        "gradient, weights requiring grad": trained,
    }


def times(batch: int, size: int, rounds: int) -> dict[str, float]:
    """Median seconds of each candidate but the last, after one round to warm up."""
    runs = candidates(batch, size)
    runs.popitem()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def peak(name: str, batch: int, size: int) -> float:
    """Peak memory in MiB of a process that runs one candidate three times; with no name, that does nothing."""
    command = [sys.executable, __file__, "--batch", str(batch), "--size", str(size), "--peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_for_peak(name: str, batch: int, size: int) -> None:
    """In the process of its own: run the candidate, and print the peak."""
    if name:
        run = candidates(batch, size)[name]
        for _ in range(3):
            run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-time", action="store_true", help="measure memory alone")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        run_for_peak(options.peak, options.batch, options.size)
        return
    threads = torch.get_num_threads()
    print(f"VGG16, batch {options.batch}, {options.size} px, torch {torch.__version__}, {threads} threads")
    if not options.no_time:
        report("seconds", times(options.batch, options.size, options.rounds), "gradient")
    if not options.no_memory:
        base = "gradient, weights requiring grad"
        names = [base, "gradient", *(f"{library} {rule}" for rule in RULES for library in ("lrp", "zennit"))]
        nothing = peak("", options.batch, options.size)
        report("MiB", {name: peak(name, options.batch, options.size) - nothing for name in names}, base)


def report(unit: str, values: dict[str, float], base: str) -> None:
    """A table of values and of their ratios to the base."""
    print(f"\n{'':34}{unit:>10}{'ratio':>8}")
    for name, value in values.items():
        print(f"{name:34}{value:10.2f}{value / values[base]:8.2f}")


if __name__ == "__main__":
    main()
