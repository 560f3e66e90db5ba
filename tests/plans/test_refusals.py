"""Every way to damage a plan is refused, with its reason, before any entry but the manifest is read."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenspeed.plans import reader
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import FORMAT_MINOR
from tokenspeed.tests.plans import tamper
from tokenspeed.tests.plans.sample_plan import sample_entries, sample_manifest, write_sample_plan

IR, MANIFEST = "ir/model.mlir", "manifest.json"
CANONICAL, DISAGREES, UNDECODABLE = "not in canonical form", "does not agree with the directory", "cannot be decoded"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.bin"
    write_sample_plan(path)
    return path


def manifest_with(change: Callable[[dict], None]) -> tamper.Tamper:
    """Change the manifest's JSON and keep the container sound."""

    def changed(data: bytes) -> bytes:
        document = msgspec.json.decode(data)
        change(document)
        return msgspec.json.encode(document)

    return tamper.with_bytes(MANIFEST, changed)


def setting(*keys: str | int, to: object) -> tamper.Tamper:
    def change(document: dict) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return manifest_with(change)


CASES: dict[str, tuple[tamper.Tamper, str, str]] = {
    # container: names
    "absolute path": (tamper.with_entry("/etc/passwd", at=1), "name is not allowed", "'/etc/passwd'"),
    "parent path": (tamper.with_entry("ir/../../x", at=5), "name is not allowed", "'ir/../../x'"),
    "dot segment": (tamper.with_entry("ir/./x", at=5), "name is not allowed", "'ir/./x'"),
    "backslash": (tamper.with_entry("ir\\x", at=5), "name is not allowed", "ir"),
    "folder entry": (tamper.with_entry("ir/", b"", at=4), "name is not allowed", "'ir/'"),
    "empty name": (tamper.with_entry("", b"", at=1), "name is not allowed", "''"),
    "nul in name": (tamper.with_entry("ir/a\0b", at=5), "name is not allowed", "ir/a"),
    "duplicate": (tamper.with_entry(IR, at=5), "appears twice", IR),
    "two manifests": (tamper.with_entry("manifest.json", at=1), "appears twice", "manifest.json"),
    "out of order": (tamper.with_entry("ir/zzz", at=1), "not in order", "constants/inv_freq"),
    "extra entry": (tamper.with_entry("ir/extra"), "does not list", "ir/extra"),
    "missing entry": (tamper.without_entry(IR), "does not have", IR),
    "missing manifest": (tamper.without_entry("manifest.json"), "has no manifest", "manifest.json"),
    "resized entry": (tamper.with_bytes(IR, lambda data: data + b" "), "another size", IR),
    # container: headers
    "compressed": (tamper.central_field(IR, "method", 8), "compressed", IR),
    "encrypted": (tamper.central_field(IR, "flags", 1), "encrypted", IR),
    "strong encryption": (tamper.central_field(IR, "flags", 0x41), "encrypted", IR),
    "data descriptor": (tamper.central_field(IR, "flags", 8), CANONICAL, "field flags"),
    "huge declared size": (
        tamper.both(tamper.central_field(IR, "size", 1 << 31), tamper.central_field(IR, "compressed_size", 1 << 31)),
        "more bytes than the file",
        IR,
    ),
    "huge ZIP64 size without its field": (
        tamper.both(tamper.central_field(IR, "size", 0xFFFFFFFF), tamper.central_field(IR, "compressed_size", 0xFFFFFFFF)),
        CANONICAL,
        "ZIP64 field",
    ),
    "sizes disagree": (tamper.central_field(IR, "size", 1 << 20), "sizes disagree", IR),
    "symlink": (tamper.central_field(IR, "external_attributes", 0o120777 << 16), "not a regular file", IR),
    "folder mode": (tamper.central_field(IR, "external_attributes", 0o040755 << 16), "not a regular file", IR),
    "executable mode": (
        tamper.central_field(IR, "external_attributes", 0o100755 << 16),
        CANONICAL,
        "external_attributes",
    ),
    "overlap": (tamper.central_field(IR, "offset", 0), "overlap", IR),
    "time": (tamper.central_field(IR, "time", 1), CANONICAL, "field time"),
    "comment": (tamper.central_field("tokenizer/tokenizer.json", "comment_length", 9), "damaged", "directory, byte"),
    "other disk": (tamper.central_field(IR, "disk", 1), CANONICAL, "field disk"),
    "local name": (lambda plan: _other_local_name(plan), "name different entries", "'ir/model.mlir'"),
    "local size": (tamper.local_field(IR, "size", 1), DISAGREES, "field size"),
    "local crc": (tamper.local_field(IR, "crc", 1), DISAGREES, "field crc"),
    "local method": (tamper.local_field(IR, "method", 8), DISAGREES, "field method"),
    "padding": (
        lambda plan: tamper.flipped(_member(plan, IR).data_offset - 1)(plan),
        DISAGREES,
        "byte",
    ),
    # container: bytes outside entries
    "gap": (lambda plan: _with_gap(plan), "outside entries", "before decisions.json"),
    "bytes before the directory": (lambda plan: _gap_before_directory(plan), "outside entries", "before the directory"),
    "leading bytes": (tamper.inserted(0, b"MZ"), "does not end where the end record starts", "end record"),
    # manifest
    "manifest byte": (
        lambda plan: tamper.flipped(_member(plan, MANIFEST).data_offset + 9)(plan),
        "do not match its CRC",
        "manifest.json",
    ),
    "not JSON": (tamper.with_bytes(MANIFEST, lambda data: data[:-1]), UNDECODABLE, MANIFEST),
    "not UTF-8": (
        tamper.with_bytes(MANIFEST, lambda data: data.replace(b"sample-model", b"sample-\xff\xfedel")),
        UNDECODABLE,
        "manifest.json",
    ),
    "deep nesting": (tamper.with_bytes(MANIFEST, lambda data: b"[" * 100_000), UNDECODABLE, MANIFEST),
    "newer minor": (setting("format", to=[1, FORMAT_MINOR + 1]), "newer than this runtime reads", f"1.{FORMAT_MINOR + 1}"),
    "newer major": (setting("format", to=[2, 0]), "newer than this runtime reads", "2.0"),
    "older major": (setting("format", to=[0, 9]), "does not read", "0.9"),
    "newer runtime": (setting("minimum_runtime", to="99.0.0"), "needs a newer runtime", "minimum_runtime"),
    "odd runtime": (setting("minimum_runtime", to="1.x"), "manifest is not valid", "minimum_runtime"),
    "unknown field": (setting("target", "secret", to=1), UNDECODABLE, "secret"),
    "wrong type": (setting("memory", "kv", to="many"), UNDECODABLE, "$.memory.kv"),
    "huge float": (
        tamper.with_bytes(MANIFEST, lambda data: data.replace(b'per_token":512.0', b'per_token":1e999')),
        UNDECODABLE,
        "kv_bytes_per_token",
    ),
    "missing field": (manifest_with(lambda document: document.pop("kv")), UNDECODABLE, "kv"),
    "duplicate key": (
        tamper.with_bytes(MANIFEST, lambda data: data.replace(b'"kind":"cpu"', b'"kind":"nvidia","kind":"cpu"')),
        "A key is given twice",
        "'kind'",
    ),
    "digest not hex": (setting("entries", 0, "sha256", to="xyz"), "contradicts itself", "entries, constants/inv_freq: sha256"),
    "KV blocks": (setting("kv", "block_tokens", to=48), "contradicts itself", "kv.block_tokens"),
    "weight shape": (setting("weights", 0, "shape", to=[96, 16]), "contradicts itself", "weights, embedding: bytes"),
}


