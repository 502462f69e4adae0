"""Random networks in all spellings: their maps are those of the formulas, and nobody else gets relevance.

``python tests/generators/hunt.py`` looks at thousands.
"""

import pytest
import torch
from generators import KNOWN_TO_FAIL
from generators.checks import distance, judge
from generators.drawing import programs
from generators.readings import CASES, GradientTimesInput, Relevance
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

QUIET = {"suppress_health_check": list(HealthCheck), "deadline": None}
NOT_A_GRADIENT = ("activation", "hidden_write")  # these pass relevance at a zero, where no gradient can


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, **QUIET)
@given(data=st.data())
def test_the_map_of_a_random_network(case: str, data: st.DataObject) -> None:
    program = data.draw(programs(case, KNOWN_TO_FAIL))
    verdict = judge(program, case)
    assert verdict, f"{verdict}\n{program}"


@settings(max_examples=150, **QUIET)
@given(data=st.data())
def test_the_formulas_give_gradient_times_input_for_epsilon_to_zero(data: st.DataObject) -> None:
    """The oracle against an oracle: neither knows the library."""
    program = data.draw(programs("epsilon 0", NOT_A_GRADIENT))
    model, inputs = program.build(), program.inputs()
    maps = []
    for reading, factor in ((Relevance(program, model, inputs, CASES["epsilon 0"]), False), (GradientTimesInput(program, model, inputs), True)):  # fmt: skip
        y = reading.output
        assume(y.requires_grad)
        start = torch.ones_like(y) if factor else y.detach()
        found = torch.autograd.grad(y, inputs, start, allow_unused=True)
        found = [torch.zeros_like(x) if t is None else t for x, t in zip(inputs, found, strict=True)]
        maps.append([x.detach() * t for x, t in zip(inputs, found, strict=True)] if factor else found)
    assume(max(t.abs().max() for t in maps[0]) > 1e-6)
    assert distance(*maps) < 1e-6, str(program)
