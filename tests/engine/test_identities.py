"""Metamorphic: identities put after every function of a network, or by hooks of its modules, change no map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

import networks
import pytest
import torch
import torchvision
from networks import error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import lrp

TOLERANCE = 1e-10
Identity = Callable[[Tensor], Tensor]

IDENTITIES: dict[str, Identity] = {
    "clone": torch.clone,
    "contiguous": lambda t: t.contiguous(),
    "dropout": lambda t: F.dropout(t, 0.5, training=False),
    "view": lambda t: t.view(t.shape),
    "view_as": lambda t: t.view_as(t),
    "reshape": lambda t: t.reshape(t.shape),
    "to": lambda t: t.to(t.dtype),
    "copied": lambda t: t.to(t.dtype, copy=True),
    "expand_as": lambda t: t.expand_as(t),
    "index": lambda t: t[...],
}
# What is skipped because it fails: patterns of "test network". To be emptied.
KNOWN_TO_FAIL: tuple[str, ...] = ()


def skip_known(test: str, network: str) -> None:
    if any(fnmatchcase(f"{test} {network}", pattern) for pattern in KNOWN_TO_FAIL):
        pytest.skip("known to fail")


BOX = lrp.composites.EpsilonGammaBox(-5.0, 5.0)
RULES: list[Any] = """
    epsilon gamma gamma+epsilon alpha1beta0 alpha2beta1 zplus wsquare flat epsilon_plus epsilon_plus_flat
    epsilon_alpha2_beta1_flat
""".split()
RULES += [BOX, lrp.rules.Gamma(0.25, generalized=True), lrp.rules.AlphaBeta(2, 1, bias="absorb")]


class After(TorchFunctionMode):
    """Puts an identity after every function that returns what requires grad."""

    def __init__(self, identities: Sequence[Identity]) -> None:
        super().__init__()
        self.identities, self.calls = identities, count()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "requires_grad_", "detach_"):
            return result
        identity = self.identities[next(self.calls) % len(self.identities)]
        if isinstance(result, Tensor):
            return self._after(identity, result)
        if isinstance(result, (tuple, list)):
            return type(result)([self._after(identity, t) for t in result]) if type(result) in (tuple, list) else result
        return result

    def _after(self, identity: Identity, t: Any) -> Any:
        is_live = isinstance(t, Tensor) and t.requires_grad and t.is_floating_point()
        return identity(t) if is_live else t


class Interleaved(nn.Module):
    """A model with identities after its functions. The mode is entered last, so that others see what it adds."""

    def __init__(self, model: nn.Module, *identities: str) -> None:
        super().__init__()
        self.model = model
        self.identities = [IDENTITIES[name] for name in identities]

    def forward(self, *args: Any) -> Any:
        with After(self.identities):
            return self.model(*args)


class Frozen(nn.Module):
    """A batch norm that is written out, as detectors have it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", (norm.bias.detach() - norm.running_mean * scale).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def torchvision_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return networks.randomize(getattr(torchvision.models, name)(num_classes=4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutional": (networks.convolutional, networks.images),
    "in place": (lambda: networks.convolutional(inplace=True), networks.images),
    "plain": (networks.plain, lambda: networks.images(2, 1, 6)),
    "unet": (lambda: networks.randomize(networks.UNet()), lambda: networks.images(1, 3, 8)),
}


def relevance(model: nn.Module, x: Tensor, rule: Any) -> tuple[Tensor, Tensor]:
    y = lrp.convert(model)(x, explain=True, rule=rule)
    return torch.autograd.grad(y, x, y.detach())[0], y.detach()


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_identity_after_every_function_changes_no_map(name: str, identity: str) -> None:
    skip_known("identity", name)
    build, images = NETWORKS[name]
    model, x = build(), images()
    for rule in RULES:
        expected, values = relevance(model, x, rule)
        actual, interleaved = relevance(Interleaved(model, identity), x, rule)
        assert torch.equal(values, interleaved), rule
        assert error(actual, expected) < TOLERANCE, rule


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "densenet121"]
)
def test_identities_change_no_map_of_torchvision(name: str) -> None:
    skip_known("identity", name)
    model, x = torchvision_net(name), networks.images(1, 3, 32)
    for rule in ("epsilon", "gamma", "alpha2beta1", "epsilon_plus_flat"):
        expected, _ = relevance(model, x, rule)
        assert error(relevance(Interleaved(model, *IDENTITIES), x, rule)[0], expected) < TOLERANCE, rule


HOOKS: dict[str, Callable[[nn.Module, Any, Tensor], Tensor | None]] = {
    "looks on": lambda module, args, output: None,
    "the output": lambda module, args, output: output,
    "clone": lambda module, args, output: output.clone(),
    "view": lambda module, args, output: output.view_as(output),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_that_return_what_they_get_change_no_map(name: str, hook: str) -> None:
    skip_known("hook", name)
    build, images = NETWORKS[name]
    model, x = build(), images()
    hooked = copy.deepcopy(model)
    for module in hooked.modules():
        if not list(module.children()):
            module.register_forward_hook(HOOKS[hook])
            module.register_forward_pre_hook(lambda module, args: args)
    for rule in RULES:
        assert error(relevance(hooked, x, rule)[0], relevance(model, x, rule)[0]) < TOLERANCE, rule


def with_frozen_norms(model: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(model)
    for path, module in list(frozen.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, name = path.rpartition(".")
            setattr(frozen.get_submodule(parent), name, Frozen(module))
    return frozen


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_frozen_batch_norms_are_batch_norms(name: str) -> None:
    skip_known("frozen", name)
    model, x = torchvision_net(name), networks.images(1, 3, 32)
    for rule in ("epsilon", "gamma", "zplus", "alpha2beta1", "epsilon_plus_flat"):
        expected, values = relevance(model, x, rule)
        actual, frozen = relevance(with_frozen_norms(model), x, rule)
        assert torch.allclose(values, frozen)
        assert error(actual, expected) < 1e-8, rule