def _member(plan: bytes, name: str):
    return next(member for member in tamper.members_of(plan) if member.name == name)


def _other_local_name(plan: bytes) -> bytes:
    start = _member(plan, IR).offset + 30
    return plan[:start] + b"ir/other.mlir" + plan[start + len(IR) :]


def _with_gap(plan: bytes) -> bytes:
    """64 bytes before the third entry, all later offsets moved with it."""
    members = tamper.members_of(plan)
    at = next(member.offset for member in members if member.name == "decisions.json")
    moved = tamper.inserted(at, bytes(64))(plan)
    directory = b"".join(
        tamper.central_header(tamper.replace(member, offset=member.offset + 64 * (member.offset >= at))) for member in members
    )
    body = moved[: members[-1].end + 64]
    return body + directory + tamper.end_records(len(members), len(body), len(directory))


def _gap_before_directory(plan: bytes) -> bytes:
    members = tamper.members_of(plan)
    body = plan[: members[-1].end] + bytes(64)
    directory = b"".join(map(tamper.central_header, members))
    return body + directory + tamper.end_records(len(members), len(body), len(directory))


@pytest.mark.parametrize("case", CASES)
def test_refused_before_any_entry_is_read(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    damage, what, where = CASES[case]
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(damage(sound.read_bytes()))
    read: list[tuple[int, int]] = []
    true_pread = os.pread

    def recording(descriptor: int, size: int, offset: int) -> bytes:
        read.append((offset, offset + size))
        return true_pread(descriptor, size, offset)

    monkeypatch.setattr(reader.os, "pread", recording)
    with pytest.raises(PlanError) as caught:
        Plan.open(damaged)
    assert what in caught.value.what
    assert where in str(caught.value)
    assert caught.value.fix and caught.value.exit_code == 3
    data = damaged.read_bytes()
    for content in sample_entries().values():
        assert isinstance(content, bytes)
        at = data.find(content)
        assert at < 0 or not any(start <= at and at + len(content) <= stop for start, stop in read)


def test_truncation_at_many_points(sound: Path, tmp_path: Path) -> None:
    data, path = sound.read_bytes(), tmp_path / "short.bin"
    points = {0, 1, 3, 4, 21, 22, 30, len(data) - 1, len(data) - 22, len(data) - 23, *range(0, len(data), 97)}
    for size in sorted(points):
        path.write_bytes(data[:size])
        with pytest.raises(PlanError, match=r"truncated|not a plan"):
            Plan.open(path)


@pytest.mark.parametrize("extra", [b"\n", bytes(64), b"PK\x05\x06"])
def test_trailing_bytes(sound: Path, tmp_path: Path, extra: bytes) -> None:
    path = tmp_path / "long.bin"
    path.write_bytes(sound.read_bytes() + extra)
    with pytest.raises(PlanError, match=rf"outside entries\.\n.*after the end record(.|\n)*{len(extra)} more bytes"):
        Plan.open(path)


def test_not_a_plan_at_all(tmp_path: Path) -> None:
    text = tmp_path / "README"
    text.write_text("hello, this is a text file and no plan")
    with pytest.raises(PlanError, match="This is not a plan"):
        Plan.open(text)
    with pytest.raises(PlanError, match="cannot be opened"):
        Plan.open(tmp_path / "absent.bin")
    with pytest.raises(PlanError, match="regular file"):
        Plan.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlanError, match="regular file"):
        Plan.open(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(PlanError):
        Plan.open(tmp_path / "other.zip")


def test_a_flipped_byte_in_each_entry(sound: Path, tmp_path: Path) -> None:
    data, path = sound.read_bytes(), tmp_path / "flipped.bin"
    for member in tamper.members_of(data)[1:]:
        path.write_bytes(tamper.flipped(member.data_offset)(data))
        with Plan.open(path) as plan:
            with pytest.raises(PlanError, match=rf"not those the manifest promises.\n.*{member.name}, sha256"):
                plan.entry(member.name)
            with pytest.raises(PlanError, match=f"{member.name}, sha256"):
                plan.verify_all()


def test_a_bundled_weight_is_there_before_its_check(tmp_path: Path) -> None:
    path, manifest = tmp_path / "plan.bin", sample_manifest()
    first = msgspec.structs.replace(manifest.sources[0], entry="weights/embed")
    write_sample_plan(path, entries={"weights/embed": bytes(first.bytes)}, sources=(first, *manifest.sources[1:]))
    data = path.read_bytes()
    (member,) = (member for member in tamper.members_of(data) if member.name == "weights/embed")
    path.write_bytes(tamper.flipped(member.data_offset)(data))
    with Plan.open(path) as plan:
        found, check = plan.bundled("weights/embed")
        assert len(found) == first.bytes
        with pytest.raises(PlanError, match="weights/embed, sha256"):
            check()
        with pytest.raises(PlanError, match="no such bundled weight"):
            plan.bundled("ir/model.mlir")


def test_a_wrong_crc_that_headers_agree_on(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "crc.bin"
    path.write_bytes(tamper.both(tamper.central_field(IR, "crc", 7), tamper.local_field(IR, "crc", 7))(sound.read_bytes()))
    with Plan.open(path) as plan, pytest.raises(PlanError, match=rf"do not match its CRC.\n.*{IR}"):
        plan.verify_all()


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_goes_unseen(sound: Path, tmp_path: Path, position: float, bit: int) -> None:
    data, path = sound.read_bytes(), tmp_path / "flipped.bin"
    path.write_bytes(tamper.flipped(int(position * len(data)), bit)(data))
    with pytest.raises(PlanError), Plan.open(path) as plan:
        plan.verify_all()


def test_no_flipped_bit_of_the_framing_goes_unseen(sound: Path, tmp_path: Path) -> None:
    """All bytes that are not entry data, one bit each."""
    data, path = sound.read_bytes(), tmp_path / "flipped.bin"
    inside = [range(member.data_offset, member.end) for member in tamper.members_of(data)]
    for at in (at for at in range(len(data)) if not any(at in span for span in inside)):
        path.write_bytes(tamper.flipped(at, at % 8)(data))
        with pytest.raises(PlanError):
            Plan.open(path)


@given(junk=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_refused_cleanly(sound: Path, tmp_path: Path, junk: bytes) -> None:
    """Junk in place of the directory, and as the manifest: refused, never another kind of error."""
    data, path = sound.read_bytes(), tmp_path / "junk.bin"
    start = tamper.members_of(data)[-1].end
    path.write_bytes(data[:start] + junk + tamper.end_records(9, start, len(junk)))
    with pytest.raises(PlanError):
        Plan.open(path)
    path.write_bytes(tamper.with_bytes(MANIFEST, lambda _: junk)(data))
    with pytest.raises(PlanError):
        Plan.open(path)


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("programs/step.msgpack", b"\x81\xa4name\xa4step", UNDECODABLE),
        ("programs/step.msgpack", b"", UNDECODABLE),
        ("programs/step.msgpack", sample_entries()["programs/sample.msgpack"], "another program"),
        ("decisions.json", b'[{"program": 1}]', UNDECODABLE),
    ],
)
def test_entries_that_do_not_decode(tmp_path: Path, entry: str, content: bytes, message: str) -> None:
    path = tmp_path / "plan.bin"
    write_sample_plan(path, entries={entry: content})
    with Plan.open(path) as plan, pytest.raises(PlanError, match=rf"{message}(.|\n)*{entry}"):
        plan.verify_all()


def test_names_that_are_not_there(sound: Path) -> None:
    with Plan.open(sound) as plan:
        for ask in (plan.entry, plan.program):
            with pytest.raises(PlanError, match="absent"):
                ask("absent")
        with pytest.raises(PlanError):
            plan.entry("manifest.json")


def test_a_plan_without_decisions(tmp_path: Path) -> None:
    write_sample_plan(tmp_path / "plan.bin", entries={"decisions.json": None})
    with Plan.open(tmp_path / "plan.bin") as plan:
        assert plan.decisions() == ()


def test_refusing_loads_nothing_heavy(sound: Path, tmp_path: Path) -> None:
    damaged = tamper.apply(sound, tamper.inserted(0, b"x"))
    code = f"""
import sys
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import FORMAT_MINOR
from tokenspeed.plans.schema import FORMAT_MINOR
from tokenspeed.runtime.host import check_host
with Plan.open({str(sound)!r}) as plan:
    plan.verify_all()
try:
    Plan.open({str(damaged)!r})
except PlanError:
    print([name for name in ("torch", "numpy", "cryptography", "rich", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    target = msgspec.structs.replace(sample_manifest().target, features=("avx2", "avx2"))
    with pytest.raises(PlanError, match=r"target\.features"):
        write_sample_plan(tmp_path / "plan.bin", target=target)
