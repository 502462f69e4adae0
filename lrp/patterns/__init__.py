"""Patterns for PatternNet and PatternAttribution."""

from .statistics import *  # noqa: F403
