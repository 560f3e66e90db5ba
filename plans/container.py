"""The container's bytes: a ZIP archive in one canonical form (docs/plan-format.md, "Container").

Given each entry's name, size and CRC, every other byte of the file follows; the writer writes these bytes and the reader
compares against them, so nothing in a plan goes unchecked. Record layouts: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MANIFEST_NAME = "manifest.json"
WEIGHTS_PREFIX = "weights/"
ALIGNMENT = 64

LIMIT_16, LIMIT_32 = 0xFFFF, 0xFFFFFFFF
ZIP64_FIELD, ALIGNMENT_FIELD = 0x0001, 0xD935
DATE_1980 = (1 << 5) | 1
REGULAR_FILE_0644 = 0o100644 << 16
MADE_BY_UNIX = 3 << 8

_NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class Layout:
    """A fixed record: its signature and the names of its fields in order, for packing and for naming what differs."""

    signature: bytes
    format: struct.Struct
    fields: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.format.size

    def pack(self, **values: int) -> bytes:
        return self.format.pack(self.signature, *(values[name] for name in self.fields))

    def unpack(self, data: bytes | memoryview) -> dict[str, int]:
        return dict(zip(self.fields, self.format.unpack(data)[1:], strict=True))


def _layout(signature: bytes, format: str, fields: str) -> Layout:
    return Layout(signature, struct.Struct("<4s" + format), tuple(fields.split()))


_COMMON = "version_needed flags method time date crc compressed_size size name_length extra_length"
LOCAL = _layout(b"PK\x03\x04", "5H3I2H", _COMMON)
CENTRAL = _layout(
    b"PK\x01\x02", "6H3I5H2I", f"version_made_by {_COMMON} comment_length disk internal_attributes external_attributes offset"
)
END = _layout(b"PK\x05\x06", "4H2IH", "disk directory_disk disk_count count directory_size directory_offset comment_length")
END64 = _layout(
    b"PK\x06\x06",
    "Q2H2I4Q",
    "record_size version_made_by version_needed disk directory_disk disk_count count directory_size directory_offset",
)
LOCATOR64 = _layout(b"PK\x06\x07", "IQI", "end64_disk end64_offset disks")


@dataclass(frozen=True, slots=True)
class Member:
    """One stored file: `offset` is where its local header starts, `size` the bytes of its data."""

    name: str
    size: int
    crc: int
    offset: int

    @property
    def data_offset(self) -> int:
        return self.offset + local_header_size(self.name, self.size, self.offset)

    @property
    def end(self) -> int:
        return self.data_offset + self.size


def is_safe_name(name: str) -> bool:
    """Whether a name may stand in a plan: a relative path of plain segments, none of them `.` or `..`."""
    segments = name.split("/")
    return len(name) <= 255 and _NAME.fullmatch(name) is not None and "." not in segments and ".." not in segments


def canonical_order(name: str) -> tuple[bool, str]:
    """Sort key of entries: the manifest first, then by name."""
    return (name != MANIFEST_NAME, name)


def _local_zip64(size: int) -> bytes:
    return struct.pack("<2H2Q", ZIP64_FIELD, 16, size, size) if size >= LIMIT_32 else b""


def local_header_size(name: str, size: int, offset: int) -> int:
    """Bytes from the start of the local header at `offset` to the entry's data, which is aligned to 64."""
    unpadded = LOCAL.size + len(name) + len(_local_zip64(size)) + 6
    return unpadded + -(offset + unpadded) % ALIGNMENT


def _version_needed(zip64: bool) -> int:
    return 45 if zip64 else 10


def local_header(member: Member) -> bytes:
    zip64 = _local_zip64(member.size)
    used = LOCAL.size + len(member.name) + len(zip64) + 4
    padding = local_header_size(member.name, member.size, member.offset) - used
    extra = zip64 + struct.pack("<3H", ALIGNMENT_FIELD, padding, ALIGNMENT) + bytes(padding - 2)
    shown = min(member.size, LIMIT_32)
    fixed = LOCAL.pack(
        version_needed=_version_needed(bool(zip64)),
        flags=0,
        method=0,
        time=0,
        date=DATE_1980,
        crc=member.crc,
        compressed_size=shown,
        size=shown,
        name_length=len(member.name),
        extra_length=len(extra),
    )
    return fixed + member.name.encode("ascii") + extra


def central_header(member: Member) -> bytes:
    large = [member.size, member.size] if member.size >= LIMIT_32 else []
    large += [member.offset] if member.offset >= LIMIT_32 else []
    extra = struct.pack(f"<2H{len(large)}Q", ZIP64_FIELD, 8 * len(large), *large) if large else b""
    shown, version = min(member.size, LIMIT_32), _version_needed(bool(large))
    fixed = CENTRAL.pack(
        version_made_by=MADE_BY_UNIX | version,
        version_needed=version,
        flags=0,
        method=0,
        time=0,
        date=DATE_1980,
        crc=member.crc,
        compressed_size=shown,
        size=shown,
        name_length=len(member.name),
        extra_length=len(extra),
        comment_length=0,
        disk=0,
        internal_attributes=0,
        external_attributes=REGULAR_FILE_0644,
        offset=min(member.offset, LIMIT_32),
    )
    return fixed + member.name.encode("ascii") + extra


def end_records(count: int, directory_offset: int, directory_size: int) -> bytes:
    """What follows the directory: the end record, after the ZIP64 end record and locator where numbers are too large."""
    zip64 = b""
    if count >= LIMIT_16 or directory_offset >= LIMIT_32 or directory_size >= LIMIT_32:
        zip64 = END64.pack(
            record_size=END64.size - 12,
            version_made_by=MADE_BY_UNIX | 45,
            version_needed=45,
            disk=0,
            directory_disk=0,
            disk_count=count,
            count=count,
            directory_size=directory_size,
            directory_offset=directory_offset,
        ) + LOCATOR64.pack(end64_disk=0, end64_offset=directory_offset + directory_size, disks=1)
    return zip64 + END.pack(
        disk=0,
        directory_disk=0,
        disk_count=min(count, LIMIT_16),
        count=min(count, LIMIT_16),
        directory_size=min(directory_size, LIMIT_32),
        directory_offset=min(directory_offset, LIMIT_32),
        comment_length=0,
    )


def place(sizes: Sequence[tuple[str, int]]) -> list[Member]:
    """Members at their offsets, CRC not yet known (0), for (name, size) pairs in canonical order."""
    members, offset = [], 0
    for name, size in sizes:
        members.append(Member(name, size, 0, offset))
        offset = members[-1].end
    return members
