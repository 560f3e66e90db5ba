"""The header of a safetensors file (github.com/huggingface/safetensors, "Format"), read strictly."""

from __future__ import annotations

import json
from math import prod
from typing import TypeGuard

from .stored_tensor import MAX_DIMENSIONS, HeaderError, StoredTensor

MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES |= {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}


def read_safetensors_header(data: memoryview) -> list[StoredTensor]:
    """Tensors in the order of their bytes, which must cover the file after the header without gap or overlap.

    Raises HeaderError.
    """
    if len(data) < 8:
        raise HeaderError("a header length of 8 bytes", f"{len(data)} bytes")
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise HeaderError("a header inside the file", f"{size} bytes of header in a file of {len(data)} bytes")
    begin = 8 + size
    tensors = [_tensor(name, entry, begin) for name, entry in _entries(bytes(data[8:begin])) if name != _METADATA]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            raise HeaderError(f"tensor {tensor.name} at byte {position}", f"byte {tensor.start}")
        position = tensor.stop
    if position != len(data):
        raise HeaderError(f"a file of {position} bytes", f"{len(data)} bytes")
    return tensors


def _entries(header: bytes) -> list[tuple[str, object]]:
    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            raise HeaderError("each name once", "a name that comes twice")
        return found

    try:
        content = json.loads(header, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise HeaderError("a JSON header", error) from None
    if not isinstance(content, dict):
        raise HeaderError("a JSON object", type(content).__name__)
    return list(content.items())


def _tensor(name: str, entry: object, begin: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise HeaderError(f"an object for tensor {name}", entry)
    encoding, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(encoding, str) or encoding not in _BYTES:
        raise HeaderError(f"a known dtype for tensor {name}", encoding)
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"a shape of at most {MAX_DIMENSIONS} dimensions for tensor {name}", shape)
    if not _naturals(offsets) or len(offsets) != 2:
        raise HeaderError(f"two data_offsets for tensor {name}", offsets)
    expected = prod(shape) * _BYTES[encoding]
    if offsets[1] - offsets[0] != expected:
        raise HeaderError(f"{expected} bytes for tensor {name}, {encoding}{shape}", f"{offsets[1] - offsets[0]} bytes")
    return StoredTensor(name, encoding, tuple(shape), begin + offsets[0], begin + offsets[1])


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)
