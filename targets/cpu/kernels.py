"""Kernels of the CPU targets. One of a library is a row here and a function in runtime/functions; native ones have rows of
their own (native_kernels.py)."""

from __future__ import annotations

from ...ir.mlir import ir
from ...ir.types import dtype_of
from ..collective import LINKS
from ..machine import Kernel, Machine
from .native_kernels import NATIVE_KERNELS

_MEASURED = "2 cores of an AMD EPYC (Zen 3), torch 2.13, 2026-11-23"


def _needs_bf16_gemm(operation: ir.Operation, machine: Machine) -> str | None:
    if dtype_of(operation.operands[0]) == "bf16" and "avx512bw" not in machine.features and machine.name != "cpu-neon":
        return "oneDNN packs bf16 weights only with AVX-512"
    return None


def _prepacked_efficiency(rows: int) -> float:
    """Share of the roofline by rows: 4096x1024 float32, weights packed for 64 rows."""
    return 0.95 if rows == 1 else 0.62 if rows <= 8 else 0.8 if rows <= 32 else 0.95


def _unpacked_efficiency(rows: int) -> float:
    return 0.5 if rows == 1 else 0.2 if rows <= 8 else 0.27 if rows <= 32 else 0.7


def _simple(operation: str, efficiency: float = 0.5) -> Kernel:
    name = operation.removeprefix("ts.")
    return Kernel(f"torch.{name}", operation, name, lambda _rows: efficiency, "set, not measured")


CPU_KERNELS: tuple[Kernel, ...] = (
    *NATIVE_KERNELS,
    Kernel("aten", "ts.aten", "aten", lambda _rows: 0.3, "set, not measured"),
    Kernel("onednn.linear_prepacked", "ts.linear", "linear_onednn", _prepacked_efficiency, _MEASURED, _needs_bf16_gemm, "onednn"),
    Kernel("aten.linear", "ts.linear", "linear", _unpacked_efficiency, _MEASURED),
    Kernel("torch.attention_with_kv_write", "ts.attention", "kv_write+attention", lambda _rows: 0.5, "set, not measured"),
    Kernel("torch.paged_attention", "ts.cached_attention", "attention", lambda _rows: 0.5, "set, not measured"),
    Kernel(
        "torch.latent_attention",
        "ts.latent_attention",
        "latent_kv_write+latent_attention",
        lambda _rows: 0.5,
        "set, not measured",
    ),
    # one row of each sequence at a time, each call of the body an ATen call
    Kernel("torch.recurrence", "ts.recurrence", "recurrence", lambda _rows: 0.05, "set, not measured"),
    Kernel("gloo.all_reduce", "ts.all_reduce", "all_reduce", lambda _rows: 1.0, LINKS),
    Kernel("gloo.all_gather", "ts.all_gather", "all_gather", lambda _rows: 1.0, LINKS),
    Kernel("gloo.send", "ts.send", "send", lambda _rows: 1.0, LINKS),
    Kernel("gloo.receive", "ts.receive", "receive", lambda _rows: 1.0, LINKS),
    Kernel("gloo.reduce_scatter", "ts.reduce_scatter", "reduce_scatter", lambda _rows: 1.0, LINKS),
    _simple("ts.take_part"),
    Kernel("gloo.dispatch", "ts.dispatch", "dispatch", lambda _rows: 1.0, LINKS),
    Kernel("gloo.combine", "ts.combine", "combine", lambda _rows: 1.0, LINKS),
    _simple("ts.embedding"),
    _simple("ts.rms_norm"),
    _simple("ts.add_rms_norm"),
    _simple("ts.layer_norm"),
    _simple("ts.rope_table"),
    _simple("ts.rope"),
    _simple("ts.rope_kv_write"),
    _simple("ts.gated_activation"),
    _simple("ts.activation"),
    _simple("ts.scale"),
    _simple("ts.softcap"),
    _simple("ts.moe_route"),
    _simple("ts.moe_experts"),
    Kernel("torch.cast", "ts.cast", "copy", lambda _rows: 0.5, "set, not measured"),
    _simple("ts.add"),
    _simple("ts.mul"),
    _simple("ts.gather_rows"),
)
