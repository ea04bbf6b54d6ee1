"""The textbook's claims about normalization, each made into an experiment with a verdict."""

from typing import TYPE_CHECKING, Any

from normwise.claims.registry import CLAIMS, EXPERIMENTS, find

if TYPE_CHECKING:
    from normwise.claims.session import ClaimResult as ClaimResult
    from normwise.claims.session import run as run

__all__ = ["CLAIMS", "EXPERIMENTS", "ClaimResult", "find", "run"]


def __getattr__(name: str) -> Any:
    if name not in ("run", "ClaimResult"):
        raise AttributeError(f"module 'normwise.claims' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("normwise.claims.session"), name)
