"""Opens a plan: checks everything that can be checked without reading more than its manifest, then hands out checked entries."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from .. import __version__
from .container import MANIFEST_NAME, WEIGHTS_PREFIX, Member
from .device_integrity import check_binary
from .directory import FETCH_AGAIN, read_directory, refusal
from .errors import PlanError
from .integrity import check_manifest, check_program
from .program import Program
from .schema import FORMAT_MAJOR, FORMAT_MINOR, Decision, Manifest, MeshCandidate, PlacementDecision
from .stages import shifted

if TYPE_CHECKING:
    from .signing import TrustStore

MAX_MANIFEST_BYTES = 64 << 20
DECISIONS_NAME = "decisions.json"
PLACEMENTS_NAME, MESHES_NAME = "placements.json", "meshes.json"
_HASH_BYTES = 8 << 20

Progress = Callable[[str, int, int], None]


class _Head(msgspec.Struct, frozen=True):
    """What must be understood of any manifest, whatever its version."""

    format: tuple[int, int]
    minimum_runtime: str


class Plan:
    """An open plan. Make one with `Plan.open`; use it as a context manager or `close()` it.

    `manifest` is typed and checked; `plan_id` is the SHA-256 of its bytes, `manifest_bytes`.
    """

    def __init__(self, path: Path, file: _PlanFile, members: list[Member], manifest_bytes: bytes, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.manifest_bytes = manifest_bytes
        self.plan_id = hashlib.sha256(manifest_bytes).hexdigest()
        self._file = file
        self._members = {member.name: member for member in members}
        self._digests = {entry.name: entry.sha256 for entry in manifest.entries}
        self._checked: dict[str, memoryview] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, trust: TrustStore | None = None, require_signature: bool = False) -> Self:
        """Open `path`, refusing whatever is not a sound plan this runtime can read; reads no entry but the manifest.

        With `trust`, the plan must be signed by one of its keys (PATH.sig). Raises `PlanError`.
        """
        if require_signature and trust is None:
            raise PlanError(
                "A signature is required, but there is no key to check it against.",
                where="trust store",
                expected="a public key, or a folder of public keys",
                got="none",
                fix="name one with --trust-store",
            )
        location = Path(path)
        file = _PlanFile(location)
        try:
            members = read_directory(file.read, file.size)
            data = _manifest_bytes(file, members[0])
            if trust is not None:
                trust.check_file(location, data)
            manifest = decode_manifest(data)
            _check_entries(manifest, members[1:])
            check_manifest(manifest)
        except BaseException:
            file.close()
            raise
        return cls(location, file, members, data, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Views handed out before stay valid."""
        self._checked.clear()
        self._file.close()

    def entry(self, name: str) -> memoryview:
        """The bytes of an entry, read-only, after its SHA-256 has been checked (once).

        A private copy, except for bundled weights, which are mapped from the file. Raises `PlanError` if there is no such
        entry or its digest is wrong.
        """
        if name not in self._checked:
            if name not in self._digests:
                raise refusal("The plan has no such entry.", name)
            data = self._data(name)
            self._check_digest(name, data)
            self._checked[name] = data
        return self._checked[name]

    def bundled(self, name: str) -> tuple[memoryview, Callable[[], None]]:
        """A bundled weight, mapped from the file, and the check of its SHA-256 that must pass before it is relied on.

        The check, which raises `PlanError`, may be made while the bytes are used already. Raises `PlanError` when the plan has no
        such weight.
        """
        if name not in self._digests or not name.startswith(WEIGHTS_PREFIX):
            raise refusal("The plan has no such bundled weight.", name)
        data = self._data(name)
        return data, lambda: self._check_digest(name, data)

    def program(self, name: str) -> Program:
        """The named program, decoded and checked against the manifest. Raises `PlanError`."""
        reference = next((item for item in self.manifest.programs if item.name == name), None)
        if reference is None:
            raise refusal("The plan has no such program.", name)
        program = _decode(msgspec.msgpack.Decoder(Program), self.entry(reference.entry), reference.entry)
        if reference.shift:
            program = shifted(program, name, reference.rank, reference.shift)
        if program.name != name:
            raise refusal(
                "An entry holds another program than the manifest says.", reference.entry, repr(name), repr(program.name)
            )
        check_program(self.manifest, program)
        return program

    def decisions(self) -> tuple[Decision, ...]:
        """Why each operation runs as it does; empty when the compiler recorded nothing. Raises `PlanError`."""
        if DECISIONS_NAME not in self._digests:
            return ()
        return _decode(msgspec.json.Decoder(tuple[Decision, ...]), self.entry(DECISIONS_NAME), DECISIONS_NAME)

    def placements(self) -> tuple[PlacementDecision, ...]:
        """How each operation lies on the mesh; empty for one rank. Raises `PlanError`."""
        if PLACEMENTS_NAME not in self._digests:
            return ()
        return _decode(msgspec.json.Decoder(tuple[PlacementDecision, ...]), self.entry(PLACEMENTS_NAME), PLACEMENTS_NAME)

    def meshes(self) -> tuple[MeshCandidate, ...]:
        """The meshes that were weighed, the plan's own first; empty where the user named it. Raises `PlanError`."""
        if MESHES_NAME not in self._digests:
            return ()
        return _decode(msgspec.json.Decoder(tuple[MeshCandidate, ...]), self.entry(MESHES_NAME), MESHES_NAME)

    def verify_all(self, progress: Progress | None = None) -> None:
        """Check every entry's SHA-256 and CRC, every program, the device kernels and the decisions.

        `progress(entry, bytes done, bytes in all)` is told.
        """
        total = sum(entry.size for entry in self.manifest.entries)
        done = 0
        for entry in self.manifest.entries:
            data = self._data(entry.name)
            self._check_digest(entry.name, data)
            _check_crc(self._members[entry.name], data)
            done += entry.size
            if progress is not None:
                progress(entry.name, done, total)
        for reference in self.manifest.programs:
            self.program(reference.name)
        if self.manifest.device is not None:
            for kernel in self.manifest.device.kernels:
                check_binary(kernel, self.manifest.device.vendor, self.entry(kernel.entry))
        self.decisions()
        self.placements()
        self.meshes()

    def _data(self, name: str) -> memoryview:
        member = self._members[name]
        if name.startswith(WEIGHTS_PREFIX):
            return self._file.map(member.data_offset, member.size)
        return memoryview(self._file.read(member.data_offset, member.size))

    def _check_digest(self, name: str, data: memoryview) -> None:
        found, expected = hashlib.sha256(data).hexdigest(), self._digests[name]
        if found != expected:
            raise refusal("An entry's bytes are not those the manifest promises.", f"{name}, sha256", expected, found)


