"""The kernel's row: what it computes, when it refuses, and how good it is."""

from __future__ import annotations

from pathlib import Path

from tokenspeed.ir.mlir import ir
from tokenspeed.ir.module import text_attribute
from tokenspeed.targets.machine import Kernel, KernelSet, Machine


def _needs_silu(operation: ir.Operation, _machine: Machine) -> str | None:
    kind = text_attribute(operation, "activation")
    return None if kind == "silu" else f"computes silu, not {kind}"


KERNELS = KernelSet(
    family="cpu",
    kernels=(
        Kernel(
            name="example.gated_silu",
            operation="ts.gated_activation",
            function="native.example_gated_silu",
            efficiency=lambda _rows: 0.85,
            receipt="set, so that the example is chosen; not measured",
            refuses=_needs_silu,
        ),
    ),
    sources=(Path(__file__).parent / "native" / "example_gated_silu.cpp",),
)
