"""The target: AVX2 on eight cores with four memory channels.

It differs from `cpu-avx2` in its rates alone: kernels, compiler flags and the memory that a process takes are that one's.
"""

from __future__ import annotations

from dataclasses import replace

from tokenspeed.targets.cpu.machines import CPU_MACHINES
from tokenspeed.targets.rates import nominal

_AVX2 = next(machine for machine in CPU_MACHINES if machine.name == "cpu-avx2")

_FIGURES = {
    "compute.f32": nominal(8 * 2 * 2 * 8 * 3e9, "FLOP/s", "8 cores, 2 units of 8 lanes, 2 operations each, 3 GHz"),
    "compute.bf16": nominal(68e9, "FLOP/s", "four times cpu-avx2"),
    "bandwidth": nominal(4 * 25.6e9, "B/s", "4 channels of DDR4-3200"),
}

TARGETS = (
    replace(
        _AVX2,
        name="cpu-avx2-quad",
        description="x86-64 with AVX2 and FMA, 8 cores, 4 memory channels",
        rates=_AVX2.rates | _FIGURES,
        state="compiled and checked",
    ),
)
