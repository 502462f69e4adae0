"""Several targets of one forward: the time of ten as a ratio to that of one.

    python benchmarks/targets.py --model vgg16

The plain gradient of ten outputs, made by one backward for all, stands beside it: what any method pays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from measure import medians
from torch import Tensor, nn

import lrp

RULES: dict[str, Any] = {
    "auto": "auto",
    "epsilon": "epsilon",
    "gamma": "gamma",
    "alpha2beta1": "alpha2beta1",
}


def main() -> None:
    """Prints a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vgg16", help="a classifier of torchvision")
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = torchvision.models.get_model(options.model, weights=None).eval().requires_grad_(False)
    x = torch.rand(1, 3, 224, 224)
    candidates: dict[str, Callable[[], Any]] = {}
    for k in (1, options.targets):
        candidates[f"gradient {k}"] = partial(gradient, model, x, k)
        for name, rule in RULES.items():
            candidates[f"{name} {k}"] = partial(lrp.explain, model, x, lrp.Top(k), rule=rule)
    seconds = medians(candidates, options.rounds)
    for name in ("gradient", *RULES):
        one, several = seconds[f"{name} 1"], seconds[f"{name} {options.targets}"]
        print(f"{name:12} one {one:6.3f} s, {options.targets} {several:6.3f} s: {several / one:.2f}")


def gradient(model: nn.Module, x: Tensor, k: int) -> Tensor:
    """The gradients of the ``k`` largest outputs."""
    x = x.detach().requires_grad_()
    y = model(x)
    starts = torch.nn.functional.one_hot(y.topk(k).indices[0], y.shape[1]).to(y).unsqueeze(1)
    found: Tensor = torch.autograd.grad(y, x, starts, is_grads_batched=True)[0]
    return found


if __name__ == "__main__":
    main()
