"""NORMS: the one list that command line, docs, conformance suite and benchmark follow."""

from normwise.layers.entries import across, batch, hybrid, position, styled, within
from normwise.layers.entry import NormEntry

_FAMILIES = (batch, across, within, hybrid, position, styled)

NORMS: dict[str, NormEntry] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}
