"""Pictures of what the library measures. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pattern_quality(qualities: Mapping[str, Mapping[str, float]]) -> Figure:
    """The quality of several kinds of patterns, layer by layer.

    Args:
        qualities: what :func:`lrp.patterns.quality` has returned, by the name of the kind of patterns.

    Returns:
        A matplotlib figure, one line a kind.

    Source: as figure 3 of Kindermans et al. 2017 (arXiv 1705.05598).

    >>> pattern_quality({"linear": {"conv": 0.8, "fc": 0.6}, "weights": {"conv": 0.3, "fc": 0.2}}).axes[0].get_ylabel()
    'quality rho'
    """
    from matplotlib.figure import Figure  # here, for `import lrp` needs torch alone

    layers = list(dict.fromkeys(name for quality in qualities.values() for name in quality))
    figure = Figure(figsize=(max(4.0, 0.7 * len(layers) + 2), 3), layout="constrained")
    axis = figure.subplots()
    for kind, quality in qualities.items():
        axis.plot([layers.index(name) for name in quality], list(quality.values()), marker="o", label=kind)
    axis.set(xlabel="layer", ylabel="quality rho", ylim=(0, 1.05), xticks=range(len(layers)), xticklabels=layers)
    axis.tick_params(axis="x", rotation=90 if any(len(name) > 4 for name in layers) else 0)
    figure.legend(loc="outside right upper")
    return figure
