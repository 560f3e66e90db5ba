"""Weights in the panel layout (targets/cpu/native/panel.h), as numpy understands the format: the oracle of the packing kernel."""

from __future__ import annotations

import gguf.quants
import numpy as np
import torch
from gguf import GGMLQuantizationType
from tokenspeed.plans.weight_layout import row_bytes, stored_bytes
from tokenspeed.runtime.native.records import PackedWeight

from .calling import call, empty_packed

COLUMNS = 32
GGML = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0, "q4_1": GGMLQuantizationType.Q4_1}


def packed(machine: str, source: torch.Tensor, dtype: str, threads: int = 2) -> PackedWeight:
    """A float weight [N, K] or [E, N, K], packed by the kernel."""
    weight = empty_packed(tuple(source.shape), dtype, stored_bytes(source.shape, dtype, "panel"))
    call(machine, "pack_panel", [source], [weight], threads)
    return weight


def quantised(weight: torch.Tensor, dtype: str) -> tuple[np.ndarray, torch.Tensor]:
    """ggml's blocks of a weight, [N, bytes], and the values they stand for."""
    blocks = gguf.quants.quantize(weight.float().numpy(), GGML[dtype])
    return blocks, torch.from_numpy(gguf.quants.dequantize(blocks, GGML[dtype]))


def float_panels(weight: torch.Tensor) -> np.ndarray:
    """[N, K] float32, or bfloat16 in pairs, as bytes in the panel layout."""
    depth = 2 if weight.dtype == torch.bfloat16 else 1
    rows, features = weight.shape
    full = torch.zeros(-(-rows // COLUMNS) * COLUMNS, -(-features // depth) * depth, dtype=weight.dtype)
    full[:rows, :features] = weight
    panels = full.reshape(-1, COLUMNS, full.shape[1] // depth, depth).permute(0, 2, 1, 3)
    return panels.contiguous().view(torch.uint8).numpy().ravel()


def block_panels(blocks: np.ndarray, dtype: str) -> np.ndarray:
    """ggml's blocks [N, bytes] as bytes in the panel layout."""
    size = row_bytes(32, dtype)
    rows, groups = blocks.shape[0], blocks.shape[1] // size
    full = np.zeros((-(-rows // COLUMNS) * COLUMNS, groups, size), np.uint8)
    full[:rows] = blocks.reshape(rows, groups, size)
    head = 4 if dtype == "q4_1" else 2
    panels = full.reshape(-1, COLUMNS, groups, size).transpose(0, 2, 1, 3)
    numbers = panels[..., :head].reshape(*panels.shape[:3], head // 2, 2).transpose(0, 1, 3, 2, 4)
    fours = panels[..., head:].reshape(*panels.shape[:3], -1, 4).transpose(0, 1, 3, 2, 4)
    if dtype == "q8_0":
        fours = fours ^ 0x80
    parts = [part.reshape(*panels.shape[:2], -1) for part in (numbers, fours)]
    return np.concatenate(parts, axis=-1).ravel()
