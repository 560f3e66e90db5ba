"""How final weights lie in memory: element types that come in blocks, and layouts that kernels want (docs/plan-format.md)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Literal

from .program import DTYPE_BYTES, DType

BlockType = Literal["q8_0", "q4_0", "q4_1", "q4_k", "e4m3_128"]
StoredType = DType | BlockType
Prepack = Literal["none", "onednn", "panel", "planes"]

BLOCKS: dict[str, tuple[int, int]] = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q4_k": (256, 144),
    "e4m3_128": (128, 132),
}
"""Elements and bytes of one block, along the last dimension: the formats of ggml, by the names GGUF gives them in capitals, and
e4m3_128: a float32 scale, then 128 floats of 8 bits (e4m3, of no infinities)."""

WEIGHT_BLOCKS = ("q8_0", "q4_0", "q4_1", "e4m3_128")
"""Block types that a final weight may have."""

PANEL_BLOCKS = ("q8_0", "q4_0", "q4_1")
"""Those of them that panels hold."""

MOST_BLOCKS = 2**31 - 1
"""Blocks that one call of a packing function may take."""

PANEL_COLUMNS = 32
_NUMBERS: dict[str, tuple[DType, ...]] = {"q8_0": ("f16",), "q4_0": ("f16",), "q4_1": ("f16", "f16"), "e4m3_128": ("f32",)}
_PANEL_DEPTH = {"f32": 1, "bf16": 2}


def chunk_of(features: int, dtype: str) -> int:
    """Elements of a chunk of planes along K: a block, or two of nibbles where K has an even number."""
    return gcd(features, 64) if dtype in ("q4_0", "q4_1") else BLOCKS[dtype][0]


def packing_function(source: str, stored: str, chunk: int) -> str:
    """The device function that brings values of a type, or a checkpoint's blocks, into planes of `stored` in chunks."""
    return f"pack.{source}.{stored}.c{chunk}"


def planes(shape: Sequence[int], dtype: str) -> tuple[tuple[DType, int, int], ...]:
    """Element type, bytes of a block and first byte of each plane of a weight, in order."""
    elements, size = BLOCKS[dtype]
    count = prod(shape) // elements
    end = size - sum(DTYPE_BYTES[kind] for kind in _NUMBERS[dtype])
    made: list[tuple[DType, int, int]] = [("u8", end, 0)]
    for kind in _NUMBERS[dtype]:
        made.append((kind, DTYPE_BYTES[kind], end * count))
        end += DTYPE_BYTES[kind]
    return tuple(made)


def row_bytes(features: int, dtype: str) -> int:
    """Bytes of one row. Raises ValueError where a row is not made of whole blocks."""
    if dtype not in BLOCKS:
        return features * DTYPE_BYTES[dtype]
    elements, size = BLOCKS[dtype]
    if features % elements:
        raise ValueError(f"rows of whole {dtype} blocks of {elements} elements, not {features}")
    return features // elements * size


def stored_bytes(shape: Sequence[int], dtype: str, prepack: str) -> int:
    """Bytes of a weight in memory. oneDNN's packing keeps the number of elements; panels pad rows to whole panels; planes are
    the same bytes as blocks.

    Raises ValueError for a type that has no such layout.
    """
    if prepack == "planes" and (len(shape) not in (2, 3) or dtype not in WEIGHT_BLOCKS):
        raise ValueError(f"planes of [N, K] or [E, N, K] of {', '.join(WEIGHT_BLOCKS)}")
    if prepack != "panel":
        return prod(shape[:-1]) * row_bytes(shape[-1], dtype) if shape else DTYPE_BYTES[dtype]
    if len(shape) not in (2, 3) or dtype not in (*_PANEL_DEPTH, *PANEL_BLOCKS):
        raise ValueError(f"panels of [N, K] or [E, N, K] of {', '.join((*_PANEL_DEPTH, *PANEL_BLOCKS))}")
    depth = _PANEL_DEPTH.get(dtype, 1)
    features = -(-shape[-1] // depth) * depth
    rows = -(-shape[-2] // PANEL_COLUMNS) * PANEL_COLUMNS
    return prod(shape[:-2]) * rows * row_bytes(features, dtype)
