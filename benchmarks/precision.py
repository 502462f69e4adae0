"""The error of explanations against float64, by dtype and by form, beside that of a plain gradient times input.

    python benchmarks/precision.py

The reference has the same weights, rounded to the dtype, in float64. Relevance starts at the outputs, by their values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy

import torch
import torchvision
from cost import Block
from torch import Tensor, nn

import lrp
from lrp.rules import Epsilon, Proportional

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "12 gated blocks": lambda: (
        nn.Sequential(nn.Linear(256, 256), *(Block(256) for _ in range(12)), nn.Linear(256, 10)),
        torch.randn(16, 256),
    ),
    "resnet18": lambda: (torchvision.models.resnet18(), torch.randn(4, 3, 64, 64)),
    "vgg11_bn": lambda: (torchvision.models.vgg11_bn(), torch.randn(4, 3, 64, 64)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS = {
    "gradient * input": None,
    "relevance, 1e-6": (1e-6, "relevance"),
    "gradient form, 1e-6": (1e-6, "gradient"),
    "gradient form, 0": (0.0, "gradient"),
}


def rule(epsilon: float) -> lrp.Rule:
    """With the stabilisers of sums, pools and norms that gradient form ignores at zero where the dtype allows it."""
    return lrp.Composite({family: Proportional(epsilon=0.0) for family in ("sum", "pool", "norm")}, Epsilon(epsilon))


def map_of(model: nn.Module, x: Tensor, settings: tuple[float, str] | None) -> Tensor:
    """The map of one column."""
    x = x.detach().requires_grad_()
    if settings is None:
        y = model(x)
        return x.detach() * torch.autograd.grad(y, x, torch.ones_like(y))[0]
    epsilon, form = settings
    y = lrp.convert(model)(x, explain=True, rule=rule(epsilon), form=form)
    return torch.autograd.grad(y, x, y.detach())[0]


def errors(network: str, dtype: torch.dtype) -> list[float]:
    """The error of each column: the norm of the difference, relative to that of the reference."""
    torch.manual_seed(0)
    model, x = NETWORKS[network]()
    model = model.eval().to(dtype)
    exact, x = deepcopy(model).double(), x.to(dtype)
    found = []
    for settings in COLUMNS.values():
        expected = map_of(exact, x.double(), settings)
        found.append(((map_of(model, x, settings).double() - expected).norm() / expected.norm()).item())
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"torch {torch.__version__}\n{'':30}" + "".join(f"{name:>21}" for name in COLUMNS))
    for network in NETWORKS:
        for dtype in DTYPES:
            name = f"{network}, {str(dtype).removeprefix('torch.')}"
            print(f"{name:30}" + "".join(f"{error:21.2e}" for error in errors(network, dtype)), flush=True)


if __name__ == "__main__":
    main()
