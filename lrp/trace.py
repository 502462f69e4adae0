"""The relevance of hidden layers, recorded while it flows backward.

>>> import torch, lrp
>>> model = lrp.Sequential(lrp.Linear(4, 3), torch.nn.ReLU(), lrp.Linear(3, 2))
>>> y = model(torch.rand(5, 4, requires_grad=True), explain=True)
>>> with lrp.trace.record() as relevances:
...     y.sum().backward()
>>> {name: tuple(relevance.shape) for name, relevance in relevances.items()}
{'2': (5, 3), '0': (5, 4)}
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from .engine.backward.recording import Recorder, Relevances, start, stop

_switched_on = threading.local()


@contextmanager
def record(outputs: str | Sequence[str] | None = None) -> Iterator[Relevances]:
    """Record the relevance at the input of every layer that an explanation passes, within a ``with`` block.

    Args:
        outputs: names or globs of any modules, containers included, at whose outputs relevance is recorded instead.
            The model is called within the block, too.

    Yields:
        A dict from layer name to relevance, of the shape of the layer's input, in backward order: the last layer
        comes first. A layer that is called again appears as ``"name#2"``, ``"name#3"``, in the order of the calls.
        Explanations whose forward ran in another thread are not seen.
    """
    recorder = Recorder(outputs)
    start(recorder)
    try:
        yield recorder.relevances
    finally:
        stop(recorder)


def enable_and_clean() -> None:
    """Start to record in this thread, from nothing; :func:`collect_and_disable` ends it."""
    if hasattr(_switched_on, "recorder"):
        collect_and_disable()
    _switched_on.recorder = Recorder()
    start(_switched_on.recorder)


def collect_and_disable() -> list[Tensor]:
    """Stop recording, and give what :func:`record` would give as a list.

    Returns:
        The relevances at the inputs of the layers, in backward order: the last layer comes first.

    Raises:
        RuntimeError: where :func:`enable_and_clean` was not called before, in this thread.
    """
    if not hasattr(_switched_on, "recorder"):
        raise RuntimeError("lrp.trace.collect_and_disable(): nothing is recorded; call enable_and_clean() before")
    recorder: Recorder = _switched_on.recorder
    del _switched_on.recorder
    stop(recorder)
    return list(recorder.relevances.values())
