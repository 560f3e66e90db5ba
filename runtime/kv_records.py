"""What the store of KV on disk says of each of its places: records of fixed size, each with a checksum of its own."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

from .scheduling.disk_tier import StoredUnit

VERSION = 1
_MAGIC = b"tskvunit"
_FIXED = struct.Struct("<8sIIQQII32s32s32s")
_SUM = struct.Struct("<I")
_SECTOR = 512

_HEADER_MAGIC = b"tskvfile"
_HEADER = struct.Struct("<8sIIQ")
HEADER_BYTES = 4096


class Record(NamedTuple):
    """`stamp` grows with each record written; `checksum` is that of the payload, `owner` who may read it (`StoreLayout`)."""

    unit: StoredUnit
    stamp: int
    checksum: int
    payload: int
    owner: bytes


class RecordFormat:
    """Of units of `unit_tokens` tokens. A record is a whole number of sectors, so that few are torn."""

    def __init__(self, unit_tokens: int) -> None:
        self._tokens = 4 * unit_tokens
        self.bytes = -(-(_FIXED.size + self._tokens + _SUM.size) // _SECTOR) * _SECTOR
        self.empty = bytes(self.bytes)

    def encode(self, record: Record) -> bytes:
        unit = record.unit
        digests = record.owner, unit.digest, unit.parent
        counts = VERSION, unit.place, record.stamp, record.payload, record.checksum, len(unit.tokens)
        body = _FIXED.pack(_MAGIC, *counts, *digests) + unit.tokens
        return (body + _SUM.pack(crc32(body))).ljust(self.bytes, b"\0")

    def decode(self, data: bytes, place: int) -> Record | None:
        """None for a place without a record, or with one that is torn, foreign, or of another place."""
        if len(data) < self.bytes or not data.startswith(_MAGIC):
            return None
        _, version, number, stamp, payload, checksum, tokens, owner, digest, parent = _FIXED.unpack_from(data)
        end = _FIXED.size + self._tokens
        if version != VERSION or number != place or tokens != self._tokens or _SUM.unpack_from(data, end)[0] != crc32(data[:end]):
            return None
        unit = StoredUnit(place, digest, parent, data[_FIXED.size : end])
        if sha256(parent + unit.tokens).digest() != digest:
            return None
        return Record(unit, stamp, checksum, payload, owner)

    def header(self, slot_bytes: int) -> bytes:
        """The first bytes of the file of records: what the files are made for."""
        return _HEADER.pack(_HEADER_MAGIC, VERSION, self.bytes, slot_bytes).ljust(HEADER_BYTES, b"\0")
