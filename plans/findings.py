"""How integrity checks refuse: one function, so that every refusal names a field, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from .errors import PlanError

MAX_NUMBER = 1 << 53
"""No count, size or offset in a plan is larger, so that sums and products of a few stay exact everywhere."""


HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


def require(holds: bool, where: str, expected: object, got: object) -> None:
    """Raise `PlanError` naming `where` unless `holds`."""
    if not holds:
        raise PlanError(
            "The plan contradicts itself.",
            where=where,
            expected=str(expected),
            got=_shorten(str(got)),
            fix="copy or download the plan again, or compile it anew with tokenspeed-compile",
        )


def require_number(value: int, where: str, least: int = 0, most: int = MAX_NUMBER) -> None:
    limit = f"at least {least}" if most == MAX_NUMBER else f"{least} to {most}"
    require(least <= value <= most, where, limit, value)


def require_unique(names: Iterable[str], where: str) -> set[str]:
    """The names as a set; each must be non-empty and occur once."""
    seen: set[str] = set()
    for name in names:
        require(name != "", where, "a name", "an empty one")
        require(name not in seen, where, "each name once", repr(name))
        seen.add(name)
    return seen


def require_entry(name: str, sizes: Mapping[str, int], where: str) -> None:
    """`name` is one of the plan's entries, whose `sizes` are given."""
    require(name in sizes, where, "the name of an entry of this plan", repr(name))


def require_shape(shape: Sequence[object], where: str) -> None:
    """At most 8 dimensions, each a positive number, and a product that is no larger than `MAX_NUMBER`."""
    require(len(shape) <= 8, where, "at most 8 dimensions", len(shape))
    extents = [extent for extent in shape if isinstance(extent, int)]
    require(
        len(extents) == len(shape) and all(1 <= extent <= MAX_NUMBER for extent in extents),
        where,
        "positive dimensions",
        list(shape),
    )
    require(prod(extents) <= MAX_NUMBER, where, f"at most {MAX_NUMBER} elements", list(shape))


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
