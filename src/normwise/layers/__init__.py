"""The layers; NORMS lists them."""

from normwise.layers.catalogue import NORMS
from normwise.layers.entry import NormEntry

__all__ = ["NORMS", "NormEntry"]
