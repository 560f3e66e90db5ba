"""Reads the framing of a container as hostile input: what is not byte for byte canonical is refused, saying what it is."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from itertools import zip_longest

from .container import (
    CENTRAL,
    END,
    END64,
    LIMIT_16,
    LIMIT_32,
    LOCAL,
    LOCATOR64,
    MANIFEST_NAME,
    ZIP64_FIELD,
    Layout,
    Member,
    canonical_order,
    central_header,
    end_records,
    is_safe_name,
    local_header,
)
from .errors import PlanError

MAX_DIRECTORY_BYTES = 64 << 20
FETCH_AGAIN = "copy or download the plan again, or compile it anew with tokenspeed-compile"

Read = Callable[[int, int], bytes]


def refusal(what: str, where: str, expected: str = "", got: str = "") -> PlanError:
    """A refusal of a damaged or hostile container."""
    return PlanError(what, where=where, expected=expected, got=got, fix=FETCH_AGAIN)


def read_directory(read: Read, file_size: int) -> list[Member]:
    """The container's members, in order, manifest first.

    `read(offset, size)` gives exactly that many bytes of the file. Only framing is read, never entry data. Raises `PlanError`.
    """
    offset, size, count = _end_of_directory(read, file_size)
    directory = memoryview(read(offset, size))
    members: list[Member] = []
    position = 0
    while position < size:
        member, position = _member(directory, position)
        _check_follows(member, members, offset)
        members.append(member)
    if not members or members[0].name != MANIFEST_NAME:
        raise refusal("The plan has no manifest.", "first entry", MANIFEST_NAME, members[0].name if members else "no entries")
    if members[-1].end != offset:
        raise refusal("There are bytes outside entries.", "before the directory", f"offset {members[-1].end}", f"offset {offset}")
    if len(members) != count:
        raise refusal("The directory is damaged.", "end record, count", f"{len(members)} entries", f"{count} entries")
    for member in members:
        _check_local_header(read, member)
    return members


def _end_of_directory(read: Read, file_size: int) -> tuple[int, int, int]:
    """(offset, bytes, number of entries) of the directory, from the end records."""
    if file_size < END.size:
        raise refusal(
            "This is not a plan, or it is truncated.", "end of file", f"at least {END.size} bytes", f"{file_size} bytes"
        )
    tail = read(file_size - END.size, END.size)
    if tail[:4] != END.signature:
        raise _no_end_record(read, file_size)
    end = END.unpack(tail)
    start = file_size - END.size
    if end["count"] == LIMIT_16 or LIMIT_32 in (end["directory_offset"], end["directory_size"]):
        start = file_size - END.size - LOCATOR64.size - END64.size
        if start < 0:
            raise refusal("The directory is damaged.", "ZIP64 end record", "a record before the end record", "a shorter file")
        record = read(start, END64.size)
        end = END64.unpack(record)
    offset, size, count = end["directory_offset"], end["directory_size"], end["count"]
    if offset + size != start:
        raise refusal(
            "The directory does not end where the end record starts.", "end record", f"offset {start}", f"{offset + size}"
        )
    if size > MAX_DIRECTORY_BYTES:
        raise refusal("The directory is too large.", "end record", f"at most {MAX_DIRECTORY_BYTES} bytes", f"{size} bytes")
    expected, found = end_records(count, offset, size), read(start, file_size - start)
    if expected != found:
        where = "end record" + _difference(END, expected[-END.size :], found[-END.size :])
        raise refusal("The end record is not in canonical form.", where)
    return offset, size, count


def _no_end_record(read: Read, file_size: int) -> PlanError:
    """Tell a file with something appended from one that was cut short, and both from something else altogether."""
    span = min(file_size, END.size + LIMIT_16)
    tail = read(file_size - span, span)
    found = tail.rfind(END.signature, 0, span - END.size + len(END.signature))
    if found >= 0:
        return refusal(
            "There are bytes outside entries.", "after the end record", "end of file", f"{span - found - END.size} more bytes"
        )
    if read(0, 4) != LOCAL.signature:
        return refusal("This is not a plan.", "first bytes", "a plan file written by tokenspeed-compile", repr(read(0, 4)))
    return refusal("The plan is truncated.", "end of file", "an end record", "none")


def _member(directory: memoryview, start: int) -> tuple[Member, int]:
    """The directory entry at `start`, and where the next one begins."""
    fixed = directory[start : start + CENTRAL.size]
    if len(fixed) < CENTRAL.size or fixed[:4] != CENTRAL.signature:
        raise refusal("The directory is damaged.", f"directory, byte {start}", "an entry header", repr(bytes(fixed[:4])))
    fields = CENTRAL.unpack(fixed)
    name_end = start + CENTRAL.size + fields["name_length"]
    end = name_end + fields["extra_length"] + fields["comment_length"]
    if end > len(directory):
        raise refusal("The directory is damaged.", f"directory, byte {start}", f"at most {len(directory)} bytes", f"{end} bytes")
    raw_name = bytes(directory[start + CENTRAL.size : name_end])
    name = _checked_name(raw_name)
    _check_plain_file(name, fields)
    size, offset = _large_numbers(name, fields, bytes(directory[name_end : name_end + fields["extra_length"]]))
    member = Member(name, size, fields["crc"], offset)
    expected, found = central_header(member), bytes(directory[start:end])
    if expected != found:
        where = f"directory, {name}" + _difference(CENTRAL, expected, found)
        raise refusal("A directory header is not in canonical form.", where)
    return member, end


def _checked_name(raw: bytes) -> str:
    name = raw.decode("ascii", "backslashreplace")
    if not is_safe_name(name):
        raise refusal("An entry's name is not allowed.", "directory", "a relative path of plain segments", repr(name))
    return name


def _check_plain_file(name: str, fields: dict[str, int]) -> None:
    if fields["flags"] & 0x2041:
        raise refusal("An entry is encrypted.", name, "flags 0", f"flags {fields['flags']:#x}")
    if fields["method"] != 0:
        raise refusal("An entry is compressed.", name, "method 0 (stored)", f"method {fields['method']}")
    if fields["compressed_size"] != fields["size"]:
        raise refusal("An entry's sizes disagree.", name, f"{fields['size']} bytes", f"{fields['compressed_size']} bytes")
    mode = fields["external_attributes"] >> 16
    if not stat.S_ISREG(mode):
        raise refusal("An entry is not a regular file.", name, "mode 0100644", f"mode 0{mode:o}")


def _large_numbers(name: str, fields: dict[str, int], extra: bytes) -> tuple[int, int]:
    """(size, offset), taken from the ZIP64 field where the header has no room; its exact bytes are compared later."""
    wanted = 2 * (fields["size"] == LIMIT_32) + (fields["offset"] == LIMIT_32)
    if not wanted:
        return fields["size"], fields["offset"]
    if len(extra) != 4 + 8 * wanted or struct.unpack_from("<H", extra)[0] != ZIP64_FIELD:
        raise refusal("A directory header is not in canonical form.", f"directory, {name}, ZIP64 field")
    numbers = struct.unpack_from(f"<{wanted}Q", extra, 4)
    size = numbers[0] if wanted >= 2 else fields["size"]
    return size, numbers[-1] if wanted % 2 else fields["offset"]


def _check_follows(member: Member, before: list[Member], limit: int) -> None:
    """The member starts exactly where the one before it ends, in order, and ends before the directory."""
    if before:
        last = before[-1].name
        if member.name == last:
            raise refusal("An entry appears twice.", member.name, "one entry of this name", "two")
        if canonical_order(member.name) < canonical_order(last):
            raise refusal("Entries are not in order.", member.name, f"a name after {last!r}", repr(member.name))
    start = before[-1].end if before else 0
    if member.offset < start:
        raise refusal("Entries overlap.", member.name, f"offset {start}", f"offset {member.offset}")
    if member.offset > start:
        raise refusal("There are bytes outside entries.", f"before {member.name}", f"offset {start}", f"offset {member.offset}")
    if member.end > limit:
        room = max(limit - member.data_offset, 0)
        raise refusal(
            "An entry declares more bytes than the file has.", member.name, f"at most {room} bytes", f"{member.size} bytes"
        )


def _check_local_header(read: Read, member: Member) -> None:
    expected = local_header(member)
    found = read(member.offset, len(expected))
    if found == expected:
        return
    name = slice(LOCAL.size, LOCAL.size + len(member.name))
    if found[name] != expected[name]:
        got = repr(found[name].decode("ascii", "backslashreplace"))
        raise refusal("A local header and the directory name different entries.", "local header", repr(member.name), got)
    where = f"local header, {member.name}" + _difference(LOCAL, expected, found)
    raise refusal("A local header does not agree with the directory.", where)


def _difference(layout: Layout, expected: bytes, found: bytes) -> str:
    """`, field NAME` for the first fixed field that differs, else `, byte N`."""
    if expected[:4] != found[:4]:
        return ", signature"
    if len(found) >= layout.size:
        want, have = layout.unpack(expected[: layout.size]), layout.unpack(found[: layout.size])
        for name in layout.fields:
            if want[name] != have[name]:
                return f", field {name}: expected {want[name]}, got {have[name]}"
    pairs = enumerate(zip_longest(expected, found))
    return f", byte {next((at for at, (one, other) in pairs if one != other), len(expected))}"
