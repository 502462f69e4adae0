"""Small networks in float64 that the tests explain."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

import lrp


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch-norm statistics, float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn * 0.4)
    return model


class Residual(nn.Module):
    """A user's own block: a sum with what came in, and a shortcut that is a layer."""

    def __init__(self, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels, channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=inplace)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        if self.inplace:
            out += self.shortcut(x)
        else:
            out = out + self.shortcut(x)
        return torch.cat([self.relu(out), x], dim=1)


def convolutional(inplace: bool = False) -> lrp.Sequential:
    """Convolutions, a batch norm that merges and one that does not, a residual block, pools, a nested sequence."""
    return randomize(
        lrp.Sequential(
            OrderedDict(
                first=lrp.Conv2d(2, 4, 3, padding=1),
                norm=lrp.BatchNorm2d(4),
                relu=nn.ReLU(inplace),
                pool=lrp.MaxPool2d(2),
                block=Residual(4, inplace),
                alone=nn.BatchNorm2d(8),
                more=nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, groups=2), nn.ReLU(inplace), nn.Dropout(0.5)),
                average=lrp.AdaptiveAvgPool2d(2),
                flatten=nn.Flatten(),
                last=lrp.Linear(16, 3),
            )
        )
    )


def plain(channels: int = 1) -> lrp.Sequential:
    """The smallest of convolutional networks: no batch norm, no sums."""
    return randomize(
        lrp.Sequential(
            lrp.Conv2d(channels, 3, 3),
            nn.ReLU(),
            lrp.Conv2d(3, 4, 2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            lrp.Linear(16, 2),
        )
    )


def images(n: int = 2, channels: int = 2, size: int = 10, seed: int = 1) -> Tensor:
    """Random images that require grad."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64).requires_grad_()


def relevance(model: nn.Module, x: Tensor, rule: object = "epsilon", **settings: object) -> Tensor:
    """The relevance of x for its first output, which starts from the output's value."""
    y = model(x, explain=True, rule=rule, **settings)
    return torch.autograd.grad(y, x, first_output(y))[0]


def first_output(y: Tensor) -> Tensor:
    """The relevance at the output: the value of the first class, and zero for the others."""
    return torch.zeros_like(y).index_copy_(1, torch.tensor([0]), y.detach()[:, :1])


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    return x.detach() * torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


class UNet(nn.Module):
    """Down twice and up twice, with skips, transposed convolutions and group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._block(3, 8), self._block(8, 16), self._block(16, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, stride=2), nn.ConvTranspose2d(8, 8, 4, 2, padding=1)])
        self.join = nn.ModuleList([self._block(32, 8), self._block(16, 8)])
        self.head = nn.Conv2d(8, 4, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.GroupNorm(2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](nn.functional.max_pool2d(first, 2))
        bottom = self.down[2](nn.functional.avg_pool2d(second, 2))
        up = self.join[0](torch.cat([self.up[0](bottom), second], 1))
        up = self.join[1](torch.cat([self.up[1](up), first], 1))
        return self.head(up)
