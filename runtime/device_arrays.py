"""Plan types as torch types, and host arrays as tensors."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

TORCH_TYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i1": torch.bool,
}


def window(arena: torch.Tensor, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], start: int) -> torch.Tensor:
    """The window of a flat tensor of bytes that begins at byte `start`; strides count elements."""
    kind = TORCH_TYPES[dtype]
    whole = arena[: arena.numel() // kind.itemsize * kind.itemsize].view(kind)
    return whole.as_strided(shape, strides, start // kind.itemsize)


def as_tensor(data: NDArray[Any], dtype: str) -> torch.Tensor:
    """The same memory as a tensor of the plan type `dtype` (bfloat16 comes as uint16); a copy where it may only be read."""
    tensor = torch.from_numpy(data if data.flags.writeable else data.copy())
    return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor
