"""The quality of patterns on the MNIST network that ships with the examples, layer by layer.

    python benchmarks/pattern_quality.py --data DIR

Patterns are fitted to training digits, their quality is measured on test digits; "weights" takes the weights
themselves for patterns. Prints a table and draws pattern_quality.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from mnist_network import full_mnist, load_network, mnist_dir

import lrp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=mnist_dir(), help="the folder of MNIST (%(default)s)")
    parser.add_argument("--fit", type=int, default=20000, help="how many training digits (%(default)s)")
    parser.add_argument("--measure", type=int, default=10000, help="how many test digits (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()
    model = load_network()
    statistics = lrp.patterns.PatternStatistics(model)
    for images in torch.split(full_mnist(options.data, train=True).images[: options.fit], 100):
        statistics.update(images)
    patterns = {kind: statistics.patterns(kind) for kind in ("linear", "positive", "negative")}
    patterns["weights"] = [model.get_submodule(name).weight.detach() for name in statistics.names]
    digits = torch.split(full_mnist(options.data, train=False).images[: options.measure], 100)
    qualities = {kind: lrp.patterns.quality(model, digits, fitted) for kind, fitted in patterns.items()}
    report(qualities)
    lrp.plot.pattern_quality(qualities).savefig(options.output)


def report(qualities: dict[str, dict[str, float]]) -> None:
    """One row a kind of patterns, one column a layer."""
    print(f"{'rho':10}" + "".join(f"{name:>8}" for name in qualities["weights"]))
    for kind, quality in qualities.items():
        print(f"{kind:10}" + "".join(f"{rho:8.3f}" for rho in quality.values()))


if __name__ == "__main__":
    main()
