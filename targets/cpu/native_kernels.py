"""Native kernels of the CPU targets: each is a KERNEL in native/*.cpp, built into the plan, and a row here."""

from __future__ import annotations

from ..machine import Kernel


def _native_efficiency(rows: int) -> float:
    """Share of the roofline by rows: few rows stream the weights, many are a blocked product."""
    return 0.9 if rows <= 4 else 0.8


def _native(operation: str, function: str = "", efficiency: float = 0.8) -> Kernel:
    name = operation.removeprefix("ts.")
    return Kernel(f"native.{name}", operation, function or f"native.{name}", lambda _rows: efficiency, "set, not measured")


NATIVE_KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="native.linear",
        operation="ts.linear",
        function="native.linear",
        efficiency=_native_efficiency,
        receipt="set, not measured",
        prepack="panel",
        reads=("panel",),
        blocks=True,
    ),
    Kernel(
        name="native.embedding",
        operation="ts.embedding",
        function="native.embedding",
        efficiency=lambda _rows: 0.8,
        receipt="set, not measured",
        packs=(),
        reads=("none", "panel"),
        blocks=True,
    ),
    *(
        _native(f"ts.{name}")
        for name in (
            *("rms_norm", "add_rms_norm", "layer_norm", "rope_table", "rope", "rope_kv_write"),
            *("gated_activation", "activation", "add", "mul", "scale", "softcap", "gather_rows"),
        )
    ),
    _native("ts.attention", "native.kv_write+native.attention"),
    _native("ts.cached_attention", "native.attention"),
)
