"""Drop-in layers: torch's own, whose forward can be explained.

Each has the constructor, the parameters, the state_dict and the repr of the torch class that it subclasses.

>>> import torch, lrp
>>> layer = lrp.Linear(3, 2)
>>> x = torch.rand(4, 3, requires_grad=True)
>>> layer(x, explain=True, rule="zplus").sum().backward()
>>> x.grad.shape
torch.Size([4, 3])
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .composites import get
from .engine import Asked, Patterns, explained, watched
from .engine.backward.recording import watchers
from .rules import Rule
from .twins import twin, twin_children

Self = TypeVar("Self", bound="Explainable")


class Explainable(nn.Module):
    """A module whose forward can be explained; the mixin of all drop-in layers."""

    def forward(
        self,
        *args: Any,
        explain: bool = False,
        rule: str | Rule = "epsilon",
        pattern: Patterns | None = None,
        differentiable: bool = False,
        strict: bool = False,
        form: Asked = "relevance",
        **kwargs: Any,
    ) -> Any:
        """The module's own forward. With ``explain=True`` it has the same values, and backward carries relevance.

        Args:
            args: what the torch class takes.
            explain: whether backward shall carry relevance to the inputs that require grad.
            rule: a key such as ``"epsilon"`` (default) or a :class:`lrp.Rule`, for all linear layers.
            pattern: a list with one pattern for each linear layer in the order of the forward, or a dict by layer
                name; for the rules that need one.
            differentiable: whether the relevance may itself be differentiated, by input and parameters.
            strict: whether a function without a rule is an error, instead of a warning.
            form: what backward carries: ``"relevance"`` (default), where the gradient of any hidden tensor is its
                relevance, or ``"gradient"``, relevance over value, which costs less and is as precise as a gradient.
                ``x.grad`` is the relevance of the inputs in both. ``"gradient"`` is for rules that give relevance with
                the input's value as a factor, but for those of the first layers.
            kwargs: what the torch class takes; it refuses what it does not know.

        Returns:
            What the torch class returns.

        Raises:
            ValueError, TypeError: for an unknown rule, no input that requires grad, ``torch.no_grad()``, patterns
                that do not fit, an input that is not finite, a number of the rule beyond the range of a layer's dtype;
                for an unknown form, and a rule that has none.
            NotImplementedError: if strict, listing the functions without a rule; with ``form="gradient"`` listing those
                that have none.
        """
        rule = get(rule)  # also of a forward that is not explained: a misspelt key is an error where it stands
        if not explain:
            return super().forward(*args, **kwargs)
        asked: dict[str, Any] = {"pattern": pattern, "differentiable": differentiable, "strict": strict, "form": form}
        if not watchers():
            return explained(super().forward, args, kwargs, rule=rule, module=self, **asked)
        own = twin(self, type(self))  # whose modules nobody else calls
        twin_children(own, {self: own}, {})
        forward, report = watched(own, super(Explainable, own).forward, form)
        output = explained(forward, args, kwargs, rule=rule, module=own, **asked)
        report()
        return output

    @classmethod
    def from_torch(cls: type[Self], module: nn.Module) -> Self:
        """The drop-in twin of a torch module.

        It shares the module's parameters and buffers, and keeps its dtype, device, training flag, requires_grad and
        hooks. The module stays as it was.

        Args:
            module: an instance of the torch class that this class subclasses.

        Raises:
            TypeError: for any other object, and for a module with parametrizations, which belong to its class.

        >>> import torch, lrp
        >>> torch_layer = torch.nn.Linear(3, 2)
        >>> lrp.Linear.from_torch(torch_layer).weight is torch_layer.weight
        True
        """
        own = cls.__mro__[2]
        if not isinstance(module, own):
            raise TypeError(
                f"lrp.{cls.__name__}.from_torch() takes a torch.nn.{own.__name__}, not a {type(module).__name__}"
            )
        if parametrize.is_parametrized(module):
            raise TypeError(
                f"lrp.{cls.__name__}.from_torch(): this {own.__name__} is parametrized; "
                "remove_parametrizations() before, or put it as it is into a lrp.Sequential"
            )
        return twin(module, cls)


class Linear(Explainable, nn.Linear):
    """:class:`torch.nn.Linear` whose forward can be explained."""


class Conv1d(Explainable, nn.Conv1d):
    """:class:`torch.nn.Conv1d` whose forward can be explained."""


class Conv2d(Explainable, nn.Conv2d):
    """:class:`torch.nn.Conv2d` whose forward can be explained."""


class Conv3d(Explainable, nn.Conv3d):
    """:class:`torch.nn.Conv3d` whose forward can be explained."""


class ConvTranspose1d(Explainable, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` whose forward can be explained."""


class ConvTranspose2d(Explainable, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` whose forward can be explained."""


class ConvTranspose3d(Explainable, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` whose forward can be explained."""


class MaxPool1d(Explainable, nn.MaxPool1d):
    """:class:`torch.nn.MaxPool1d` whose forward can be explained: the winner takes all."""


class MaxPool2d(Explainable, nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` whose forward can be explained: the winner takes all."""


class MaxPool3d(Explainable, nn.MaxPool3d):
    """:class:`torch.nn.MaxPool3d` whose forward can be explained: the winner takes all."""


class AvgPool1d(Explainable, nn.AvgPool1d):
    """:class:`torch.nn.AvgPool1d` whose forward can be explained: in proportion to the values."""


class AvgPool2d(Explainable, nn.AvgPool2d):
    """:class:`torch.nn.AvgPool2d` whose forward can be explained: in proportion to the values."""


class AvgPool3d(Explainable, nn.AvgPool3d):
    """:class:`torch.nn.AvgPool3d` whose forward can be explained: in proportion to the values."""


class AdaptiveAvgPool1d(Explainable, nn.AdaptiveAvgPool1d):
    """:class:`torch.nn.AdaptiveAvgPool1d` whose forward can be explained: in proportion to the values."""


class AdaptiveAvgPool2d(Explainable, nn.AdaptiveAvgPool2d):
    """:class:`torch.nn.AdaptiveAvgPool2d` whose forward can be explained: in proportion to the values."""


class AdaptiveAvgPool3d(Explainable, nn.AdaptiveAvgPool3d):
    """:class:`torch.nn.AdaptiveAvgPool3d` whose forward can be explained: in proportion to the values."""


class BatchNorm1d(Explainable, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` whose forward can be explained: merged with the linear layer before it, if any."""


class BatchNorm2d(Explainable, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` whose forward can be explained: merged with the linear layer before it, if any."""


class BatchNorm3d(Explainable, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` whose forward can be explained: merged with the linear layer before it, if any."""
