"""CPU targets: one row per instruction set, every rate with its unit and source.

Rates describe two cores of a server; they order candidates and make predictions, they limit nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...plans.errors import UsageError
from ...plans.schema import Rate
from ..machine import Machine
from .kernels import CPU_KERNELS

_ZEN3 = "benchmarks/machine_rates.py, 2 cores of an AMD EPYC (Zen 3), 2026-11-23"
_SAPPHIRE = "Intel Xeon (family 6 model 207, AMX), loaded, 2026-11-28"
_ZEN5 = "oneDNN GEMM and a read of 1 GB, 2 cores of an AMD EPYC (Zen 5), 2026-11"


def _rate(value: float, unit: str, source: str, *, nominal: bool = False) -> Rate:
    return Rate(value=value, unit=unit, source=source, basis="nominal" if nominal else "measured")


def _machine(name: str, description: str, features: str, rates: dict[str, Rate], flags: str = "") -> Machine:
    # resident after the largest step (benchmarks/memory_check.py): with torch and its libraries, and without
    overhead, native = 280 << 20, 48 << 20
    words = tuple(features.split()), tuple(flags.split())
    arm = "asimd" in words[0]
    return Machine(
        *(name, "cpu", description, words[0], rates, CPU_KERNELS, "exact", overhead, native, words[1]),
        vendor="Arm" if arm else "x86",
        arch="aarch64" if arm else "x86-64",
        family="cpu",
        state="compiled and checked" if arm else "ran on hardware",
    )


_NATIVE_CALL = _rate(0.4e-6, "s", "a norm of 1024 features and its barrier, 2 threads of an AMD EPYC (Zen 4), 2026-11-25")

_AVX2 = {
    "compute.f32": _rate(140e9, "FLOP/s", _ZEN3),
    "compute.bf16": _rate(17e9, "FLOP/s", _ZEN3),
    "bandwidth": _rate(28e9, "B/s", _ZEN3),
    "dispatch": _rate(12e-6, "s", _ZEN3),
    "dispatch.native": _NATIVE_CALL,
}
_AVX512 = {
    "compute.f32": _rate(280e9, "FLOP/s", "twice the vector width of cpu-avx2", nominal=True),
    "compute.bf16": _rate(280e9, "FLOP/s", "as float32: converted on the fly", nominal=True),
    "bandwidth": _rate(41e9, "B/s", _ZEN5),
    "dispatch": _rate(10e-6, "s", _ZEN5),
    "dispatch.native": _NATIVE_CALL,
}
_AVX512_BF16 = {
    "compute.f32": _rate(280e9, "FLOP/s", "twice the vector width of cpu-avx2", nominal=True),
    "compute.bf16": _rate(750e9, "FLOP/s", _ZEN5),
    "bandwidth": _rate(41e9, "B/s", _ZEN5),
    "dispatch": _rate(10e-6, "s", _ZEN5),
    "dispatch.native": _NATIVE_CALL,
}
_AVX512_AMX = {
    "compute.f32": _rate(330e9, "FLOP/s", "fused multiply-adds in registers, one core of the same Xeon, doubled", nominal=True),
    "compute.bf16": _rate(1.77e12, "FLOP/s", f"native linear, 512 rows, 1024 x 1024, one core doubled; {_SAPPHIRE}"),
    "bandwidth": _rate(30e9, "B/s", f"native linear, 1 row, 1024 x 4096 in bfloat16, one core doubled; {_SAPPHIRE}"),
    "dispatch": _rate(6e-6, "s", f"benchmarks/machine_rates.py; {_SAPPHIRE}"),
    "dispatch.native": _NATIVE_CALL,
}
_NEON = {
    "compute.f32": _rate(100e9, "FLOP/s", "two cores, 2 x 4 lanes x 2 operations x 3 GHz", nominal=True),
    "compute.bf16": _rate(50e9, "FLOP/s", "not measured; set below float32", nominal=True),
    "bandwidth": _rate(30e9, "B/s", "two memory channels", nominal=True),
    "dispatch": _rate(12e-6, "s", "as cpu-avx2", nominal=True),
}

_AVX2_FEATURES = "avx2 fma f16c bmi1 bmi2 movbe"
_AVX512_FEATURES = f"{_AVX2_FEATURES} avx512f avx512bw avx512cd avx512vl avx512dq"

CPU_MACHINES = (
    _machine(
        "cpu-avx512-amx",
        "x86-64 with AVX-512, VNNI, BF16 and AMX tiles",
        f"{_AVX512_FEATURES} avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8",
        _AVX512_AMX,
        "-march=x86-64-v4 -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8",
    ),
    _machine(
        "cpu-avx512-bf16",
        "x86-64 with AVX-512, VNNI and BF16",
        f"{_AVX512_FEATURES} avx512_vnni avx512_bf16",
        _AVX512_BF16,
        "-march=x86-64-v4 -mavx512vnni -mavx512bf16",
    ),
    _machine(
        "cpu-avx512-vnni",
        "x86-64 with AVX-512 and VNNI",
        f"{_AVX512_FEATURES} avx512_vnni",
        _AVX512,
        "-march=x86-64-v4 -mavx512vnni",
    ),
    _machine("cpu-avx512", "x86-64 with AVX-512", _AVX512_FEATURES, _AVX512, "-march=x86-64-v4"),
    _machine("cpu-avx2", "x86-64 with AVX2 and FMA", _AVX2_FEATURES, _AVX2, "-march=x86-64-v3"),
    _machine("cpu-neon", "64-bit Arm", "asimd", _NEON),
)
"""Best first: `cpu` becomes the first whose features the host has."""


def resolve_host_cpu(features: Iterable[str] | None = None) -> Machine:
    """The best CPU target this host can run.

    Raises UsageError when the host has none of the instruction sets.
    """
    present = set(_host_features() if features is None else features)
    for machine in CPU_MACHINES:
        if present.issuperset(machine.features):
            return machine
    raise UsageError(
        "this host's CPU is none of the CPU targets",
        where="--target cpu",
        expected=" or ".join(machine.name for machine in CPU_MACHINES),
        got="features " + " ".join(sorted(present))[:200],
        fix="name the target's CPU: tokenspeed-compile MODEL --target cpu-avx2",
    )


def _host_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    words = (line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features")) and ":" in line)
    return set(next(words, "").split())
