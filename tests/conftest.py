"""Settings of every test: the drawn examples are the same in every run, and slow machines get their time."""

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
