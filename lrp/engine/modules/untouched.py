"""Leave a model as it was, although a forward changes it: in training mode, or by writing to its buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Untouched(AbstractContextManager["Untouched"]):
    """While active, a forward may draw random numbers and write to buffers; then the model is what it was before.

    Random numbers and the buffers of modules in training mode are put back. What others write to their buffers stays,
    as after a forward without an explanation, but for the autograd graph: a buffer is a constant of the next call.

    Args:
        module: the model, if there is one.
        inputs: the explained inputs.
        rescue: called with each buffer that is put back, to keep what a backward needs of what it was in the forward.

    Attributes:
        hint: afterwards, what to say to the user if the mode has changed what was computed; None if it has not.
    """

    def __init__(self, module: nn.Module | None, inputs: Sequence[Tensor], rescue: Callable[[Tensor], Any]) -> None:
        self.hint: str | None = None
        self._rescue = rescue
        self._module = module
        self._modules = [] if module is None else [*module.modules()]
        self._training = [m for m in self._modules if m.training]
        self._devices = {t.device.index for t in inputs if t.device.type == "cuda"} if self._training else set()

    def __enter__(self) -> Untouched:
        self._constants = [
            (m._buffers, name, b, b._version)
            for m in self._modules for name, b in m._buffers.items() if b is not None and not b.requires_grad
        ]  # fmt: skip
        if self._training:
            self._buffers = [
                (m._buffers, name, b, b.clone())
                for m in self._training for name, b in m._buffers.items() if b is not None
            ]  # fmt: skip
            self._fork = torch.random.fork_rng(devices=self._devices)
            self._fork.__enter__()
            self._states = self._random_states()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._training:
            self._put_back(error)
        self._written = [row for row in self._constants if row[2].requires_grad]
        for owner, name, buffer, _ in self._constants:
            now = owner.get(name)
            if now is not None and now.requires_grad:
                owner[name] = now.detach() if now is not buffer or now._is_view() else now.detach_()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within this context a part of the forward runs again, as in a checkpoint: what it writes to are copies."""
        counted = [(owner, name, b) for owner, name, b, version in self._constants if b._version != version]
        rows = [*counted, *((owner, name, b) for owner, name, b, _ in (self._buffers if self._training else ()))]
        for owner, name, buffer in rows:
            owner[name] = buffer.clone()
        try:
            yield
        finally:
            for owner, name, buffer in rows:
                owner[name] = buffer

    def check(self, outputs: Sequence[Tensor]) -> None:
        """After the forward: raise if one of its outputs is a buffer, which is no longer what it was in the forward.

        Raises:
            ValueError: it names the buffer.
        """
        for _, name, buffer, _ in self._written:
            if any(t is buffer for t in outputs):
                raise ValueError(
                    f"the buffer {name!r} is an output itself, and cannot be explained, for it is a constant of the "
                    f"next call: return self.{name}.clone()"
                )

    def _put_back(self, error: Sequence[Any]) -> None:
        if error == (None, None, None) and self._is_trained() and (self._has_drawn() or self._has_updated()):
            self.hint = self._describe()
        self._fork.__exit__(None, None, None)
        for owner, name, buffer, before in self._buffers:
            self._rescue(buffer)
            buffer.data.copy_(before)  # not seen by autograd: a backward that is still to come may need the buffer
            owner[name] = buffer

    def _random_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _is_trained(self) -> bool:
        """Whether there is something to train; a dropout by itself, in training mode, is what somebody wants to see."""
        return self._module is not None and next(self._module.parameters(), None) is not None

    def _has_drawn(self) -> bool:
        """Whether the forward has drawn random numbers, as dropout does."""
        return any(not torch.equal(a, b) for a, b in zip(self._random_states(), self._states, strict=True))

    def _has_updated(self) -> bool:
        """Whether it has updated statistics, as a batch norm does; a count of steps is none."""
        rows = ((owner.get(name), before) for owner, name, _, before in self._buffers if before.is_floating_point())
        return any(after is None or not (after.is_meta or torch.equal(after, before)) for after, before in rows)

    def _describe(self) -> str:
        names = [] if self._module is None else _in_training(self._module)
        listed = ", ".join(repr(name) if name else f"this {type(self._module).__name__}" for name in names)
        return (
            f"in training mode is {listed}, which drew random numbers or normalised by the batch: "
            "call .eval() before, to explain what the model predicts"
        )


def _in_training(module: nn.Module, name: str = "") -> Iterator[str]:
    """The names of the modules in training mode that are in no other."""
    if module.training:
        yield name
        return
    for key, child in module.named_children():
        yield from _in_training(child, f"{name}.{key}" if name else key)
