"""Who records the relevance of hidden layers while it flows backward."""

from __future__ import annotations

import threading

from torch import Tensor

Relevances = dict[str, Tensor]

# Who records, by the thread that asked for it. Autograd may run backward in threads of its own (on a GPU it
# does), so what is reported carries the thread of the explained forward.
_recorders: dict[int, list[Relevances]] = {}


def is_recording(thread: int) -> bool:
    """Whether somebody records, in that thread or in this one."""
    return bool(_recorders) and (thread in _recorders or threading.get_ident() in _recorders)


def report(name: str, relevance: Tensor, thread: int) -> None:
    """Note the relevance at a layer's input, for whoever records in that thread or in this one."""
    for owner in {thread, threading.get_ident()}:
        for relevances in _recorders.get(owner, ()):
            # not an alias where it can be avoided: autograd adds in place to what nobody else seems to hold
            relevances[name] = relevance.detach() if relevance.requires_grad else relevance


def start(relevances: Relevances) -> None:
    """Record in this thread from now on."""
    _recorders.setdefault(threading.get_ident(), []).append(relevances)


def stop(relevances: Relevances) -> None:
    """Record no longer."""
    thread = threading.get_ident()
    others = [other for other in _recorders[thread] if other is not relevances]
    if others:
        _recorders[thread] = others
    else:
        del _recorders[thread]