class _PlanFile:
    """A regular file, read by position; mapped only where asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            fix = "check the path; tokenspeed-compile MODEL -o PATH writes a plan"
            raise PlanError("The plan cannot be opened.", where=str(path), got=error.strerror or str(error), fix=fix) from None
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self._map: memoryview | None = None
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise PlanError("A plan must be a regular file.", where=str(path), fix="give the path of a plan file")

    def read(self, offset: int, size: int) -> bytes:
        data = self._read_some(offset, size)
        while len(data) < size:  # one pread gives at most 2 GiB
            more = self._read_some(offset + len(data), size - len(data))
            if not more:
                raise refusal("The plan became shorter while it was read.", f"{self._path}, byte {offset}")
            data += more
        return data

    def _read_some(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            got = error.strerror or str(error)
            raise PlanError("The plan cannot be read.", where=str(self._path), got=got, fix=FETCH_AGAIN) from None

    def map(self, offset: int, size: int) -> memoryview:
        if self._map is None:
            self._map = memoryview(mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ))
        return self._map[offset : offset + size]

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._map = None  # the mapping itself ends with the last view of it


def decode_manifest(data: bytes) -> Manifest:
    """manifest.json, strictly typed, of a format version and minimum runtime that this runtime meets. Raises `PlanError`."""
    head = _decode(msgspec.json.Decoder(_Head), data, MANIFEST_NAME)
    _check_format(head.format)
    _check_minimum_runtime(head.minimum_runtime)
    manifest = _decode(msgspec.json.Decoder(Manifest), data, MANIFEST_NAME)
    _check_keys(data)
    return manifest


def _manifest_bytes(file: _PlanFile, member: Member) -> bytes:
    if member.size > MAX_MANIFEST_BYTES:
        raise refusal("The manifest is too large.", MANIFEST_NAME, f"at most {MAX_MANIFEST_BYTES} bytes", f"{member.size} bytes")
    data = file.read(member.data_offset, member.size)
    _check_crc(member, data)
    return data


def _check_crc(member: Member, data: bytes | memoryview) -> None:
    crc = 0
    for start in range(0, len(data), _HASH_BYTES):
        crc = zlib.crc32(data[start : start + _HASH_BYTES], crc)
    if crc != member.crc:
        raise refusal("An entry's bytes do not match its CRC.", f"{member.name}, crc", f"{member.crc:08x}", f"{crc:08x}")


def _decode(decoder: Any, data: bytes | memoryview, where: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise refusal("An entry cannot be decoded.", where, got=str(error)) from None
    except RecursionError:
        raise refusal("An entry cannot be decoded.", where, got="nested too deeply") from None


def _check_keys(data: bytes) -> None:
    """Refuse a key given twice: readers differ in which one they take."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            key = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise refusal("A key is given twice.", MANIFEST_NAME, "each key once", repr(key))

    try:
        json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise refusal("An entry cannot be decoded.", MANIFEST_NAME, got=str(error)) from None


