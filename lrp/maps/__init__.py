"""Layers as data: linear maps."""
