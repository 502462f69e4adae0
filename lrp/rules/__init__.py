"""How relevance is shared out: the rules."""

from .dividing import *  # noqa: F403
from .dividing import KEYS as KEYS
from .rule import Rule as Rule
