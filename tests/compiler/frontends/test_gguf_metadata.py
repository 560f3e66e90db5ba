"""The key-value section of GGUF files: the same values as the gguf package reads, and damage refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.compiler.frontends.gguf_metadata import read_metadata
from tokenspeed.plans.errors import ModelError

from .tiny_gguf import Tiny, byte_level_tokens


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"a.list": [1, 2, 3], "a.text": "é世🎉", "a.flag": False, "a.floats": [0.5, 1.5], "a.negative": [-1, -2]}
    return Tiny(keys=keys, tokens=byte_level_tokens()).write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def section(tiny: Path) -> int:
    """Where the key-value section ends."""
    return max(field.offset + sum(part.nbytes for part in field.parts) for field in gguf.GGUFReader(tiny).fields.values())


def test_same_values_as_the_gguf_package(tiny: Path) -> None:
    values = read_metadata(tiny).values
    theirs = {key: field.contents() for key, field in gguf.GGUFReader(tiny).fields.items() if not key.startswith("GGUF.")}
    assert values.keys() == theirs.keys()
    for key, value in theirs.items():
        assert values[key] == (pytest.approx(value) if isinstance(value, float) else value), key


def test_floats_are_the_decimals_they_were_written_as(tiny: Path) -> None:
    assert read_metadata(tiny).values["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_typed_access(tiny: Path) -> None:
    metadata = read_metadata(tiny)
    assert metadata.get("a.text", str) == "é世🎉"
    assert metadata.get("llama.block_count", float) == 2.0
    assert metadata.get("absent", int, 7) == 7
    for call in (
        lambda: metadata.get("a.text", int),
        lambda: metadata.get("a.flag", int),
        lambda: metadata.require("absent", int),
    ):
        with pytest.raises(ModelError):
            call()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(keep=st.floats(0, 1, exclude_max=True))
def test_truncation_is_refused(tiny: Path, section: int, keep: float) -> None:
    short = tiny.with_name("short.gguf")
    short.write_bytes(tiny.read_bytes()[: int(keep * section)])
    with pytest.raises(ModelError):
        read_metadata(short)


def _file(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def _header(version: int = 3, keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, keys)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"PK\x03\x04 something else entirely", "not a GGUF file"),
        (_header(version=1), "version"),
        (_header(version=0x03000000), "version"),
        (_header(keys=1 << 60), "damaged"),
        (_header() + struct.pack("<Q", 1 << 62), "bytes wanted"),
        (_header() + _text(b"k") + struct.pack("<I", 99), "value type 99"),
        (_header() + _text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61), "bytes wanted"),
        (_header() + _text(b"k") + struct.pack("<IIQ", 9, 5, 1 << 61), "bytes wanted"),
        (_header() + _text(b"k") + struct.pack("<IIQ", 9, 9, 1), "array of type 9"),
        (_header() + _text(b"\xff\xfe") + struct.pack("<II", 4, 1), "UTF-8"),
        (_header(keys=2) + (_text(b"k") + struct.pack("<II", 4, 1)) * 2, "twice"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read_metadata(_file(tmp_path / "bad.gguf", content))


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="empty"):
        read_metadata(_file(tmp_path / "empty.gguf"))
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(tmp_path / "absent.gguf")
