"""The patterns of Kindermans (2017) from explicit matrices of patches, in numpy's float64: the oracle of lrp.patterns.

A sample is one output position of one image. Torch only says what a layer connects with what: `patches` writes its
inputs as an array X [sample, neuron, element], in which

    y[n, o] = sum_k w[o, k] X[n, o, k]        w = rows(layer, layer.weight) [neuron, element]

is the layer's output without its bias. A neuron is an output channel, and an element is one of its weights; where
a weight reaches into the padding, or at a transposed convolution between the inputs, X is what stands there.

Haufe (2014)        On the interpretation of weight vectors of linear models in multivariate neuroimaging. NeuroImage
Kindermans (2017)   Learning how to explain neural networks: PatternNet and PatternAttribution
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oracles import reference

KINDS = ["linear", "positive", "negative"]


def rows(layer: nn.Module, weight: Tensor | np.ndarray) -> np.ndarray:
    """A tensor of the weight's shape as a matrix [neuron, element]."""
    weight = np.asarray(weight, dtype=np.float64)
    if getattr(layer, "transposed", False):  # [in, out / groups, *kernel]
        in_by_out = weight.reshape(layer.groups, -1, *weight.shape[1:2], np.prod(layer.kernel_size))
        return in_by_out.swapaxes(1, 2).reshape(layer.out_channels, -1)
    return weight.reshape(len(weight), -1)


def in_weight_shape(layer: nn.Module, matrix: np.ndarray) -> np.ndarray:
    """The inverse of `rows`."""
    shape = tuple(layer.weight.shape)
    if getattr(layer, "transposed", False):
        out_by_in = matrix.reshape(layer.groups, shape[1], -1, np.prod(layer.kernel_size))
        return out_by_in.swapaxes(1, 2).reshape(shape)
    return matrix.reshape(shape)


def patches(layer: nn.Module, inputs: Tensor | Sequence[Tensor]) -> np.ndarray:
    """X [sample, neuron, element], of all samples of one or more inputs.

    >>> layer, x = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dilation=(1, 2)), torch.randn(2, 2, 6, 7)
    >>> unfolded = nn.functional.unfold(x, (3, 2), stride=2, padding=1, dilation=(1, 2)).mT.flatten(0, 1)
    >>> all(np.array_equal(patches(layer, x)[:, neuron], unfolded) for neuron in range(3))
    True
    """
    if not isinstance(inputs, Tensor):
        return np.concatenate([patches(layer, x) for x in inputs])
    w = rows(layer, layer.weight.detach())
    columns = []
    for unit in np.eye(w.shape[1]):
        weight = in_weight_shape(layer, np.tile(unit, (len(w), 1)))
        columns.append(outputs(reference.with_weight(layer, torch.from_numpy(weight)), inputs))
    return np.stack(columns, axis=-1)


def outputs(layer: nn.Module, x: Tensor) -> np.ndarray:
    """What the layer makes of an input, [sample, neuron]."""
    with torch.no_grad():
        y = layer.forward(x.detach().double()).numpy()  # the layer may have hooks
    if isinstance(layer, nn.Linear):
        return y.reshape(-1, y.shape[-1])
    batch = y.reshape(-1, *y.shape[-1 - len(layer.kernel_size) :])
    return np.moveaxis(batch, 1, -1).reshape(-1, layer.out_channels)


@dataclass(frozen=True)
class Estimate:
    """A pattern as a fraction of what is measured.

    The counts of samples cancel in it, so that it is one of plain sums: those of short binary fractions do not
    round, and a denominator that ought to be zero is zero.
    """

    numerator: np.ndarray  # [neuron, element]
    denominator: np.ndarray  # [neuron]
    size: np.ndarray  # [neuron], of the terms that are summed to the denominator

    @classmethod
    def of(cls, layer: nn.Module, inputs: Tensor | Sequence[Tensor], kind: str) -> "Estimate":
        """N (sum_m x y) - (sum y) (sum_m x): N N_m times E_m[x y] - E_m[x] E[y], m the samples of the kind."""
        X, w = patches(layer, inputs), rows(layer, layer.weight.detach())
        y = np.einsum("nok,ok->no", X, w)
        mask = masked(layer, y, kind)
        products, means = len(y) * masked_sum(X, mask * y), y.sum(0)[:, None] * masked_sum(X, mask)
        size = (np.abs(w) * (np.abs(products) + np.abs(means))).sum(1)
        return cls(products - means, (w * (products - means)).sum(1), size)

    def pattern(self) -> np.ndarray:
        """0 where the denominator is 0."""
        d = self.denominator[:, None]
        return np.divide(self.numerator, d, out=np.zeros_like(self.numerator), where=d != 0)

    def well_conditioned(self) -> np.ndarray:
        """The neurons whose denominator is not what rounding leaves of a difference of equals."""
        return np.abs(self.denominator) > 1e-5 * self.size


