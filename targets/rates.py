"""Hardware figures as targets write them down: a value with its unit and where it is from."""

from __future__ import annotations

from ..plans.schema import Rate

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def measured(value: float, unit: str, source: str) -> Rate:
    """A figure that was seen: `source` says on what, with what, and when."""
    return Rate(value=value, unit=unit, source=source, basis="measured")


def nominal(value: float, unit: str, source: str) -> Rate:
    """A figure from a document, which `source` names, or one that is set: then `source` says so."""
    return Rate(value=value, unit=unit, source=source, basis="nominal")
