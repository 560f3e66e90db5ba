"""Targets are rows of data: every rate has a unit and a source, features tell machines apart, names resolve."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.program import NATIVE
from tokenspeed.runtime.functions.registry import lookup
from tokenspeed.targets.cpu.build import kernel_names
from tokenspeed.targets.cpu.machines import CPU_MACHINES, resolve_host_cpu
from tokenspeed.targets.machine import Machine
from tokenspeed.targets.registry import TARGETS, find_target

AVX2, AVX512 = "avx2 fma f16c bmi1 bmi2 movbe", "avx512f avx512bw avx512cd avx512vl avx512dq"
UNITS = {"compute": "FLOP/s", "bandwidth": "B/s", "dispatch": "s"}


@pytest.mark.parametrize("machine", TARGETS.values(), ids=lambda machine: machine.name)
def test_rates_have_units_and_sources(machine: Machine) -> None:
    assert {"compute.f32", "compute.bf16", "bandwidth", "dispatch"} <= machine.rates.keys()
    for name, rate in machine.rates.items():
        assert rate.value > 0 and rate.unit == UNITS[name.split(".")[0]] and rate.source
        assert rate.basis in {"measured", "nominal"}
    assert machine.overhead_bytes > 0 and machine.description


@pytest.mark.parametrize("machine", TARGETS.values(), ids=lambda machine: machine.name)
def test_kernels_are_distinct_sound_and_exist_in_the_runtime(machine: Machine) -> None:
    names = [(kernel.operation, kernel.name) for kernel in machine.kernels]
    assert len(set(names)) == len(names)
    for kernel in machine.kernels:
        if kernel.operation == "ts.aten":
            continue  # its function is that of the ATen operation
        for function in kernel.function.split("+"):
            if function.startswith(NATIVE):
                assert function.removeprefix(NATIVE) in kernel_names()
            else:
                lookup(function)
        assert all(0 < kernel.efficiency(rows) <= 1 for rows in (1, 4, 16, 64, 512, 4096)) and kernel.receipt


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (f"{AVX2} sse4_2", "cpu-avx2"),
        (f"{AVX2} {AVX512}", "cpu-avx512"),
        (f"{AVX2} {AVX512} avx512_vnni", "cpu-avx512-vnni"),
        (f"{AVX2} {AVX512} avx512_vnni avx512_bf16 amx_tile", "cpu-avx512-bf16"),
        (f"{AVX2} {AVX512} avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8", "cpu-avx512-amx"),
        ("fp asimd", "cpu-neon"),
    ],
)
def test_cpu_resolves_to_the_best_named_instruction_set(features: str, name: str) -> None:
    assert find_target("cpu", features.split()).name == name


def test_a_host_without_any_of_them_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="none of the CPU targets") as refused:
        resolve_host_cpu(["sse2"])
    assert all(machine.name in refused.value.expected for machine in CPU_MACHINES) and "sse2" in refused.value.got


def test_unknown_targets_are_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="no target 'mi999'") as refused:
        find_target("mi999")
    assert "cpu-avx2" in refused.value.expected and refused.value.fix.endswith("--list-targets")


def test_better_machines_come_first() -> None:
    for better, lesser in pairwise(CPU_MACHINES):
        assert not set(better.features) <= set(lesser.features)
