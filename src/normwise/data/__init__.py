"""Data sets: built in, the user's own, and their batches."""

from normwise.data.batches import Batches
from normwise.data.check import Facts, check_data, examine
from normwise.data.sets import Arrays, Data, Indexed, Samples, as_data, as_samples, targets_of
from normwise.data.sources import BUILT_IN, Source, find, load

__all__ = [
    "BUILT_IN",
    "Arrays",
    "Batches",
    "Data",
    "Facts",
    "Indexed",
    "Samples",
    "Source",
    "as_data",
    "as_samples",
    "check_data",
    "examine",
    "find",
    "load",
    "targets_of",
]
