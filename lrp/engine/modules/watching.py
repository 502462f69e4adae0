"""The relevance at the inputs and outputs of any modules of a model, containers included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..backward.recording import Recorder, is_on, watchers
from ..calls import tensors_in

Side = Literal["input", "output"]
Layers = str | Sequence[str] | Mapping[str, Side]


class Seen(NamedTuple):
    """Where a tensor lies in the autograd graph.

    Attributes:
        edge: the place, to which relevance comes in relevance form.
        shape: that of the tensor.
    """

    edge: GradientEdge
    shape: torch.Size


class Watch:
    """Sees where the inputs or outputs of modules lie in the graph of an explained forward.

    Args:
        model: the model, whose modules nobody else calls meanwhile: they are hooked.
        layers: names or globs of its modules, or a dict from these to the side of them.
        argument: what an error calls these.

    Attributes:
        seen: what was seen, by the module's name; of a module that is called again ``"name#2"``, ...; of a module that
            has several tensors on that side ``"name[0]"``, ...

    Raises:
        ValueError: for a name that no module has.
    """

    def __init__(self, model: nn.Module, layers: Layers, argument: str = "layers") -> None:
        self.seen: dict[str, Seen] = {}
        self._sides = dict(_named(model, layers, argument))
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
                    handle = modules[name].register_forward_pre_hook(_on_input(see), with_kwargs=True)
                else:
                    handle = modules[name].register_forward_hook(_on_output(see))
                stack.callback(handle.remove)
            yield

    def report(self, recorder: Recorder) -> None:
        """Let relevance be noted where it comes by, as long as somebody records."""

        def note(name: str, seen: Seen, gradients: Sequence[Tensor | None]) -> None:
            g = gradients[seen.edge.output_nr]
            if g is not None and is_on(recorder):
                recorder.relevances[name] = g.detach()

        for name, seen in self.seen.items():
            seen.edge.node.register_prehook(partial(note, name, seen))

    def _see(self, name: str, structure: Any) -> None:
        self._calls[name] += 1
        called = name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"
        with torch._C.DisableTorchFunction():
            live = [t for t in tensors_in(structure) if t.requires_grad]
            for number, t in enumerate(live):
                key = called if len(live) == 1 else f"{called}[{number}]"
                self.seen[key] = Seen(get_gradient_edge(t), t.shape)


def watched(model: nn.Module, forward: Callable[..., Any], form: str) -> tuple[Callable[..., Any], Callable[[], None]]:
    """A forward whose modules are seen by those who record in this thread, and what to call when it is over.

    Raises:
        ValueError: in gradient form, where what comes to a module that is merged with others is no relevance.
    """
    if form != "relevance":
        raise ValueError(f"lrp.trace.record(outputs=...) with form={form!r}: must be form='relevance'")
    watches = [(Watch(model, recorder.outputs), recorder) for recorder in watchers()]

    def seen(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for watch, _ in watches:
                stack.enter_context(watch.on())
            return forward(*args, **kwargs)

    def report() -> None:
        for watch, recorder in watches:
            watch.report(recorder)

    return seen, report


def _on_input(see: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, args, kwargs: see((args, kwargs))


def _on_output(see: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, args, output: see(output)


def _named(model: nn.Module, layers: Layers, argument: str) -> Iterator[tuple[str, Side]]:
    """The names of the modules that are meant, and which side of each."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    wanted = {layers: "output"} if isinstance(layers, str) else layers
    pairs = wanted.items() if isinstance(wanted, Mapping) else ((pattern, "output") for pattern in wanted)
    for pattern, side in pairs:
        if side not in ("input", "output"):
            raise ValueError(f"{argument}: {pattern!r}: {side!r}: must be 'input' or 'output'")
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found and names:
            close = get_close_matches(pattern, names, 3, 0.4) or names[:5]
            raise ValueError(f"{argument}: no module is named {pattern!r}; there are {', '.join(map(repr, close))} ...")
        yield from ((name, side) for name in found)  # type: ignore[misc]
