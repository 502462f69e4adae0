"""Which rule for which layer: composites."""

from .composite import Composite as Composite
from .named import *  # noqa: F403
from .named import KEYS as KEYS