def _check_format(version: tuple[int, int]) -> None:
    major, minor = version
    if major == FORMAT_MAJOR and 0 <= minor <= FORMAT_MINOR:
        return
    newer = (major, minor) > (FORMAT_MAJOR, FORMAT_MINOR)
    raise PlanError(
        "The plan's format is newer than this runtime reads."
        if newer
        else "The plan's format is one this runtime does not read.",
        where=f"{MANIFEST_NAME}: format",
        expected=f"{FORMAT_MAJOR}.0 to {FORMAT_MAJOR}.{FORMAT_MINOR}",
        got=f"{major}.{minor}",
        fix="upgrade the runtime: pip install --upgrade tokenspeed-compile" if newer else "compile the model again",
    )


def _check_minimum_runtime(minimum: str) -> None:
    wanted = version_numbers(minimum)
    if wanted is None:
        raise refusal(
            "The manifest is not valid.", f"{MANIFEST_NAME}: minimum_runtime", "three numbers like 1.2.3", repr(minimum)
        )
    if wanted > (version_numbers(__version__) or (0, 0, 0)):
        raise PlanError(
            "The plan needs a newer runtime.",
            where=f"{MANIFEST_NAME}: minimum_runtime",
            expected=f"{minimum} or newer",
            got=__version__,
            fix="upgrade the runtime: pip install --upgrade tokenspeed-compile",
        )


def version_numbers(text: str) -> tuple[int, int, int] | None:
    """(major, minor, patch) of `1.2.3`, or None if the text is anything else."""
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in parts):
        return None
    major, minor, patch = map(int, parts)
    return major, minor, patch


def _check_entries(manifest: Manifest, members: list[Member]) -> None:
    """The container holds exactly the entries of the manifest."""
    listed = {entry.name: entry.size for entry in manifest.entries}
    for member in members:
        if member.name not in listed:
            raise refusal("The plan has an entry that its manifest does not list.", member.name)
        if member.size != listed[member.name]:
            expected, got = f"{listed[member.name]} bytes", f"{member.size} bytes"
            raise refusal("An entry has another size than its manifest says.", member.name, expected, got)
    missing = sorted(listed.keys() - {member.name for member in members})
    if missing:
        raise refusal("The manifest lists an entry that the plan does not have.", missing[0])
