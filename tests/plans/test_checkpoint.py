"""Checkpoints of every kind, and headers that must not be believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.checkpoint import INDEX_NAME, open_checkpoint
from tokenspeed.plans.errors import WeightsError
from tokenspeed.plans.gguf_header import read_gguf_header
from tokenspeed.plans.safetensors_header import read_safetensors_header
from tokenspeed.plans.stored_tensor import HeaderError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float32)


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(values: np.ndarray, start: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(values.shape), "data_offsets": [start, start + values.nbytes]}


def good(**tensors: np.ndarray) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        header[name] = entry(values, len(data))
        data += values.tobytes()
    return safetensors_bytes(header, data)


def test_a_single_file_and_its_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(good(a=A, b=B))
    for path in (file, tmp_path):
        checkpoint = open_checkpoint(path)
        tensor = checkpoint.tensors["a"]
        assert (tensor.encoding, tensor.shape, tensor.bytes) == ("F32", (2, 3), 24)
        assert bytes(checkpoint.read("b")) == B.tobytes() and checkpoint.read("b").readonly
    with pytest.raises(WeightsError, match="lack a tensor"):
        open_checkpoint(file).read("c")


def test_shards_follow_their_index(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(good(a=A, stale=B))
    (tmp_path / "two.safetensors").write_bytes(good(b=B))
    index = tmp_path / INDEX_NAME
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {"a", "b"} and bytes(checkpoint.read("a")) == A.tobytes()
    for broken in (
        "[",
        "[]",
        "{}",
        json.dumps({"weight_map": {}}),
        json.dumps({"weight_map": {"a": "../one.safetensors"}}),
        json.dumps({"weight_map": {"a": "/etc/passwd"}}),
        json.dumps({"weight_map": {"a": 1}}),
        json.dumps({"weight_map": {"a": "two.safetensors"}}),
        json.dumps({"weight_map": {"a": "three.safetensors"}}),
    ):
        index.write_text(broken)
        with pytest.raises(WeightsError) as refusal:
            open_checkpoint(tmp_path)
        assert refusal.value.fix


def test_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "längst"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_custom_alignment(64)
    writer.add_tensor("a", A)
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("q", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in (file, tmp_path):
        checkpoint = open_checkpoint(path)
        assert bytes(checkpoint.read("a")) == A.tobytes() and checkpoint.tensors["a"].shape == (2, 3)
        tensor = checkpoint.tensors["q"]
        assert (tensor.encoding, tensor.shape, tensor.bytes) == ("Q4_1", (4, 64), 160)
        assert bytes(checkpoint.read("q")) == quantised.tobytes()
    whole = file.read_bytes()
    # up to 63 bytes of padding follow the last tensor
    for length in range(0, len(whole) - 64, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            open_checkpoint(file)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for make in (
        lambda: tmp_path,
        lambda: tmp_path / "absent.safetensors",
        lambda: tmp_path / "empty.gguf",
        lambda: tmp_path / "x.bin",
    ):
        (tmp_path / "empty.gguf").write_bytes(b"")
        (tmp_path / "x.bin").write_bytes(b"pickle")
        (tmp_path / "a.gguf").write_bytes(b"two files, no index")
        with pytest.raises(WeightsError):
            open_checkpoint(make())


GOOD = entry(B, 0)
DATA = B.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 0),
        safetensors_bytes(b"{", b""),
        safetensors_bytes(b"[]", b""),
        safetensors_bytes(b"[" * 100_000, b""),
        safetensors_bytes(b'{"a": 1}', b""),
        safetensors_bytes(b"\xff\xfe", b""),
        safetensors_bytes(f'{{"a": {json.dumps(GOOD)}, "a": {json.dumps(GOOD)}}}'.encode(), DATA),
        safetensors_bytes({"a": GOOD}, DATA + b"x"),
        safetensors_bytes({"a": GOOD}, DATA[:-1]),
        safetensors_bytes({"a": GOOD, "b": GOOD}, DATA),
        safetensors_bytes({"a": GOOD | {"dtype": "F31"}}, DATA),
        safetensors_bytes({"a": GOOD | {"dtype": ["F32"]}}, DATA),
        safetensors_bytes({"a": GOOD | {"shape": [5]}}, DATA),
        safetensors_bytes({"a": GOOD | {"shape": [-4]}}, DATA),
        safetensors_bytes({"a": GOOD | {"shape": [True, 4]}}, DATA),
        safetensors_bytes({"a": GOOD | {"shape": [1] * 9 + [4]}}, DATA),
        safetensors_bytes({"a": GOOD | {"shape": 4}}, DATA),
        safetensors_bytes({"a": GOOD | {"data_offsets": [16, 0]}}, DATA),
        safetensors_bytes({"a": GOOD | {"data_offsets": [0]}}, DATA),
        safetensors_bytes({"a": GOOD | {"data_offsets": [4, 20]}}, DATA),
        safetensors_bytes({"a": GOOD | {"data_offsets": [-16, 0]}}, DATA),
    ],
)
def test_hostile_safetensors_headers(data: bytes) -> None:
    with pytest.raises(HeaderError):
        read_safetensors_header(memoryview(data))


def gguf_bytes(*, version: int = 3, tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_tensor(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"GGML" + bytes(20),
        gguf_bytes(version=9),
        gguf_bytes(tensors=1 << 60),
        gguf_bytes(values=1 << 60),
        gguf_bytes(values=1, rest=struct.pack("<Q", 1 << 62)),
        gguf_bytes(values=1, rest=gguf_text(b"k") + struct.pack("<I", 99)),
        gguf_bytes(values=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 62)),
        gguf_bytes(values=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 62)),
        gguf_bytes(values=1, rest=gguf_text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 62)),
        gguf_bytes(values=1, rest=gguf_text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
        gguf_bytes(values=1, rest=gguf_text(b"general.alignment") + struct.pack("<II", 4, 3)),
        gguf_bytes(values=1, rest=gguf_text(b"general.alignment") + struct.pack("<II", 5, 32)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [4]) + bytes(8)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [4], offset=1 << 63) + bytes(64)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [1 << 40, 1 << 40]) + bytes(64)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [4], kind=777) + bytes(64)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [4], kind=3) + bytes(64)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"a", [1] * 9) + bytes(64)),
        gguf_bytes(tensors=1, rest=gguf_tensor(b"\xff", [1]) + bytes(64)),
        gguf_bytes(tensors=2, rest=gguf_tensor(b"a", [1]) * 2 + bytes(64)),
    ],
)
def test_hostile_gguf_headers(data: bytes) -> None:
    with pytest.raises(HeaderError):
        read_gguf_header(memoryview(data))


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255), length=st.integers(0, 400))
def test_damaged_files_are_read_inside_their_bounds_or_refused(position: int, value: int, length: int) -> None:
    table = gguf_tensor(b"a", [4]) + gguf_tensor(b"b", [2, 2], offset=32)
    values = gguf_text(b"k") + struct.pack("<IIQ", 9, 8, 2) + gguf_text(b"x") + gguf_text(b"yy")
    for whole, read in (
        (gguf_bytes(tensors=2, values=1, rest=values + table + bytes(100)), read_gguf_header),
        (good(a=A, b=B), read_safetensors_header),
    ):
        damaged = bytearray(whole[: length or None])
        damaged[position % len(damaged)] = value
        try:
            tensors = read(memoryview(damaged))
        except HeaderError:
            continue
        assert all(0 <= tensor.start <= tensor.stop <= len(damaged) for tensor in tensors)
