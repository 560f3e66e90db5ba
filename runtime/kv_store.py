"""KV units in files, for the next process to find: one folder, which one process at a time may use.

A place is a slot of fixed size in a segment file, and a record in the file of records. A record is written when its slot's
payload is durable, and holds the payload's checksum; before a slot is written over, its record is made empty. So whatever ends
the process or the machine, at any point, a record that is there and whole tells of a payload that is there, or of one whose
checksum is not its: then the unit is computed again. The checksum is zlib's CRC-32: of what Python brings along it is the
fastest by far (1.7 GB/s on a core where BLAKE2b does 0.2 and SHA-256 0.5), and it is to find accidents. Who may write to the
folder may write anything there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock, local
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import UsageError
from ..plans.units import format_bytes
from .kv_records import HEADER_BYTES, Record, RecordFormat
from .scheduling.disk_tier import StoredUnit

Parts = Sequence[NDArray[np.uint8]]
"""A unit's bytes in the host's memory, in order: arrays of which each row is contiguous."""

_SEGMENT_BYTES = 1 << 30
_PAGE = 4096
_PROBE_BYTES = 32 << 20
_SPARE_BYTES = 64 << 20
"""The file system keeps so much free, for its own books and others' files."""


class StoreLayout(NamedTuple):
    """`unit_bytes` of payload for `unit_tokens` tokens; `owner` is a digest of all that makes payloads interchangeable, their
    layout included. What has another owner is not found, and is written over."""

    unit_bytes: int
    unit_tokens: int
    owner: bytes


