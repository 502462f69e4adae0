"""Random networks in all spellings: their maps are those of the formulas, and nobody else gets relevance.

``python tests/generators/hunt.py`` looks at thousands, and ``python tests/generators/undo.py`` at what would be seen if
the library made mistakes.
"""

import pytest
import torch
from generators import KNOWN_TO_FAIL
from generators.checks import distance, judge, largest
from generators.drawing import KINDS, networks, random_network
from generators.program import Program
from generators.readings import CASES, GradientTimesInput, Relevance
from generators.undo import UNDONE, expectations, is_right, undone
from hypothesis import HealthCheck, assume, given, settings

QUIET = {"suppress_health_check": list(HealthCheck), "deadline": None}
NOT_A_GRADIENT = ("activation", "hidden_write", "unseen")  # these pass relevance at a zero, where no gradient can


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_a_random_network(kind: str) -> None:
    for number in range(KINDS[kind].examples):
        case, program = random_network(kind, number, KNOWN_TO_FAIL)
        verdict = judge(program, case)
        assert verdict, f"{kind} {number}, {case}: {verdict}\n{program}"


@settings(max_examples=60, **QUIET)
@given(networks(KNOWN_TO_FAIL))
def test_the_map_of_a_small_network(drawn: tuple[str, Program]) -> None:
    case, program = drawn
    verdict = judge(program, case)
    assert verdict, f"{case}: {verdict}\n{program}"


@settings(max_examples=80, **QUIET)
@given(networks(NOT_A_GRADIENT, ("epsilon 0",)))
def test_the_formulas_give_gradient_times_input_for_epsilon_to_zero(drawn: tuple[str, Program]) -> None:
    """The oracle against an oracle: neither knows the library."""
    _, program = drawn
    model, inputs = program.build(), program.inputs()
    expected = Relevance(program, model, inputs, CASES["epsilon 0"]).relevance(inputs)
    gradient = GradientTimesInput(program, model, inputs)
    y = gradient.output
    assume(gradient.is_gradient and expected is not None and largest(expected) > 1e-6)
    found = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)
    actual = [torch.zeros_like(x) if g is None else x.detach() * g for x, g in zip(inputs, found, strict=True)]
    assert distance(actual, expected) < 1e-6, str(program)


@pytest.mark.parametrize("kind", dict.fromkeys(name.partition(":")[0] for name in UNDONE))
def test_what_is_undone_is_seen(kind: str) -> None:
    drawn = [*expectations(kind)]
    unseen = set()
    for name in UNDONE:
        if name.startswith(f"{kind}:"):
            with undone(name):
                unseen |= {name} if all(map(is_right, drawn)) else set()
    assert not unseen
