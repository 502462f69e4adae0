"""Settings of every test: what is drawn is the same in every run, and slow machines get their time."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# the tests' tensors are tiny: threads cost more than they bring, tenfold where other work runs on the machine
torch.set_num_threads(1)

settings.register_profile(
    "lrp",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lrp")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A network of unlucky weights, whose output is zero, would show nothing."""
    torch.manual_seed(0)
