"""The relevance at the inputs and outputs of any modules of a model, containers included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .inputs import mapped

Side = Literal["input", "output"]
Layers = str | Sequence[str] | Mapping[str, Side]


class Watch:
    """Sees where the inputs or outputs of modules lie in the autograd graph of an explained forward.

    Args:
        model: the model, whose modules nobody else calls meanwhile: they are hooked.
        layers: names or globs of its modules, or which side of them.

    Attributes:
        edges: by name; of a module that is called again ``"name#2"``, ...

    Raises:
        ValueError: for a name that no module has.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        self.edges: dict[str, tuple[GradientEdge, torch.Size]] = {}
        self._sides = dict(_named(model, layers))
        self._model = model
        self._calls: Counter[str] = Counter()

    @contextmanager
    def on(self) -> Iterator[None]:
        """While active, calls of the modules are seen."""
        modules = dict(self._model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            for name, side in self._sides.items():
                see = partial(self._see, name)
                if side == "input":
                    handle = modules[name].register_forward_pre_hook(lambda m, args, see=see: see(args))
                else:
                    handle = modules[name].register_forward_hook(lambda m, args, output, see=see: see(output))
                stack.callback(handle.remove)
            yield

    def _see(self, name: str, structure: Any) -> None:
        self._calls[name] += 1
        called = name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"
        tensors: list[Tensor] = []
        mapped(structure, tensors.append)
        with torch._C.DisableTorchFunction():
            live = [t for t in tensors if t.requires_grad]
            for number, t in enumerate(live):
                key = called if len(live) == 1 else f"{called}[{number}]"
                self.edges[key] = get_gradient_edge(t), t.shape


def _named(model: nn.Module, layers: Layers) -> Iterator[tuple[str, Side]]:
    """The names of the modules that are meant, and which side of each."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    wanted = {layers: "output"} if isinstance(layers, str) else layers
    pairs = wanted.items() if isinstance(wanted, Mapping) else ((pattern, "output") for pattern in wanted)
    for pattern, side in pairs:
        if side not in ("input", "output"):
            raise ValueError(f"layers={{{pattern!r}: {side!r}}}: must be 'input' or 'output'")
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            close = get_close_matches(pattern, names, 3, 0.4) or names[:5]
            raise ValueError(
                f"layers={pattern!r}: no module has that name; there are {', '.join(map(repr, close))}, ..."
            )
        yield from ((name, side) for name in found)  # type: ignore[misc]
