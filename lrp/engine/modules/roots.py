"""Explain the output of a module within a model, such as an embedding, in place of the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import tensors_in
from ..streams import Streams


class Root:
    """Where relevance ends within a model.

    Args:
        name: that of the module.
        module: the module, which nobody else calls meanwhile: it is hooked.

    Attributes:
        output: after the forward, the module's output, which requires grad.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._tensor: Tensor | None = None
        self._name, self._module = name, module

    @property
    def output(self) -> Tensor:
        assert self._tensor is not None
        return self._tensor

    @contextmanager
    def of(self, streams: Streams) -> Iterator[None]:
        """While active, what the module returns is an explained input of these streams.

        Raises:
            ValueError: if it is called more than once or never, or gives no floating tensor or several.
        """

        def begin(module: nn.Module, args: Any, output: Any) -> Any:
            if self._tensor is not None:
                raise ValueError(f"at={self._name!r}: is called more than once; name a layer that is called once")
            with torch._C.DisableTorchFunction():
                self._tensor = self._only(output).detach().requires_grad_()
                streams.begin(self._tensor)
            return self._tensor.clone()  # what comes next may work in place, which a leaf forbids

        handle = self._module.register_forward_hook(begin)
        try:
            yield
        finally:
            handle.remove()
        if self._tensor is None:
            raise ValueError(f"at={self._name!r}: is not called in the model's forward")

    def _only(self, output: Any) -> Tensor:
        floating = [t for t in tensors_in(output) if t.is_floating_point()]
        if len(floating) != 1 or not isinstance(output, Tensor):
            raise ValueError(
                f"at={self._name!r}: returns a {type(output).__name__}; name a layer that returns a tensor"
            )
        return floating[0]
