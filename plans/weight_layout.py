"""How final weights lie in memory: element types that come in blocks, and layouts that kernels want (docs/plan-format.md)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from .program import DTYPE_BYTES, DType

BlockType = Literal["q8_0", "q4_0", "q4_1", "q4_k"]
StoredType = DType | BlockType
Prepack = Literal["none", "onednn", "panel"]

BLOCKS: dict[str, tuple[int, int]] = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20), "q4_k": (256, 144)}
"""Elements and bytes of one block, along the last dimension: the formats of ggml, by the names GGUF gives them in capitals."""

WEIGHT_BLOCKS = ("q8_0", "q4_0", "q4_1")
"""Block types that a final weight may have."""

PANEL_COLUMNS = 32
_PANEL_DEPTH = {"f32": 1, "bf16": 2}


def row_bytes(features: int, dtype: str) -> int:
    """Bytes of one row. Raises ValueError where a row is not made of whole blocks."""
    if dtype not in BLOCKS:
        return features * DTYPE_BYTES[dtype]
    elements, size = BLOCKS[dtype]
    if features % elements:
        raise ValueError(f"rows of whole {dtype} blocks of {elements} elements, not {features}")
    return features // elements * size


def stored_bytes(shape: Sequence[int], dtype: str, prepack: str) -> int:
    """Bytes of a weight in memory. oneDNN's packing keeps the number of elements; panels pad rows to whole panels.

    Raises ValueError for a type that has no such layout.
    """
    if prepack != "panel":
        return prod(shape[:-1]) * row_bytes(shape[-1], dtype) if shape else DTYPE_BYTES[dtype]
    if len(shape) not in (2, 3) or dtype not in (*_PANEL_DEPTH, *WEIGHT_BLOCKS):
        raise ValueError(f"panels of [N, K] or [E, N, K] of {', '.join((*_PANEL_DEPTH, *WEIGHT_BLOCKS))}")
    depth = _PANEL_DEPTH.get(dtype, 1)
    features = -(-shape[-1] // depth) * depth
    rows = -(-shape[-2] // PANEL_COLUMNS) * PANEL_COLUMNS
    return prod(shape[:-2]) * rows * row_bytes(features, dtype)
