"""Files of one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from .errors import TraceError, bad_place

T = TypeVar("T")


def read_text(path: Path) -> str:
    """Raises TraceError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
        raise TraceError("The trace cannot be read.", where=str(path), expected="a text file", got=str(reason)) from None


def objects(path: Path, kind: type[T], expected: str) -> Iterator[tuple[str, T]]:
    """Place ("FILE:LINE") and content of each line that is not empty; `expected` is what the error says was wanted."""
    decode = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", decode(line)
        except msgspec.DecodeError as error:
            raise bad_place(f"{path}:{number}", expected, f"{error}: {line}") from None
