"""The modified weights, such as ``w+``, that rules keep as long as a weight stays as it is."""

from .maps.weights import forget

__all__ = ["forget"]
