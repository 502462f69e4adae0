"""Who records the relevance of hidden layers while it flows backward."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Relevances = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Recorder:
    """Somebody who records.

    Attributes:
        outputs: the modules at whose outputs relevance is wanted; None for the inputs of all layers.
        relevances: what was recorded, by name.
    """

    outputs: Any = None
    relevances: Relevances = field(default_factory=dict)


# By the thread that asked for it. Autograd may run backward in threads of its own (on a GPU it does), so what is
# reported carries the thread of the explained forward.
_recorders: dict[int, list[Recorder]] = {}


def is_recording(thread: int) -> bool:
    """Whether somebody records the inputs of layers, in that thread or in this one."""
    return bool(_recorders) and any(_of_layers(owner) for owner in (thread, threading.get_ident()))


def report(name: str, relevance: Tensor, thread: int) -> None:
    """Note the relevance at a layer's input, for whoever records in that thread or in this one."""
    for owner in {thread, threading.get_ident()}:
        for recorder in _of_layers(owner):
            # not an alias where it can be avoided: autograd adds in place to what nobody else seems to hold
            recorder.relevances[name] = relevance.detach() if relevance.requires_grad else relevance


def watchers() -> list[Recorder]:
    """Those who record at the outputs of modules, in this thread."""
    recorders = _recorders.get(threading.get_ident(), ())
    return [recorder for recorder in recorders if recorder.outputs is not None]


def is_on(recorder: Recorder) -> bool:
    """Whether somebody still records."""
    return any(recorder is other for recorders in list(_recorders.values()) for other in recorders)


def start(recorder: Recorder) -> None:
    """Record in this thread from now on."""
    _recorders.setdefault(threading.get_ident(), []).append(recorder)


def stop(recorder: Recorder) -> None:
    """Record no longer."""
    thread = threading.get_ident()
    others = [other for other in _recorders[thread] if other is not recorder]
    if others:
        _recorders[thread] = others
    else:
        del _recorders[thread]


def _of_layers(thread: int) -> list[Recorder]:
    return [recorder for recorder in _recorders.get(thread, ()) if recorder.outputs is None]
