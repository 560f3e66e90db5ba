"""Where the bytes of an entry come from when a plan is written: memory, a file, or a stream of known size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

CHUNK_BYTES = 4 << 20


@runtime_checkable
class EntrySource(Protocol):
    """Bytes of a size known beforehand, read once, in order, in chunks of any length."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> Iterable[bytes | memoryview]: ...


EntryData = bytes | bytearray | memoryview | Path | EntrySource


class MemorySource:
    """Bytes already in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")

    @property
    def size(self) -> int:
        return len(self._view)

    def chunks(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), CHUNK_BYTES):
            yield self._view[start : start + CHUNK_BYTES]


class FileSource:
    """A whole file, streamed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size

    @property
    def size(self) -> int:
        return self._size

    def chunks(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def as_source(data: EntryData) -> EntrySource:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return MemorySource(data)
    return FileSource(data) if isinstance(data, Path) else data
