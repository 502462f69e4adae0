"""Make relays, and keep what backward needs of them, from writes of the forward's own and in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from torch import Tensor

from ..maps.weights import Made
from .backward.gradient_form import GradientForm
from .backward.kept import Keeper, Kept, Saving
from .backward.propagation import Redistribute, relay
from .checkpoints import Checkpoint


class Relays:
    """The relays of one explained forward.

    Args:
        differentiable: whether relevance may be differentiated.

    Attributes:
        keeper: of what they save.
        checkpoint: the checkpoint that the model is in.
        is_again: whether it is recomputed.
    """

    def __init__(self, differentiable: bool) -> None:
        self._differentiable = differentiable
        self.keeper = Keeper()
        self.checkpoint: Checkpoint | None = None
        self.is_again = False

    def make(
        self, z: Tensor, carriers: Sequence[Tensor], redistribute: Redistribute, saved: Sequence[Tensor] = (),
        target: Tensor | None = None, made: Made | None = None,
    ) -> tuple[Tensor, list[Kept]]:  # fmt: skip
        """A tensor of the values ``z``, whose backward is ``redistribute``, and what is kept for it.

        Args:
            z: the values.
            carriers: what gets relevance.
            redistribute: the backward; see :func:`~lrp.engine.backward.propagation.relay`.
            saved: what it needs.
            target: the tensor that has become ``z`` itself, by an operation in place.
            made: where modifications of a weight are kept that is saved.
        """
        if self.checkpoint is not None:
            saved = self.checkpoint.saved(saved, self.is_again)
        in_place = target is not None
        with self.saving(made) as kept:
            output = relay(redistribute, z, carriers, saved, in_place=in_place, differentiable=self._differentiable)
        if target is not None and self._differentiable:  # the values were computed beside it
            self.keeper.rescue(target)
            target.detach().copy_(z)
        return output, kept

    def convert(self, t: Tensor, backward: GradientForm) -> Tensor:
        """A tensor of the value of ``t``, between which and ``t`` what is carried changes its form."""
        return self.make(t.detach(), [t], backward, [t.detach()])[0]  # type: ignore[arg-type]

    def saving(self, made: Made | None = None) -> Saving:
        """Within this context, what autograd saves is kept, unless a checkpoint keeps nothing."""
        return self.keeper.saving(made, self.checkpoint is None)

    def rescue(self, target: Tensor, spared: Kept | None = None) -> Tensor | None:
        """Keep what backward needs from a write to ``target``, as :meth:`Keeper.rescue` does."""
        if self.checkpoint is not None and not self.is_again:
            self.checkpoint.overwrites(target)
        return self.keeper.rescue(target, spared)

    def again(self, checkpoint: Checkpoint) -> Relays:
        """Those of the recomputation of a checkpoint."""
        relays = copy(self)
        relays.keeper, relays.checkpoint, relays.is_again = Keeper(), checkpoint, True
        return relays
