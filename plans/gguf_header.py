"""The tensor table of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md), read strictly.

Metadata is walked over, not kept: a tokenizer of 100,000 strings would take the gguf package's reader seconds.
"""

from __future__ import annotations

import struct
from math import prod

from .stored_tensor import MAX_DIMENSIONS, HeaderError, StoredTensor

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = b"general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_NAME = 65535
_MAX_COUNT = 1 << 20
_UINT32, _STRING, _ARRAY = 4, 8, 9
# Bytes of a metadata value by its type number.
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Cursor:
    """Reads forward; every step is checked against the end of the file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def skip(self, size: int) -> int:
        start = self.position
        if size > len(self._data) - start:
            raise HeaderError(f"{size} more bytes at byte {start}", f"a file of {len(self._data)} bytes")
        self.position = start + size
        return start

    def uint32(self) -> int:
        return struct.unpack_from("<I", self._data, self.skip(4))[0]

    def uint64(self) -> int:
        return struct.unpack_from("<Q", self._data, self.skip(8))[0]

    def text(self) -> bytes:
        size = self.uint64()
        if size > _MAX_NAME:
            raise HeaderError(f"a name of at most {_MAX_NAME} bytes", f"{size} bytes")
        start = self.skip(size)
        return bytes(self._data[start : start + size])

    def skip_strings(self, count: int) -> None:
        """The long loop of a tokenizer's tables, kept tight."""
        data, position, unpack = self._data, self.position, struct.Struct("<Q").unpack_from
        limit = len(data) - 8
        for _ in range(count):
            if position > limit:
                raise HeaderError(f"a string at byte {position}", f"a file of {len(data)} bytes")
            position += 8 + unpack(data, position)[0]
        self.skip(position - self.position)


def read_gguf_header(data: memoryview) -> list[StoredTensor]:
    """Tensors in the order of the table, shapes row-major and logical. Raises HeaderError."""
    cursor = _Cursor(data)
    start = cursor.skip(4)
    if bytes(data[start : start + 4]) != _MAGIC:
        raise HeaderError("a file that begins with GGUF", bytes(data[:4]))
    version = cursor.uint32()
    if version not in _VERSIONS:
        raise HeaderError("little-endian GGUF version 2 or 3", version)
    tensor_count, value_count = cursor.uint64(), cursor.uint64()
    if max(tensor_count, value_count) > _MAX_COUNT:
        raise HeaderError(f"at most {_MAX_COUNT} tensors and values", f"{tensor_count} and {value_count}")
    alignment = _skip_values(cursor, value_count)
    table = [_table_entry(cursor) for _ in range(tensor_count)]
    begin = -(-cursor.position // alignment) * alignment
    tensors = [_placed(entry, begin, len(data)) for entry in table]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise HeaderError("each tensor name once", "a name that comes twice")
    return tensors


def _skip_values(cursor: _Cursor, count: int) -> int:
    """Walk over the metadata; gives the alignment of tensor data."""
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(count):
        key, kind = cursor.text(), cursor.uint32()
        if key == _ALIGNMENT_KEY:
            alignment = cursor.uint32() if kind == _UINT32 else 0
            if alignment == 0 or alignment & (alignment - 1):
                raise HeaderError("an alignment that is a power of two", alignment)
        else:
            _skip_value(cursor, kind)
    return alignment


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind in _FIXED:
        cursor.skip(_FIXED[kind])
    elif kind == _STRING:
        cursor.skip(cursor.uint64())
    elif kind == _ARRAY:
        element, count = cursor.uint32(), cursor.uint64()
        if element == _STRING:
            cursor.skip_strings(count)
        elif element in _FIXED:
            cursor.skip(count * _FIXED[element])
        else:
            raise HeaderError("an array of numbers or strings", f"element type {element}")
    else:
        raise HeaderError("a known type of value", kind)


def _table_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    try:
        name = cursor.text().decode()
    except UnicodeDecodeError as error:
        raise HeaderError("a tensor name in UTF-8", error) from None
    dimensions = cursor.uint32()
    if dimensions > MAX_DIMENSIONS:
        raise HeaderError(f"at most {MAX_DIMENSIONS} dimensions for tensor {name}", dimensions)
    # GGUF lists the fastest dimension first
    shape = tuple(reversed([cursor.uint64() for _ in range(dimensions)]))
    return name, shape, cursor.uint32(), cursor.uint64()


def _placed(entry: tuple[str, tuple[int, ...], int, int], begin: int, size: int) -> StoredTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, shape, kind, offset = entry
    try:
        encoding = GGMLQuantizationType(kind)
    except ValueError:
        raise HeaderError(f"a known block type for tensor {name}", kind) from None
    per_block, block_bytes = GGML_QUANT_SIZES[encoding]
    if (shape[-1] if shape else 1) % per_block:
        raise HeaderError(f"rows of whole {encoding.name} blocks of {per_block} for tensor {name}", list(shape))
    stored = prod(shape) // per_block * block_bytes
    start = begin + offset
    if start + stored > size:
        raise HeaderError(f"tensor {name} inside the file", f"bytes {start} to {start + stored} of {size}")
    return StoredTensor(name, encoding.name, shape, start, start + stored)
