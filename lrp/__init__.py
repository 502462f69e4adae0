"""lrp: explain PyTorch networks by layer-wise relevance propagation."""

from . import composites, concepts, evaluate, functional, patterns, plot, rules, trace, weights
from .compiling import compile  # noqa: A004 - as torch.compile
from .composites import Composite
from .conversion import convert, convert_vgg
from .engine import RelevanceWarning
from .explanation import Difference, Explanation, Region, Top, explain
from .layers import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from .rules import Rule
from .sequential import Sequential
from .verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Composite",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Difference",
    "Explanation",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Region",
    "RelevanceWarning",
    "Rule",
    "Sequential",
    "Top",
    "Verification",
    "compile",
    "composites",
    "concepts",
    "convert",
    "convert_vgg",
    "evaluate",
    "explain",
    "functional",
    "patterns",
    "plot",
    "rules",
    "trace",
    "verify",
    "weights",
]
