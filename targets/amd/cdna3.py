"""MI300X and MI325X (gfx942): one processor, two memories. Their 8-bit floats are the FNUZ kinds, not those of OCP."""

from __future__ import annotations

from ..accelerator import accelerator
from ..rates import KIB, MIB, nominal

_MI300X = "AMD Instinct MI300X accelerator data sheet"
_MI325X = "AMD Instinct MI325X accelerator data sheet"
_PAPER = "AMD CDNA 3 Architecture, white paper"
_TABLE = "ROCm documentation, AMD GPU specifications"
_ISA = "AMD Instinct MI300 Instruction Set Architecture, reference guide"

_ARCH = "gfx942"
_INSTRUCTIONS = "mfma fp8-e4m3-fnuz fp8-e5m2-fnuz"

_RATES = {
    "compute.f32": nominal(163.4e12, "FLOP/s", f"{_MI300X}, FP32 vector and matrix"),
    "compute.bf16": nominal(1307.4e12, "FLOP/s", f"{_MI300X}, bfloat16 matrix, dense"),
    "compute.f16": nominal(1307.4e12, "FLOP/s", f"{_MI300X}, FP16 matrix, dense"),
    "compute.fp8": nominal(2614.9e12, "FLOP/s", f"{_MI300X}, FP8 matrix, dense"),
    "compute.int8": nominal(2614.9e12, "OP/s", f"{_MI300X}, INT8 matrix, dense"),
    "link.peer": nominal(448e9, "B/s", f"{_PAPER}, 7 Infinity Fabric links of 64 GB/s each direction"),
    "link.host": nominal(64e9, "B/s", f"{_MI300X}, PCIe 5.0 x16, each direction"),
}
_SIZES = {
    "cache.l2": nominal(32 * MIB, "B", f"{_TABLE}, 4 MiB for each of 8 dies; the Infinity Cache of 256 MiB lies behind it"),
    "units": nominal(304, "1", f"{_TABLE}, compute units"),
    "shared.unit": nominal(64 * KIB, "B", f"{_TABLE}, LDS"),
    "shared.block": nominal(64 * KIB, "B", f"{_TABLE}, LDS"),
    "registers.unit": nominal(131072, "1", f"{_TABLE}, VGPR file of 512 KiB"),
    "registers.thread": nominal(512, "1", f"{_ISA}, vector and accumulation registers"),
    "warp": nominal(64, "1", _TABLE),
}

CDNA3 = (
    accelerator(
        "mi300x",
        "AMD Instinct MI300X 192GB",
        kind="hip",
        arch=_ARCH,
        instructions=_INSTRUCTIONS,
        rates=_RATES | {"bandwidth": nominal(5.3e12, "B/s", f"{_MI300X}, peak memory bandwidth")},
        sizes=_SIZES | {"memory": nominal(192e9, "B", f"{_MI300X}, 192 GB HBM3")},
    ),
    accelerator(
        "mi325x",
        "AMD Instinct MI325X 256GB",
        kind="hip",
        arch=_ARCH,
        instructions=_INSTRUCTIONS,
        rates=_RATES | {"bandwidth": nominal(6e12, "B/s", f"{_MI325X}, peak memory bandwidth")},
        sizes=_SIZES | {"memory": nominal(256e9, "B", f"{_MI325X}, 256 GB HBM3E")},
    ),
)
