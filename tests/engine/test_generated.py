"""Random networks in all spellings: their maps are those of the formulas, and nobody else gets relevance.

``python tests/generators/hunt.py`` looks at thousands.
"""

import torch
from generators import EXAMPLES, KNOWN_TO_FAIL, SEED
from generators.checks import distance, judge, largest
from generators.drawing import networks, programs
from generators.program import Program
from generators.readings import CASES, GradientTimesInput, Relevance
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

QUIET = {"suppress_health_check": list(HealthCheck), "deadline": None}
NOT_A_GRADIENT = ("activation", "hidden_write", "unseen")  # these pass relevance at a zero, where no gradient can


@seed(SEED)
@settings(max_examples=EXAMPLES, **QUIET)
@given(drawn=networks(KNOWN_TO_FAIL))
def test_the_map_of_a_random_network(drawn: tuple[str, Program]) -> None:
    case, program = drawn
    verdict = judge(program, case)
    assert verdict, f"{verdict}\n{program}"


@settings(max_examples=80, **QUIET)
@given(data=st.data())
def test_the_formulas_give_gradient_times_input_for_epsilon_to_zero(data: st.DataObject) -> None:
    """The oracle against an oracle: neither knows the library."""
    program = data.draw(programs("epsilon 0", NOT_A_GRADIENT))
    model, inputs = program.build(), program.inputs()
    expected = Relevance(program, model, inputs, CASES["epsilon 0"]).relevance(inputs)
    gradient = GradientTimesInput(program, model, inputs)
    y = gradient.output
    assume(gradient.is_gradient and expected is not None and largest(expected) > 1e-6)
    found = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)
    actual = [torch.zeros_like(x) if g is None else x.detach() * g for x, g in zip(inputs, found, strict=True)]
    assert distance(actual, expected) < 1e-6, str(program)
