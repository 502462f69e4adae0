"""The rules as dense matrices, straight from the literature: the oracle the library is tested against.

Every rule below takes one sample of one layer, written as a matrix,

    z_j = sum_i W_ji x_i + b_j        W [out, in],  b [out] or None,  x [in],  R [out]

and returns the relevance R_in [in] of its inputs. `mask` [out, in] is 1 where the layer connects i and j,
whatever the weight (default: everywhere). `DenseLayer` writes a torch layer in this form, in float64.

Bach (2015)         On pixel-wise explanations for non-linear classifier decisions by LRP. PLoS ONE
Montavon (2017)     Explaining nonlinear classification decisions with deep Taylor decomposition
Kindermans (2017)   Learning how to explain neural networks: PatternNet and PatternAttribution
Montavon (2019)     Layer-wise relevance propagation: an overview. LNCS 11700, chapter 10
Böhle (2019)        LRP for explaining deep neural network decisions in MRI-based Alzheimer's classification
Lapuschkin (2019)   Unmasking Clever Hans predictors and assessing what machines really learn
Andéol (2021)       Learning domain invariant representations by joint Wasserstein distance minimization
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rule = Callable[..., Tensor]
Box = float | Tensor


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """z + epsilon sign(z), with sign(0) = +1."""
    return torch.where(z >= 0, z + epsilon, z - epsilon)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: a neuron that receives nothing has nobody to give to."""
    return torch.where(b == 0, 0.0, a / b)


def share(C: Tensor, b: Tensor | None, R: Tensor, epsilon: float, bias: str, mask: Tensor | None) -> Tensor:
    """R_i = sum_j (C_ji + b_j m_ji / sum_i m_ji) / stabilize(sum_i C_ji + b_j) R_j, Bach (2015).

    Only bias="distribute" has the second summand; bias="ignore" has no b_j at all.
    """
    b = torch.zeros_like(R) if b is None or bias == "ignore" else b
    m = torch.ones_like(C) if mask is None else mask
    spread = m * divide(b, m.sum(1))[:, None] if bias == "distribute" else 0
    return (C + spread).T @ divide(R, stabilize(C.sum(1) + b, epsilon))


def gradient(W, b, x, R, *, mask=None) -> Tensor:
    """R_i = sum_j W_ji R_j."""
    return W.T @ R


def epsilon(W, b, x, R, epsilon=0.1, exponent=1, *, bias="absorb", mask=None) -> Tensor:
    """C_ji = (W_ji x_i)^p, Bach (2015) eq. 58; p > 1 and no bias: Böhle (2019)."""
    return share((W * x) ** exponent, b if exponent == 1 else None, R, epsilon, bias, mask)


def gamma(W, b, x, R, gamma=0.1, *, epsilon=1e-6, bias="absorb", mask=None) -> Tensor:
    """C_ji = x_i (W_ji + gamma W_ji^+), Montavon (2019); signed x: the generalised rule, Andéol (2021).

    The generalised rule raises the contributions x_i W_ji, and the bias, that have the sign of z_j. A bias
    that is ignored has no say in that sign, or raising could cancel the sum it is to strengthen.
    """
    C, b = W * x, torch.zeros_like(R) if b is None or bias == "ignore" else b
    positive = (C.sum(1) + b >= 0) | (x >= 0).all()
    C = C + gamma * torch.where(positive[:, None], C.clamp(min=0), C.clamp(max=0))
    b = b + gamma * torch.where(positive, b.clamp(min=0), b.clamp(max=0))
    return share(C, b, R, epsilon, bias, mask)


def alphabeta(W, b, x, R, alpha, beta, conserve=False, *, epsilon=1e-6, bias="ignore", mask=None) -> Tensor:
    """R_i = sum_j (alpha C_ji^+ / z_j^+ - beta C_ji^- / z_j^-) R_j with C_ji = W_ji x_i, Bach (2015) eq. 60.

    conserve: a neuron all of whose contributions have one sign gives everything to them, Böhle (2019).
    """
    C, b = W * x, torch.zeros_like(R) if b is None or bias == "ignore" else b
    positive, negative = (C.clamp(min=0), b.clamp(min=0)), (C.clamp(max=0), b.clamp(max=0))
    no_positive, no_negative = (conserve & (c.sum(1) + d == 0) for c, d in (positive, negative))
    raised, lowered = torch.where(no_negative, 1.0, alpha) * R, torch.where(no_positive, 1.0, -beta) * R
    return share(*positive, raised, epsilon, bias, mask) + share(*negative, lowered, epsilon, bias, mask)


def zplus(W, b, x, R, *, epsilon=1e-6, bias="absorb", mask=None) -> Tensor:
    """C_ji = (W_ji x_i)^+; the z^+-rule of Montavon (2017), where x >= 0."""
    return share((W * x).clamp(min=0), None if b is None else b.clamp(min=0), R, epsilon, bias, mask)


def zbox(W, b, x, R, low, high, *, epsilon=1e-6, bias="absorb", mask=None) -> Tensor:
    """C_ji = x_i W_ji - low_i W_ji^+ - high_i W_ji^-; the z^B-rule of Montavon (2017)."""
    return share(W * x - W.clamp(min=0) * low - W.clamp(max=0) * high, None, R, epsilon, bias, mask)


