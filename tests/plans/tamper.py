"""Ways to damage a plan file, for tests of the reader."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenspeed.plans.container import CENTRAL, LOCAL, Layout, Member, central_header, end_records, local_header, place
from tokenspeed.plans.directory import read_directory

Tamper = Callable[[bytes], bytes]


def members_of(data: bytes) -> list[Member]:
    return read_directory(lambda offset, size: data[offset : offset + size], len(data))


def contents(data: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each entry, the manifest first."""
    return [(member.name, data[member.data_offset : member.end]) for member in members_of(data)]


def container(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """A container of these entries in this order, canonical but for what the names and order make it."""
    members = place([(name, len(data)) for name, data in entries])
    members = [replace(member, crc=zlib.crc32(data)) for member, (_, data) in zip(members, entries, strict=True)]
    body = b"".join(local_header(member) + data for member, (_, data) in zip(members, entries, strict=True))
    directory = b"".join(map(central_header, members))
    return body + directory + end_records(len(members), len(body), len(directory))


def with_entry(name: str, data: bytes = b"extra", at: int | None = None) -> Tamper:
    """Add an entry, in the place its name sorts to unless `at` says otherwise."""

    def tamper(plan: bytes) -> bytes:
        entries = contents(plan)
        position = at if at is not None else 1 + sum(other < name for other, _ in entries[1:])
        return container([*entries[:position], (name, data), *entries[position:]])

    return tamper


def without_entry(name: str) -> Tamper:
    return lambda plan: container([entry for entry in contents(plan) if entry[0] != name])


def with_bytes(name: str, change: Callable[[bytes], bytes]) -> Tamper:
    """Replace an entry's bytes and keep the container sound."""
    return lambda plan: container([(other, change(data) if other == name else data) for other, data in contents(plan)])


def central_field(name: str, field: str, value: int) -> Tamper:
    """Overwrite one field of an entry's directory header."""

    def tamper(plan: bytes) -> bytes:
        members = members_of(plan)
        start = members[-1].end
        for member in members:
            if member.name == name:
                return _patched(plan, start, CENTRAL, field, value)
            start += len(central_header(member))
        raise KeyError(name)

    return tamper


def local_field(name: str, field: str, value: int) -> Tamper:
    """Overwrite one field of an entry's local header."""
    return lambda plan: _patched(plan, next(m.offset for m in members_of(plan) if m.name == name), LOCAL, field, value)


def both(first: Tamper, second: Tamper) -> Tamper:
    def tamper(plan: bytes) -> bytes:
        start_of_second = second(plan)
        merged = bytearray(first(plan))
        for at, (old, new) in enumerate(zip(plan, start_of_second, strict=True)):
            if old != new:
                merged[at] = new
        return bytes(merged)

    return tamper


def flipped(offset: int, bit: int = 0) -> Tamper:
    def tamper(plan: bytes) -> bytes:
        changed = bytearray(plan)
        changed[offset] ^= 1 << bit
        return bytes(changed)

    return tamper


def inserted(offset: int, data: bytes) -> Tamper:
    return lambda plan: plan[:offset] + data + plan[offset:]


def apply(path: Path, tamper: Tamper) -> Path:
    """Write the tampered plan beside the sound one."""
    damaged = path.with_name("damaged.bin")
    damaged.write_bytes(tamper(path.read_bytes()))
    return damaged


def _patched(plan: bytes, start: int, layout: Layout, field: str, value: int) -> bytes:
    fields = layout.unpack(plan[start : start + layout.size]) | {field: value}
    return plan[:start] + layout.pack(**fields) + plan[start + layout.size :]
