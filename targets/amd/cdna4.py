"""MI355X (gfx950)."""

from __future__ import annotations

from ..accelerator import accelerator
from ..rates import KIB, MIB, nominal

_SHEET = "AMD Instinct MI355X GPU data sheet"
_PAPER = "AMD CDNA 4 Architecture, white paper"
_TABLE = "ROCm documentation, AMD GPU specifications"
_ISA = "AMD Instinct CDNA 4 Instruction Set Architecture, reference guide"

CDNA4 = (
    accelerator(
        "mi355x",
        "AMD Instinct MI355X 288GB",
        kind="hip",
        arch="gfx950",
        instructions="mfma mfma-scale fp8-e4m3 fp8-e5m2 mxfp8 mxfp6 mxfp4 buffer-load-to-lds",
        rates={
            "compute.f32": nominal(157.3e12, "FLOP/s", f"{_SHEET}, FP32 vector and matrix"),
            "compute.bf16": nominal(2516.6e12, "FLOP/s", f"{_SHEET}, bfloat16 matrix, dense"),
            "compute.f16": nominal(2516.6e12, "FLOP/s", f"{_SHEET}, FP16 matrix, dense"),
            "compute.fp8": nominal(5033.2e12, "FLOP/s", f"{_SHEET}, OCP FP8 matrix, dense"),
            "compute.int8": nominal(5033.2e12, "OP/s", f"{_SHEET}, INT8 matrix, dense"),
            "bandwidth": nominal(8e12, "B/s", f"{_SHEET}, peak memory bandwidth"),
            "link.peer": nominal(537.6e9, "B/s", f"{_PAPER}, 7 Infinity Fabric links of 76.8 GB/s each direction"),
            "link.host": nominal(64e9, "B/s", f"{_SHEET}, PCIe 5.0 x16, each direction"),
        },
        sizes={
            "memory": nominal(288e9, "B", f"{_SHEET}, 288 GB HBM3E"),
            "cache.l2": nominal(
                32 * MIB, "B", f"{_TABLE}, 4 MiB for each of 8 dies; the Infinity Cache of 256 MiB lies behind it"
            ),
            "units": nominal(256, "1", f"{_TABLE}, compute units"),
            "shared.unit": nominal(160 * KIB, "B", f"{_TABLE}, LDS"),
            "shared.block": nominal(160 * KIB, "B", f"{_TABLE}, LDS"),
            "registers.unit": nominal(131072, "1", f"{_TABLE}, VGPR file of 512 KiB"),
            "registers.thread": nominal(512, "1", f"{_ISA}, vector and accumulation registers"),
            "warp": nominal(64, "1", _TABLE),
        },
    ),
)
