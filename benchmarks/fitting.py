"""Time and memory of fitting patterns of VGG16, as ratios to a plain forward measured in the same run.

    python benchmarks/fitting.py

Time: of one batch, the median of several rounds in which all candidates take turns. Memory: the peak of a process of
its own that takes two batches and makes the patterns, beyond that of one that only imports torch; with ``--long`` that
of one which keeps sums for the linear layers too, as it does after some hundred batches, and no samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchvision
from measure import medians, own_peak, peak, report

import lrp

KINDS = {"linear": ("linear",), "positive": ("positive",), "all kinds": ("linear", "positive", "negative")}


def candidates(options: argparse.Namespace) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What takes a batch, and what it does at the end."""
    model = torchvision.models.vgg16().eval()
    x = torch.randn(options.batch, 3, options.size, options.size)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def fitting(kinds: tuple[lrp.patterns.Kind, ...]) -> tuple[Callable[[], object], Callable[[], object]]:
        fitted = lrp.patterns.PatternStatistics(model, kinds)

        def finish() -> object:
            for moments in fitted._layers.values() if options.long else ():
                moments.settle()
            return [fitted.patterns(kind) for kind in kinds]

        return lambda: fitted.update(x), finish

    return {"forward": (forward, lambda: None), **{name: fitting(kinds) for name, kinds in KINDS.items()}}


def run_for_peak(options: argparse.Namespace) -> None:
    """In the process of its own: two batches and the patterns, then the peak."""
    if options.peak:
        take_batch, finish = candidates(options)[options.peak]
        take_batch()
        take_batch()
        finish()
    print(own_peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-time", action="store_true", help="measure memory alone")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--long", action="store_true", help="measure the memory of a long fit")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        run_for_peak(options)
        return
    threads = torch.get_num_threads()
    print(f"VGG16, batch {options.batch}, {options.size} px, torch {torch.__version__}, {threads} threads")
    if not options.no_memory:
        nothing = peak("")
        report("MiB", {name: peak(name) - nothing for name in ("forward", *KINDS)}, "forward")
    if not options.no_time:
        runs = {name: take_batch for name, (take_batch, _) in candidates(options).items()}
        report("seconds", medians(runs, options.rounds), "forward")


if __name__ == "__main__":
    main()
