"""Numbers and texts as people read them."""

from __future__ import annotations

import re

from .errors import UsageError

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def printable(text: str) -> str:
    """The text with control characters made visible: a plan's strings must not steer the terminal they are shown on."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def format_bytes(count: float) -> str:
    """1536 -> "1.50 KiB"; fewer than 1024 stay exact."""
    if count < 1024:
        return f"{count:.0f} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.2f} {unit}"
    return f"{value / 1024:.2f} TiB"


def format_seconds(seconds: float) -> str:
    """0.00213 -> "2.13 ms"."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds * 1e9:.3g} ns"


def format_count(count: float) -> str:
    """8030261248 -> "8.03 G"."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:g}"


def parse_bytes(text: str, where: str) -> int:
    """ "8GiB", "8G", "500MB", "1073741824" -> bytes.

    Raises UsageError, which names `where` it stood, for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in _BYTES:
        expected = "a number with a unit, e.g. 8GiB"
        raise UsageError("this is not an amount of memory", where=where, expected=expected, got=text)
    return int(float(found[1]) * _BYTES[found[2]])
