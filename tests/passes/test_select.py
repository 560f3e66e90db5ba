"""Choosing kernels: which, why, and what happens when none can run an operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenspeed.ir import module
from tokenspeed.passes.select import Workload, kernel_named, select
from tokenspeed.plans.errors import ModelError
from tokenspeed.plans.schema import Decision
from tokenspeed.targets.machine import Figure, Machine
from tokenspeed.targets.registry import TARGETS, find_target

from ..ir.modules import decoder
from .test_fusions import fused

LOADS = (Workload(4, 4, 0.9), Workload(512, 1, 0.1))
NO_NATIVE = "not in this test"


def decisions(target: str, dtype: str, text: str = "", native: str | None = NO_NATIVE) -> tuple[Decision, ...]:
    return select(fused(text or decoder(dtype=dtype)), find_target(target), LOADS, native)


@pytest.mark.parametrize(
    ("target", "dtype", "kernel"),
    [
        ("cpu-avx2", "f32", "onednn.linear_prepacked"),
        ("cpu-avx2", "bf16", "aten.linear"),
        ("cpu-avx512", "bf16", "onednn.linear_prepacked"),
        ("cpu-avx512-bf16", "bf16", "onednn.linear_prepacked"),
        ("cpu-neon", "bf16", "onednn.linear_prepacked"),
    ],
)
def test_weights_are_packed_where_the_machine_can(target: str, dtype: str, kernel: str) -> None:
    linears = [item for item in decisions(target, dtype) if item.operation == "ts.linear"]
    assert {item.kernel for item in linears} == {kernel} and len(linears) == 5
    packed = kernel.startswith("onednn")
    for item in linears:
        assert item.runner_up == ("aten.linear" if packed else "")
        assert ("faster than aten.linear" in item.reason) if packed else ("onednn.linear_prepacked: oneDNN" in item.reason)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_native_kernels_run_everything_and_win(dtype: str) -> None:
    found = decisions("cpu-avx2", dtype, native=None)
    assert all(item.kernel.startswith("native.") for item in found)


def test_a_missing_compiler_is_told(dtype: str = "bf16") -> None:
    found = decisions("cpu-avx2", dtype, native="no C++ compiler on this host")
    linear = next(item for item in found if item.operation == "ts.linear")
    assert linear.kernel == "aten.linear" and "native.linear: no C++ compiler on this host" in linear.reason


def test_only_native_kernels_read_blocks() -> None:
    parsed = fused(decoder())
    for operation in module.walk(module.step_block(parsed)):
        if operation.name == "ts.weight" and "o_proj" in module.text_attribute(operation, "sym"):
            operation.attributes["stored"] = module.text("q8_0")
    found = {item.label: item for item in select(parsed, find_target("cpu-avx2"), LOADS)}
    assert "aten.linear: does not read q8_0 blocks" in found["layers.{i}.o_proj"].reason
    with pytest.raises(ModelError, match=r"no kernel of target cpu-avx2 can run ts\.linear"):
        select(parsed, find_target("cpu-avx2"), LOADS, NO_NATIVE)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_operation_is_decided_once_with_sound_figures(target: str) -> None:
    parsed = fused(decoder(layers=6))
    machine = find_target(target)
    found = select(parsed, machine, LOADS, NO_NATIVE)
    chosen = [item for item in module.walk(module.step_block(parsed)) if "kernel" in item.attributes]
    assert [item.name for item in chosen] == [item.operation for item in found]
    assert [kernel_named(machine, item).name for item in chosen] == [item.kernel for item in found]
    for operation, item in zip(chosen, found, strict=True):
        assert item.predicted_seconds >= machine.dispatch(native=False)
        assert 0 <= item.roofline_share < 1
        assert operation.parent is not None
        assert item.times == (6 if operation.parent.name == "ts.repeat" else 1)
        assert item.bound in {"bandwidth", "compute", "dispatch"}
        assert item.reason and item.rows == 4


def test_operations_after_gather_rows_are_judged_at_the_logit_rows() -> None:
    found = select(fused(decoder()), find_target("cpu-avx2"), (Workload(512, 1, 1.0),), NO_NATIVE)
    rows = {item.label: item.rows for item in found if item.operation == "ts.linear"}
    assert rows["lm_head"] == 1 and rows["layers.{i}.o_proj"] == 512


def test_bounds_follow_the_sizes() -> None:
    """One row of a large matrix is limited by memory, many rows by arithmetic, a small operation by its dispatch."""
    text = decoder().replace("48x32", "65536x32").replace("x48xf32", "x65536xf32").replace("32x48", "32x65536")
    one = select(fused(text), find_target("cpu-avx2"), (Workload(1, 1, 1.0),), NO_NATIVE)
    many = select(fused(text), find_target("cpu-avx2"), (Workload(4096, 1, 1.0),), NO_NATIVE)
    assert {item.label: item.bound for item in one}["layers.{i}.gate_proj+up_proj"] == "bandwidth"
    assert {item.label: item.bound for item in many}["layers.{i}.down_proj"] == "compute"
    assert {item.operation: item.bound for item in one}["ts.rms_norm"] == "dispatch"


def test_no_kernel_is_an_error_that_lists_why() -> None:
    machine = find_target("cpu-avx2")
    only_packed = replace(machine, kernels=tuple(kernel for kernel in machine.kernels if kernel.name != "aten.linear"))
    with pytest.raises(ModelError, match=r"no kernel of target cpu-avx2 can run ts\.linear") as refused:
        select(fused(decoder(dtype="bf16")), only_packed, LOADS, NO_NATIVE)
    assert refused.value.where == "layers.{i}.q_proj+k_proj+v_proj"
    assert "onednn.linear_prepacked: oneDNN packs bf16 weights only with AVX-512" in refused.value.got

    without = replace(machine, kernels=tuple(kernel for kernel in machine.kernels if kernel.operation != "ts.rope_table"))
    with pytest.raises(ModelError, match="no kernel registered"):
        select(fused(decoder()), without, LOADS, NO_NATIVE)


def test_traffic_decides_between_kernels() -> None:
    """A kernel that is good at one row and bad at many wins or loses with the share of decode steps."""
    machine = find_target("cpu-avx2")
    linear = next(kernel for kernel in machine.kernels if kernel.name == "aten.linear")
    small = replace(linear, name="a.small", efficiency=lambda rows: 1.0 if rows == 1 else 1e-4)
    large = replace(linear, name="b.large", efficiency=lambda rows: 1e-4 if rows == 1 else 1.0)
    others = tuple(kernel for kernel in machine.kernels if kernel.operation != "ts.linear")
    both: Machine = replace(machine, kernels=(*others, small, large))

    def chosen(decode_share: float) -> str:
        loads = (Workload(1, 1, decode_share), Workload(512, 1, 1 - decode_share))
        return next(item.kernel for item in select(fused(decoder()), both, loads, NO_NATIVE) if item.operation == "ts.linear")

    assert chosen(0.99999) == "a.small" and chosen(0.1) == "b.large"


def test_what_was_measured_goes_before_a_kernels_efficiency() -> None:
    machine = find_target("cpu-avx2")
    linear = next(kernel for kernel in machine.kernels if kernel.name == "aten.linear")
    figures = {"fast": Figure(0.9, "measured: fast"), "slow": Figure(0.1, "measured: slow"), "told": Figure(None, "a receipt")}

    def chosen(*names: str) -> Decision:
        kernels = [replace(linear, name=name, measured=lambda *_, at=name: figures[at]) for name in names]
        others = [kernel for kernel in machine.kernels if kernel.operation != "ts.linear"]
        found = select(fused(decoder()), replace(machine, kernels=(*kernels, *others)), LOADS, NO_NATIVE)
        return next(item for item in found if item.operation == "ts.linear")

    best = chosen("slow", "fast")
    assert best.kernel == "fast" and best.runner_up == "slow" and best.reason.endswith("; measured: fast")
    assert best.roofline_share == pytest.approx(0.9)
    # a receipt without a share leaves the cost as it is
    assert chosen("told").predicted_seconds == chosen("told", "slow").predicted_seconds != best.predicted_seconds
    assert chosen("told").reason.endswith("; a receipt")
