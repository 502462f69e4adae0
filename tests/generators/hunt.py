"""Hunt for wrong maps among thousands of drawn networks, and print each kind as a program that is as small as can be.

    python tests/generators/hunt.py --examples 5000 --seed 0

A kind that was found is switched off by its label, and the hunt goes on, until nothing is found. ``--off`` switches off
labels from the start, ``--only`` says which rules; ``--kinds`` says after how many kinds to stop.
"""

# ruff: noqa: E402 - run as a script, it finds the tests' modules by itself
from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from generators import KNOWN_TO_FAIL
from generators.checks import Verdict, judge
from generators.drawing import networks
from generators.program import Program
from generators.readings import CASES


class Hunt:
    """What was right and what was wrong, label by label.

    Args:
        cases: the rules to draw from.
        off: patterns of labels that are switched off.
    """

    def __init__(self, cases: Sequence[str], off: Sequence[str]) -> None:
        self.cases, self.off = list(cases), list(off)
        self.right: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()

    def round(self, examples: int, number: int) -> tuple[str, Program, Verdict] | None:
        """The smallest program that fails, its rule, and the verdict."""
        found: list[tuple[str, Program, Verdict]] = []

        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)  # fmt: skip
        @given(st.data())
        def run(data: st.DataObject) -> None:
            case, program = data.draw(networks(tuple(self.off), self.cases))
            verdict = judge(program, case)
            self.verdicts[verdict.kind] += 1
            (self.right if verdict else self.wrong).update(program.labels)
            if not verdict:
                found.append((case, program, verdict))
                raise AssertionError(verdict.kind)

        try:
            run()
        except AssertionError:
            if not found:
                raise
            return found[-1]
        return None

    def blame(self, program: Program) -> str:
        """The label that what fails has in common; for all spellings, where none of several was ever right."""
        blamed = max(program.labels, key=lambda label: (self._share(label), self.wrong[label]))
        kind, context = blamed.partition(":")[0], blamed.rpartition("@")[2] if "@" in blamed else None
        group = f"{kind}:*" + (f"@{context}" if context else "")
        alike = [label for label in self.wrong | self.right if fnmatchcase(label, group)]
        pattern = group if len(alike) > 2 and not any(self.right[label] for label in alike) else blamed
        return pattern.replace("[", "[[]")

    def _share(self, label: str) -> float:
        return self.wrong[label] / (self.wrong[label] + self.right[label])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, default=50)
    parser.add_argument("--off", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--without-known", action="store_true", help="switch off what generators.KNOWN_TO_FAIL lists")
    settings_ = parser.parse_args()
    torch.set_num_threads(1)
    known = KNOWN_TO_FAIL if settings_.without_known else ()
    hunt = Hunt(settings_.only, [*settings_.off, *known])
    for number in range(settings_.kinds):
        found = hunt.round(settings_.examples, settings_.seed + number)
        if found is None:
            break
        case, program, verdict = found
        hunt.off.append(hunt.blame(program))
        print(f"\n## {verdict.kind}, {verdict.error:.2g}, rule {case!r}: {hunt.off[-1]!r}  {verdict.detail}")
        print(program, flush=True)
    print(f"\n# {dict(hunt.verdicts)}\n# off = {hunt.off}")


if __name__ == "__main__":
    main()
