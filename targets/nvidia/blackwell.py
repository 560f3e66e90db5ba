"""B200 (compute capability 10.0)."""

from __future__ import annotations

from ..accelerator import accelerator
from ..rates import KIB, MIB, nominal

_BOARD = "NVIDIA HGX B200 and DGX B200 data sheets, an eighth of the board's figure"
_CAPABILITY = "CUDA C++ Programming Guide, technical specifications per compute capability, 10.0"
_DRIVER = "device properties of a B200 as others print them (github.com/pytorch/ao, pull request 4002)"

BLACKWELL = (
    accelerator(
        "b200",
        "NVIDIA B200 180GB SXM6",
        kind="cuda",
        arch="sm_100a",
        instructions="mma cp.async tcgen05 tma cluster programmatic-launch fp8-e4m3 fp8-e5m2 mxfp8 mxfp4 nvfp4",
        rates={
            "compute.f32": nominal(75e12, "FLOP/s", f"{_BOARD}, FP32"),
            "compute.bf16": nominal(2250e12, "FLOP/s", f"{_BOARD}, BF16 tensor core, half of the sparse figure"),
            "compute.f16": nominal(2250e12, "FLOP/s", f"{_BOARD}, FP16 tensor core, half of the sparse figure"),
            "compute.fp8": nominal(4500e12, "FLOP/s", f"{_BOARD}, FP8 tensor core, half of the sparse figure"),
            "compute.int8": nominal(4500e12, "OP/s", f"{_BOARD}, INT8 tensor core, half of the sparse figure"),
            "bandwidth": nominal(8e12, "B/s", f"{_BOARD}, HBM3e 64 TB/s; others compute 7.7 TB/s from clock and bus width"),
            "link.peer": nominal(900e9, "B/s", f"{_BOARD}, NVLink 1.8 TB/s in both directions together"),
            "link.host": nominal(64e9, "B/s", "PCIe 5.0 x16, each direction"),
        },
        sizes={
            "memory": nominal(180e9, "B", f"{_BOARD}, 1,440 GB HBM3e"),
            "cache.l2": nominal(126 * MIB, "B", _DRIVER),
            "units": nominal(148, "1", _DRIVER),
            "shared.unit": nominal(228 * KIB, "B", _CAPABILITY),
            "shared.block": nominal(227 * KIB, "B", _CAPABILITY),
            "registers.unit": nominal(65536, "1", _CAPABILITY),
            "registers.thread": nominal(255, "1", _CAPABILITY),
            "warp": nominal(32, "1", _CAPABILITY),
        },
    ),
)
