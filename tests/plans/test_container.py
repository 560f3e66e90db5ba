"""The container: deterministic bytes, readable by ZIP tools, aligned, large files by ZIP64, atomic writing."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.plans.container import ALIGNMENT, MANIFEST_NAME, central_header, end_records, local_header, place
from tokenspeed.plans.directory import read_directory
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import encode_manifest
from tokenspeed.tests.plans.sample_plan import sample_entries, sample_manifest, write_sample_plan
from tokenspeed.tests.plans.tamper import container, contents


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_sample_plan(tmp_path / "a.bin"), write_sample_plan(tmp_path / "b.bin")
    assert first == second
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "plan.bin"
    plan_id = write_sample_plan(path)
    with Plan.open(path) as plan:
        assert plan.plan_id == plan_id
        assert {entry.name for entry in plan.manifest.entries} == set(sample_entries())
        for name, data in sample_entries().items():
            assert bytes(plan.entry(name)) == data
        assert plan.program("step").name == "step"
        assert len(plan.decisions()) == 2
        assert encode_manifest(plan.manifest) == plan.manifest_bytes
        seen: list[tuple[str, int, int]] = []
        plan.verify_all(lambda *progress: seen.append(progress))
        assert seen[-1][1] == seen[-1][2] == sum(entry.size for entry in plan.manifest.entries)


def test_zip_tools_read_it_and_data_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "plan.bin"
    write_sample_plan(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == MANIFEST_NAME and names[1:] == sorted(names[1:])
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    data = path.read_bytes()
    for info in archive.infolist():
        name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
        assert (info.header_offset + 30 + name_length + extra_length) % ALIGNMENT == 0


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,9}(/[a-z0-9._-]{1,70}[a-z])?", fullmatch=True), st.integers(0, 1 << 40), max_size=20)
)
def test_every_entry_is_aligned_whatever_its_name_and_size(sizes: dict[str, int]) -> None:
    for member in place(list(sizes.items())):
        assert member.data_offset % ALIGNMENT == 0
        assert len(local_header(member)) == member.data_offset - member.offset < 30 + len(member.name) + 20 + 6 + ALIGNMENT


def test_the_tests_own_builder_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "plan.bin"
    write_sample_plan(path)
    assert container(contents(path.read_bytes())) == path.read_bytes()


def test_zip64_framing_agrees_with_zipfile(tmp_path: Path) -> None:
    """Entries beyond 4 GiB, as a file of holes; both readers must find the same."""
    sizes = [(MANIFEST_NAME, 2), ("weights/a", (1 << 32) - 1), ("weights/b", 3), ("weights/c", (1 << 32) + 5)]
    members = place(sizes)
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        for member in members:
            file.seek(member.offset)
            file.write(local_header(member))
        file.seek(members[-1].end)
        directory = b"".join(map(central_header, members))
        file.write(directory + end_records(len(members), members[-1].end, len(directory)))

    def read(offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    assert read_directory(read, path.stat().st_size) == members
    with zipfile.ZipFile(path) as archive:
        assert [(info.filename, info.file_size, info.header_offset) for info in archive.infolist()] == [
            (member.name, member.size, member.offset) for member in members
        ]
        with archive.open("weights/b") as entry:
            assert entry.read(0) == b""


def test_many_entries_use_the_zip64_end_record() -> None:
    members = place([(MANIFEST_NAME, 0), *((f"ir/{at:06}", 0) for at in range(66000))])
    body = b"".join(map(local_header, members))
    directory = b"".join(map(central_header, members))
    data = body + directory + end_records(len(members), len(body), len(directory))
    assert len(read_directory(lambda offset, size: data[offset : offset + size], len(data))) == 66001


class Stream:
    """An entry source that is no file and not in memory."""

    def __init__(self, chunks: list[bytes], size: int | None = None) -> None:
        self._chunks = chunks
        self.size = sum(map(len, chunks)) if size is None else size

    def chunks(self) -> Iterator[bytes]:
        yield from self._chunks


def test_streams_and_files_as_entries(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"module {}\n")
    write_sample_plan(
        tmp_path / "plan.bin", entries={"ir/a": Stream([b"mod", b"ule"]), "ir/b": tmp_path / "text", "ir/c": memoryview(b"x")}
    )
    with Plan.open(tmp_path / "plan.bin") as plan:
        assert (bytes(plan.entry("ir/a")), bytes(plan.entry("ir/b")), bytes(plan.entry("ir/c"))) == (
            b"module",
            b"module {}\n",
            b"x",
        )


@pytest.mark.parametrize("declared", [5, 7])
def test_a_stream_of_another_size_is_refused_and_leaves_nothing(tmp_path: Path, declared: int) -> None:
    with pytest.raises(PlanError, match="another number of bytes"):
        write_sample_plan(tmp_path / "plan.bin", entries={"ir/a": Stream([b"mod", b"ule"], declared)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b", "a//b", "a\\b", "", ".", "manifest.json", "é", "a" * 256])
def test_names_that_may_not_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="cannot be given to an entry"):
        write_sample_plan(tmp_path / "plan.bin", entries={name: b""})


def test_a_manifest_that_does_not_describe_its_entries_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="constants, inv_freq: entry"):
        write_sample_plan(tmp_path / "plan.bin", entries={"constants/inv_freq": None})
    assert list(tmp_path.iterdir()) == []


def test_views_outlive_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.bin"
    manifest = sample_manifest()
    first = msgspec.structs.replace(manifest.sources[0], entry="weights/embed")
    write_sample_plan(path, entries={"weights/embed": bytes(first.bytes)}, sources=(first, *manifest.sources[1:]))
    with Plan.open(path) as plan:
        mapped, private = plan.entry("weights/embed"), plan.entry("ir/model.mlir")
        assert plan.entry("weights/embed") is mapped
        bundled, check = plan.bundled("weights/embed")
        check()
        assert bytes(bundled) == bytes(mapped)
    assert zlib.crc32(mapped) == zlib.crc32(bytes(first.bytes)) and bytes(private) == b"module {}\n"
    assert mapped.readonly and private.readonly
