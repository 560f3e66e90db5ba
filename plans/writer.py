"""Writes a plan: one pass over the entries, deterministic bytes, atomically put in place."""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from .container import MANIFEST_NAME, Member, canonical_order, central_header, end_records, is_safe_name, local_header, place
from .entry_source import EntryData, EntrySource, MemorySource, as_source
from .errors import PlanError
from .integrity import check_manifest
from .schema import Entry, Manifest

_NO_DIGEST = "0" * 64


def encode_manifest(manifest: Manifest) -> bytes:
    """manifest.json: compact JSON, map keys sorted, fields in schema order."""
    return msgspec.json.encode(manifest, order="deterministic")


def write_plan(path: str | os.PathLike[str], manifest: Manifest, entries: Mapping[str, EntryData]) -> str:
    """Write `entries` and `manifest` (its own `entries` are computed here) to `path`; returns the plan id.

    The file appears under its name only when complete. Values of `entries` are bytes-like, a `Path` whose file is
    streamed, or an `EntrySource`; each is read once, so weights of any size need no memory. Raises `PlanError` for a name a
    plan may not hold, a source whose length is not its `size`, or a manifest that does not describe these entries.
    """
    sources = {name: as_source(entries[name]) for name in sorted(entries)}
    _check_names(sources)
    # Digests have a fixed length, so the manifest's own size, and with it every offset, is known before they are.
    table = tuple(Entry(name=name, size=source.size, sha256=_NO_DIGEST) for name, source in sources.items())
    check_manifest(msgspec.structs.replace(manifest, entries=table))
    target = Path(path)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            plan_id = _write(file, manifest, table, sources)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return plan_id


def _check_names(names: Mapping[str, EntrySource]) -> None:
    for name in names:
        if not is_safe_name(name) or name == MANIFEST_NAME:
            raise PlanError(
                "This name cannot be given to an entry of a plan.",
                where=repr(name),
                expected="a relative path of A-Z a-z 0-9 . _ - segments, other than manifest.json",
                fix="choose another entry name",
            )


def _write(file: BinaryIO, manifest: Manifest, table: Sequence[Entry], sources: Mapping[str, EntrySource]) -> str:
    size = len(encode_manifest(msgspec.structs.replace(manifest, entries=tuple(table))))
    head, *members = place([(MANIFEST_NAME, size), *((entry.name, entry.size) for entry in table)])
    digests, written = [], []
    for member in members:
        digest, crc = _copy(file, member, sources[member.name])
        digests.append(digest)
        written.append(replace(member, crc=crc))
    final = tuple(msgspec.structs.replace(entry, sha256=digest) for entry, digest in zip(table, digests, strict=True))
    data = encode_manifest(msgspec.structs.replace(manifest, entries=final))
    digest, crc = _copy(file, head, MemorySource(data))
    _write_headers(file, [replace(head, crc=crc), *written])
    return digest


def _copy(file: BinaryIO, member: Member, source: EntrySource) -> tuple[str, int]:
    """Copy a source to its place; returns its SHA-256 in hex and its CRC-32."""
    digest, crc, length = hashlib.sha256(), 0, 0
    file.seek(member.data_offset)
    for chunk in source.chunks():
        length += len(chunk)
        if length > member.size:
            break
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        file.write(chunk)
    if length != member.size:
        raise PlanError(
            "An entry's source gave another number of bytes than it declared.",
            where=member.name,
            expected=f"{member.size} bytes",
            got=f"{length} bytes" if length < member.size else "more",
            fix="make sure that nothing writes to the input while the plan is written",
        )
    return digest.hexdigest(), crc


def _write_headers(file: BinaryIO, members: Sequence[Member]) -> None:
    assert [member.name for member in members] == sorted((member.name for member in members), key=canonical_order)
    for member in members:
        file.seek(member.offset)
        file.write(local_header(member))
    directory = b"".join(map(central_header, members))
    file.seek(members[-1].end)
    file.write(directory)
    file.write(end_records(len(members), members[-1].end, len(directory)))