def wsquare(W, b, x, R, *, epsilon=1e-6, bias="absorb", mask=None) -> Tensor:
    """C_ji = W_ji^2; the w^2-rule of Montavon (2017)."""
    return share(W**2, None if b is None else b**2, R, epsilon, bias, mask)


def flat(W, b, x, R, *, epsilon=1e-6, bias="absorb", mask=None) -> Tensor:
    """C_ji = 1 for the inputs i that are connected to j, Lapuschkin (2019)."""
    return share(torch.ones_like(W) if mask is None else mask, None, R, epsilon, bias, mask)


def patternnet(W, b, x, R, A, mask=None) -> Tensor:
    """R_i = sum_j A_ji R_j, Kindermans (2017)."""
    return A.T @ R


def patternattribution(W, b, x, R, A, mask=None) -> Tensor:
    """R_i = sum_j A_ji W_ji R_j, Kindermans (2017)."""
    return (A * W).T @ R


def dense(function: Callable[[Tensor], Tensor], input_shape: tuple[int, ...]) -> Tensor:
    """The matrix [n_out, n_in] of a linear function of one sample: its values on the basis vectors."""
    basis = torch.eye(torch.Size(input_shape).numel(), dtype=torch.float64)
    return function(basis.reshape(-1, *input_shape)).flatten(1).T


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The layer as a linear function: this weight, and no bias."""
    twin = copy.deepcopy(layer)
    twin.weight, twin.bias = nn.Parameter(weight, requires_grad=False), None
    return twin


@dataclass(frozen=True)
class Padding:
    """What a convolution does to its input before it convolves, if that is more than appending zeros.

    Reflect, replicate and circular padding copy inputs. The copies are a layer of their own: the rule acts on
    the copies, and an input gets the sum of what its copies get. Padded zeros are no inputs and get nothing.
    """

    widths: list[int]  # as torch.nn.functional.pad wants them: last dimension first
    mode: str

    @classmethod
    def of(cls, layer: nn.Module) -> "Padding":
        if getattr(layer, "padding_mode", "zeros") == "zeros":
            return cls([], "constant")
        dimensions = reversed(range(len(layer.kernel_size)))
        return cls([width for k in dimensions for width in cls.ends(layer, k)], layer.padding_mode)

    @staticmethod
    def ends(layer: nn.Module, k: int) -> tuple[int, int]:
        """Left and right width; where padding="same" does not come out even, the right one is wider."""
        total = layer.dilation[k] * (layer.kernel_size[k] - 1)
        given = {"same": (total // 2, total - total // 2), "valid": (0, 0)}
        return given[layer.padding] if isinstance(layer.padding, str) else (layer.padding[k],) * 2

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.widths, self.mode) if self.widths else x

    def unpadded(self, layer: nn.Module) -> nn.Module:
        """What is left of the convolution when the padding has been done."""
        if not self.widths:
            return layer
        twin = copy.deepcopy(layer)
        twin.padding, twin.padding_mode = (0,) * len(layer.kernel_size), "zeros"
        return twin


@dataclass(frozen=True)
class DenseLayer:
    """A torch Linear, Conv or ConvTranspose on one sample, as matrices."""

    layer: nn.Module  # after padding
    shape: tuple[int, ...]  # of a padded sample
    copies: Tensor  # [n_padded, n_in], 0 and 1: the padding
    W: Tensor
    b: Tensor
    mask: Tensor

    @classmethod
    def of(cls, layer: nn.Module, shape: tuple[int, ...]) -> "DenseLayer":
        padding = Padding.of(layer)
        copies, padded = dense(padding, shape), padding(torch.zeros(1, *shape, dtype=torch.float64))
        layer, shape = padding.unpadded(layer), padded.shape[1:]
        weights = layer.weight, torch.ones_like(layer.weight)
        W, mask = (dense(with_weight(layer, w), shape) for w in weights)
        b = layer(torch.zeros_like(padded)).flatten().detach()
        return cls(layer, shape, copies, W, b, mask)

    def weights(self, weight: Tensor) -> Tensor:
        """Another tensor in the shape of the layer's weight (a pattern), as a matrix."""
        return dense(with_weight(self.layer, weight), self.shape)

    def __call__(self, rule: Rule, x: Tensor, R: Tensor, *boxes: Tensor, **options: Any) -> Tensor:
        """The relevance of one sample's input under a rule of this module."""
        x, *boxes = (self.copies @ t.flatten() for t in (x, *boxes))
        return self.copies.T @ rule(self.W, self.b, x, R.flatten(), *boxes, mask=self.mask, **options)


def sample_shape(layer: nn.Module, x: Tensor) -> torch.Size:
    """Of what the rules call a sample: a row for Linear, for convolutions all of one batch element."""
    return x.shape[-1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1 :]


def relevance(layer: nn.Module, rule: Rule, x: Tensor, R: Tensor, *boxes: Box, **options: Any) -> Tensor:
    """The relevance of a whole input, batched or not; `boxes` (ZBox's low and high) broadcast to it."""
    shape = sample_shape(layer, x)
    matrices = DenseLayer.of(layer, shape)
    if "pattern" in options:
        options["A"] = matrices.weights(options.pop("pattern"))
    xs, *boxes = (torch.as_tensor(t, dtype=x.dtype).expand(x.shape).reshape(-1, *shape) for t in (x, *boxes))
    samples = zip(xs, R.reshape(len(xs), -1), *boxes, strict=True)
    return torch.stack([matrices(rule, *sample, **options) for sample in samples]).reshape(x.shape)
