"""A100 (compute capability 8.0). It has no 8-bit floating-point arithmetic."""

from __future__ import annotations

from ..accelerator import accelerator
from ..rates import KIB, MIB, nominal

_SHEET = "NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM"
_PAPER = "NVIDIA A100 Tensor Core GPU Architecture, white paper V1.0"
_CAPABILITY = "CUDA C++ Programming Guide, technical specifications per compute capability, 8.0"

AMPERE = (
    accelerator(
        "a100",
        "NVIDIA A100 80GB SXM4",
        kind="cuda",
        arch="sm_80",
        instructions="mma cp.async",
        rates={
            "compute.f32": nominal(19.5e12, "FLOP/s", f"{_SHEET}, FP32"),
            "compute.bf16": nominal(312e12, "FLOP/s", f"{_SHEET}, BFLOAT16 tensor core, dense"),
            "compute.f16": nominal(312e12, "FLOP/s", f"{_SHEET}, FP16 tensor core, dense"),
            "compute.int8": nominal(624e12, "OP/s", f"{_SHEET}, INT8 tensor core, dense"),
            "bandwidth": nominal(2039e9, "B/s", f"{_SHEET}, GPU memory bandwidth"),
            "link.peer": nominal(300e9, "B/s", f"{_SHEET}, NVLink 600 GB/s in both directions together"),
            "link.host": nominal(32e9, "B/s", f"{_SHEET}, PCIe Gen4 64 GB/s in both directions together"),
        },
        sizes={
            "memory": nominal(80e9, "B", f"{_SHEET}, 80 GB HBM2e"),
            "cache.l2": nominal(40 * MIB, "B", f"{_PAPER}, 40 MB"),
            "units": nominal(108, "1", f"{_PAPER}, multiprocessors"),
            "shared.unit": nominal(164 * KIB, "B", _CAPABILITY),
            "shared.block": nominal(163 * KIB, "B", _CAPABILITY),
            "registers.unit": nominal(65536, "1", _CAPABILITY),
            "registers.thread": nominal(255, "1", _CAPABILITY),
            "warp": nominal(32, "1", _CAPABILITY),
        },
    ),
)
