"""Pictures of what the library measures. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


def audit(table: Mapping[str, Any]) -> Figure:
    """Where relevance went, call by call.

    Args:
        table: what :meth:`lrp.explanation.Audit.to_dict` gives.

    Returns:
        A matplotlib figure with a bar for each call, the last of the forward above: what came to its inputs, and what
        the bias and the stabiliser absorbed, what was created and what was lost there.
    """
    from matplotlib.figure import Figure

    rows = table["rows"][::-1]
    columns = {
        "reaches the inputs": ("relevance_in", "0.75"), "absorbed by the bias": ("absorbed_by_bias", "tab:blue"),
        "by the stabiliser": ("absorbed_by_stabiliser", "tab:cyan"), "created": ("created", "tab:green"),
        "lost": ("lost", "tab:red"),
    }  # fmt: skip
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for label, (column, color) in columns.items():
        sizes = [row[column] for row in rows]
        axis.barh(range(len(rows)), sizes, left=_lefts(rows, column), color=color, label=label)
    axis.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in rows], xlabel="relevance")
    axis.invert_yaxis()
    axis.axvline(0, color="0.3", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


_STACK = ("relevance_in", "absorbed_by_bias", "absorbed_by_stabiliser", "lost", "created")


def _lefts(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """Where the bars of a column begin: beside those of its sign that come before."""
    before = _STACK[: _STACK.index(column)]
    return [sum(row[name] for name in before if (row[name] > 0) == (row[column] > 0)) for row in rows]


def curve(lines: Mapping[str, Sequence[float]], ticks: Sequence[Any], ylabel: str) -> Figure:
    """Curves over the same steps, by their names.

    Args:
        lines: the curves.
        ticks: what stands under each step.
        ylabel: what stands beside them.

    >>> curve({"most": [1.0, 0.2], "least": [1.0, 0.9]}, [0, 1], "output").axes[0].get_ylabel()
    'output'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.3 * len(ticks) + 2), 3), layout="constrained")
    axis = figure.subplots()
    for name, values in lines.items():
        axis.plot(range(len(values)), values, marker=".", label=name or None)
    axis.set(ylabel=ylabel, xticks=range(len(ticks)), xticklabels=ticks)
    axis.tick_params(axis="x", rotation=90 if any(len(str(tick)) > 4 for tick in ticks) else 0)
    axis.axhline(0, color="0.7", linewidth=0.8)
    if any(lines):
        figure.legend(loc="outside right upper")
    return figure


def maps(several: Sequence[Sequence[Any]], titles: Sequence[str] = ()) -> Figure:
    """Maps side by side, each with a scale of its own, whose ends are under it: red speaks for, blue against.

    Args:
        several: rows of maps, arrays ``(H, W)`` or ``(F,)``; the latter become bars.
        titles: what stands above each column.

    >>> import numpy as np
    >>> len(maps([[np.eye(3), np.ones(4)]], ["a map", "features"]).axes)
    2
    """
    from matplotlib.figure import Figure

    rows, columns = len(several), max(map(len, several))
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, row_of_axes in zip(several, axes, strict=True):
        for values, axis in zip(row, row_of_axes, strict=True):
            _draw(axis, values)
    for title, axis in zip(titles, axes[0], strict=False):
        axis.set_title(title)
    return figure


def _draw(axis: Any, values: Any) -> None:
    """One map, or bars of features."""
    end = float(abs(values).max()) or 1.0
    if values.ndim == 1:
        axis.bar(range(len(values)), values, color=["tab:red" if value > 0 else "tab:blue" for value in values])
        return
    axis.imshow(values, cmap="seismic", vmin=-end, vmax=end)
    axis.set(xticks=[], yticks=[], xlabel=f"\u00b1{end:.2g}")
