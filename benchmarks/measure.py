"""What the benchmarks share: candidates that take turns, the peak memory of a process, a table of ratios."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping


def medians(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate, in rounds in which all take turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def peak(name: str) -> float:
    """Peak memory in MiB of this script in a process of its own, for one candidate; with no name, that does nothing.

    To be measured first: on Linux a process starts with the peak of the one that started it.
    """
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(unit: str, values: Mapping[str, float], base: str) -> None:
    """A table of values and of their ratios to the base."""
    print(f"\n{'':34}{unit:>10}{'ratio':>8}")
    for name, value in values.items():
        print(f"{name:42}{value:10.2f}{value / values[base]:8.2f}")
