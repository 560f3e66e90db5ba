"""Native kernels of the CPU targets: each is a KERNEL in native/*.cpp, built into the plan, and a row here."""

from __future__ import annotations

from ...plans.weight_layout import PANEL_BLOCKS
from ..machine import Kernel

_LINEAR_SHARES = ((1, 0.86), (2, 0.84), (4, 0.82), (8, 0.81), (16, 0.68), (32, 0.85), (64, 0.87), (512, 0.98))
_LINEAR_RECEIPT = "measured in bfloat16 by benchmarks/native_linear.py, 2 cores of an AMD EPYC (Zen 4), loaded, 2026-11-25"


def _linear_efficiency(rows: int) -> float:
    """Share of the roofline at the largest measured number of rows that is not above `rows`."""
    return max((least, share) for least, share in _LINEAR_SHARES if least <= max(rows, 1))[1]


def _native(operation: str, function: str = "", efficiency: float = 0.8) -> Kernel:
    name = operation.removeprefix("ts.")
    return Kernel(f"native.{name}", operation, function or f"native.{name}", lambda _rows: efficiency, "set, not measured")


NATIVE_KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="native.linear",
        operation="ts.linear",
        function="native.linear",
        efficiency=_linear_efficiency,
        receipt=_LINEAR_RECEIPT,
        prepack="panel",
        reads=("panel",),
        blocks=PANEL_BLOCKS,
    ),
    Kernel(
        name="native.moe_experts",
        operation="ts.moe_experts",
        function="native.moe_experts",
        efficiency=lambda _rows: 0.8,
        receipt="set, not measured",
        prepack="panel",
        packs=(3, 4),
        reads=("panel",),
        blocks=PANEL_BLOCKS,
    ),
    Kernel(
        name="native.embedding",
        operation="ts.embedding",
        function="native.embedding",
        efficiency=lambda _rows: 0.8,
        receipt="set, not measured",
        packs=(),
        reads=("none", "panel"),
        blocks=PANEL_BLOCKS,
    ),
    *(
        _native(f"ts.{name}")
        for name in (
            *("rms_norm", "add_rms_norm", "layer_norm", "rope_table", "rope", "rope_kv_write"),
            *("gated_activation", "activation", "add", "mul", "scale", "softcap", "gather_rows", "moe_route"),
        )
    ),
    _native("ts.attention", "native.kv_write+native.attention"),
    _native("ts.cached_attention", "native.attention"),
)
