"""Plan types as torch types, and dense arrays in host memory."""

from __future__ import annotations

import torch

TORCH_TYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "i8": torch.int8,
}

PLAN_TYPES = {kind: name for name, kind in TORCH_TYPES.items()}


def committed(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A zeroed array whose pages are all in memory now, so that a machine too small is found at load."""
    return torch.empty(shape, dtype=TORCH_TYPES[dtype]).zero_()


def from_bytes(data: memoryview, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A copy of raw little-endian bytes as an array."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
    return raw.view(TORCH_TYPES[dtype]).reshape(shape)