def masked(layer: nn.Module, y: np.ndarray, kind: str) -> np.ndarray:
    """The samples that an estimator of this kind is made of: those where the neuron fires, or the others, or all."""
    fires = y + (0 if layer.bias is None else layer.bias.detach().double().numpy()) > 0
    return {"linear": np.ones_like(fires), "positive": fires, "negative": ~fires}[kind]


def masked_sum(X: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The sum over samples of factor [sample, neuron] times X, [neuron, element]."""
    return np.einsum("no,nok->ok", factor, X)


def patterns(layer: nn.Module, inputs: Tensor | Sequence[Tensor], kind: str = "linear") -> np.ndarray:
    """The pattern of a layer, in its weight's shape.

    Args:
        layer: a Linear, Conv1d to Conv3d or ConvTranspose1d to ConvTranspose3d, in any dtype.
        inputs: what goes into it: one tensor, batched or not, or several, which need not have one shape.
        kind: "linear", "positive" or "negative".

    >>> layer, x = nn.Linear(2, 1), torch.randn(9, 2, dtype=torch.float64)
    >>> covariance = np.cov(x, x @ layer.weight[0].detach().double(), rowvar=False)
    >>> np.allclose(patterns(layer, x), covariance[2, :2] / covariance[2, 2])
    True
    """
    return in_weight_shape(layer, Estimate.of(layer, inputs, kind).pattern())


def rho(layer: nn.Module, pattern: Tensor | np.ndarray, training: Tensor, held_out: Tensor) -> np.ndarray:
    """The quality of a pattern for each neuron: 1 - max_v corr(w^T x, v^T (x - a w^T x)).

    The v of the largest correlation is that of least squares, fitted to the training samples; the correlation is
    that of the samples held out.
    """
    w, a = rows(layer, layer.weight.detach()), rows(layer, pattern)
    parts = [patches(layer, x) for x in (training, held_out)]
    return np.array([1 - correlation(*(distracted(X[:, o], w[o], a[o]) for X in parts)) for o in range(len(w))])


def distracted(X: np.ndarray, w: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output of a neuron, and what the pattern leaves of its input as distractor, both without their means."""
    y = X @ w
    distractor = X - np.outer(y, a)
    return y - y.mean(), distractor - distractor.mean(0)


def correlation(training: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]) -> float:
    """Of the held-out outputs with what distractors tell of them; 0 where they tell nothing but rounding."""
    y, distractor = training
    v = np.linalg.lstsq(distractor, y, rcond=None)[0]
    y, distractor = held_out
    told = distractor @ v
    told_norm, norm = np.linalg.norm(told), np.linalg.norm(y)
    return float(y @ told / (norm * told_norm)) if told_norm > 1e-10 * norm else 0.0


def captured(model: nn.Module, data: list[Tensor], names: list[str]) -> dict[str, list[Tensor]]:
    """The inputs of the layers of these names, at all their calls."""
    inputs = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, x=inputs[name]: x.append(args[0].clone()))
        for name in names
    ]
    with torch.no_grad():
        for x in data:
            model(x)
    for hook in hooks:
        hook.remove()
    return inputs


def haufe(n: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model whose weight is the filter w, the direction a of the signal, and n inputs a s + distractor + a mean.

    Haufe (2014): the filter must cancel the distractor to find s, w^T distractor = 0 and w^T a = 1.
    """
    generator = torch.Generator().manual_seed(0)
    signal, s = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.75], dtype=torch.float64), torch.rand(n, 1, generator=generator)
    mixing = torch.randn(5, 3, generator=generator, dtype=torch.float64) * 0.3
    distractor = torch.randn(n, 3, generator=generator, dtype=torch.float64) @ mixing.T
    complement = torch.linalg.qr(mixing, mode="complete").Q[:, 3:]  # what no distractor reaches
    w = complement @ complement.T @ signal
    model = nn.Sequential(nn.Linear(5, 1).double())
    with torch.no_grad():
        model[0].weight.copy_(w / (w @ signal))
    return model, signal[None], 4 * s * signal + distractor + torch.arange(5)