class KvStore:
    """The folder's files for this layout, at most `most_bytes` of them; `units` are what was found there, oldest first.

    Any thread may read and write, each place one at a time. Raises UsageError where the folder cannot be used.
    """

    def __init__(self, folder: Path, most_bytes: int, layout: StoreLayout) -> None:
        self._layout, self._format = layout, RecordFormat(layout.unit_tokens)
        self._slot = -(-layout.unit_bytes // _PAGE) * _PAGE
        self._per_segment = max(1, _SEGMENT_BYTES // self._slot)
        self.places = (most_bytes - HEADER_BYTES) // (self._slot + self._format.bytes)
        if self.places < 1:
            least = self._slot + self._format.bytes + HEADER_BYTES
            raise UsageError(
                "the tier on disk does not hold one unit of KV",
                where="--disk-kv-bytes",
                expected=f"at least {format_bytes(least)}",
                got=format_bytes(most_bytes),
                fix="give it more room",
            )
        self.folder = _own_folder(folder)
        self._lock = _locked(self.folder)
        self._records = self._segments = None
        try:
            self._make_room(most_bytes)
            self._records = self._open_records()
            self._segments = self._open_segments()
        except OSError as error:
            self.close()
            raise _unusable(self.folder, most_bytes, error) from None
        self._known: dict[int, Record] = {}
        self._written: set[int] = set()
        self._stamp, self._stamping = 0, Lock()
        self._buffers = local()
        self.units = self._find()

    def _open_records(self) -> int:
        """The file of records; one that was made for another layout is emptied, and so are the slots."""
        file = _open(self.folder / "records")
        header = self._format.header(self._slot)
        if os.pread(file, HEADER_BYTES, 0) != header:
            os.ftruncate(file, 0)
            for old in self.folder.glob("segment-*"):
                old.unlink()
            os.pwrite(file, header, 0)
        os.ftruncate(file, HEADER_BYTES + self.places * self._format.bytes)
        return file

    def _open_segments(self) -> list[int]:
        files: list[int] = []
        for number in range(-(-self.places // self._per_segment)):
            file = _open(self._segment_path(number))
            files.append(file)
            slots = min(self._per_segment, self.places - number * self._per_segment)
            if os.fstat(file).st_size > slots * self._slot:
                os.ftruncate(file, slots * self._slot)
            os.posix_fallocate(file, 0, slots * self._slot)
        number = len(files)
        while (further := self._segment_path(number)).exists():
            further.unlink()
            number += 1
        return files

    def _segment_path(self, number: int) -> Path:
        return self.folder / f"segment-{number:05}"

    def _make_room(self, most_bytes: int) -> None:
        """Raises OSError where so much does not fit the file system beside what others have there."""
        there = sum(file.stat().st_blocks * 512 for file in self.folder.iterdir())
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize + there < most_bytes + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, f"{format_bytes(free.f_bavail * free.f_frsize + there)} are free")

    def _find(self) -> tuple[StoredUnit, ...]:
        assert self._records is not None
        size, found = self._format.bytes, list[Record]()
        data = os.pread(self._records, self.places * size, HEADER_BYTES)
        while len(data) < self.places * size and (more := os.pread(self._records, 1 << 30, HEADER_BYTES + len(data))):
            data += more
        for place in range(self.places):
            raw = data[place * size : (place + 1) * size]
            if raw.count(0) == size:
                continue
            self._written.add(place)
            record = self._format.decode(raw, place)
            if record is not None and record.owner == self._layout.owner and record.payload == self._layout.unit_bytes:
                found.append(record)
        found.sort(key=lambda record: record.stamp)
        newest = {record.unit.digest: record for record in found}
        kept = [record for record in found if newest[record.unit.digest] is record]
        self._known = {record.unit.place: record for record in kept}
        self._stamp = found[-1].stamp + 1 if found else 0
        return tuple(record.unit for record in kept)

    def write(self, unit: StoredUnit, parts: Parts) -> bool:
        """Have these bytes at the unit's place; False where that was not possible."""
        try:
            self._write(unit, parts)
        except OSError:
            return False
        return True

    def _write(self, unit: StoredUnit, parts: Parts) -> None:
        assert self._records is not None and self._segments is not None
        self._known.pop(unit.place, None)
        if unit.place in self._written:
            self._put_record(unit.place, self._format.empty)
            os.fdatasync(self._records)
        whole, buffer = self._buffer()
        at = 0
        for part in parts:
            buffer[at : at + part.size].reshape(part.shape)[...] = part
            at += part.size
        if at != self._layout.unit_bytes:
            raise ValueError(f"a unit of {at} bytes, in a store of units of {self._layout.unit_bytes}")
        payload = memoryview(whole)[:at]
        file, offset = self._slot_of(unit.place)
        _every(lambda done: os.pwrite(file, payload[done:], offset + done), at)
        os.fdatasync(file)
        os.posix_fadvise(file, offset, self._slot, os.POSIX_FADV_DONTNEED)
        with self._stamping:
            stamp, self._stamp = self._stamp, self._stamp + 1
        record = Record(unit, stamp, crc32(payload), at, self._layout.owner)
        self._written.add(unit.place)
        self._put_record(unit.place, self._format.encode(record))
        self._known[unit.place] = record

    def read(self, unit: StoredUnit, parts: Parts) -> bool:
        """Fill these with what was written for the unit; False, and nothing is filled, where that is not there any more: then its
        place is empty."""
        assert self._segments is not None
        (whole, buffer), record = self._buffer(), self._known.get(unit.place)
        payload = memoryview(whole)[: self._layout.unit_bytes]
        file, offset = self._slot_of(unit.place)
        try:
            _every(lambda done: os.preadv(file, [payload[done:]], offset + done), len(payload))
            os.posix_fadvise(file, offset, self._slot, os.POSIX_FADV_DONTNEED)
            sound = record is not None and record.unit == unit and crc32(payload) == record.checksum
        except OSError:
            sound = False
        if not sound:
            self._known.pop(unit.place, None)
            with suppress(OSError):
                self._put_record(unit.place, self._format.empty)
            return False
        at = 0
        for part in parts:
            part[...] = buffer[at : at + part.size].reshape(part.shape)
            at += part.size
        return True

    def sync(self) -> None:
        """Make all records durable; without it the last ones may be missed after the machine, not the process, has failed."""
        if self._records is not None:
            with suppress(OSError):
                os.fdatasync(self._records)

    def bytes_per_second(self, readers: int) -> float:
        """How fast so many threads together read units from this file system, and check them: tried with a file of its own."""
        path = self.folder / "probe"
        file = _open(path)
        try:
            path.unlink()
            data = memoryview(bytearray(_PROBE_BYTES))
            _every(lambda done: os.pwrite(file, data[done:], done), len(data))
            os.fdatasync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            each = len(data) // readers

            def read(number: int) -> int:
                part, start = data[number * each : (number + 1) * each], number * each
                _every(lambda done: os.preadv(file, [part[done:]], start + done), each)
                return crc32(part)

            with ThreadPoolExecutor(readers) as threads:
                list(threads.map(time.sleep, [0.0] * readers))  # they are there
                begun = time.perf_counter()
                list(threads.map(read, range(readers)))
                return readers * each / max(time.perf_counter() - begun, 1e-9)
        finally:
            os.close(file)

    def close(self) -> None:
        """Let another process have the folder."""
        self.sync()
        files = (*(self._segments or ()), *([] if self._records is None else [self._records]), self._lock)
        for file in files:
            os.close(file)
        self._segments, self._records = None, None

    def _put_record(self, place: int, data: bytes) -> None:
        file, start = self._records, HEADER_BYTES + place * self._format.bytes
        assert file is not None
        _every(lambda done: os.pwrite(file, data[done:], start + done), len(data))

    def _slot_of(self, place: int) -> tuple[int, int]:
        assert self._segments is not None
        number, at = divmod(place, self._per_segment)
        return self._segments[number], at * self._slot

    def _buffer(self) -> tuple[bytearray, NDArray[np.uint8]]:
        """This thread's own, twice the same memory."""
        found = getattr(self._buffers, "pair", None)
        if found is None:
            whole = bytearray(self._slot)
            found = self._buffers.pair = whole, np.frombuffer(whole, np.uint8)
        return found


def _every(step: Callable[[int], int], count: int) -> None:
    """Read or write on until all is done. Raises OSError where nothing comes any more."""
    done = 0
    while done < count:
        more = step(done)
        if more <= 0:
            raise OSError(errno.EIO, "the file ends")
        done += more


def _own_folder(folder: Path) -> Path:
    """A folder in the one given that is this user's alone."""
    own = folder / "tokenspeed-kv"
    try:
        if not folder.is_dir():
            raise OSError(errno.ENOENT, "no such folder")
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        raise UsageError(
            "the folder for KV on disk cannot be used",
            where=f"--disk-kv {folder}",
            expected="a folder that exists and may be written",
            got=error.strerror or str(error),
            fix=f"mkdir -p {folder}",
        ) from None
    if own.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(
            "the folder for KV on disk may be written by others, whose KV would be served",
            where=str(own),
            expected=f"a folder of user {os.geteuid()} with mode 0700",
            got=f"user {found.st_uid}, mode {found.st_mode & 0o7777:04o}" + (", a link" if own.is_symlink() else ""),
            fix=f"rm -r {own}, or name another folder",
        )
    return own


def _locked(folder: Path) -> int:
    """The lock file of a folder, held until it is closed, however the process ends."""
    file = _open(folder / "lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise UsageError(
            "another engine uses this folder for its KV",
            where=str(folder),
            expected="a folder of its own for each engine",
            got="it is locked",
            fix="end the other engine, or name another folder",
        ) from None
    return file


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _unusable(folder: Path, most_bytes: int, error: OSError) -> UsageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UsageError(
        "there is no room for KV on disk" if full else "the files of KV on disk cannot be opened",
        where=str(folder),
        expected=f"{format_bytes(most_bytes)}, and {format_bytes(_SPARE_BYTES)} besides" if full else "files of this user",
        got=error.strerror or str(error),
        fix="free room, or give a smaller --disk-kv-bytes" if full else f"rm -r {folder}, or name another folder",
    )
