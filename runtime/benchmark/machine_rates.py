"""What this machine can do at best: how fast it reads memory and multiplies matrices, and what one small launch costs.

Best of several runs, as peak rates are: whatever else runs can only slow one down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec
import torch

from ...plans.program import Attribute
from ..device_arrays import TORCH_TYPES
from ..functions.base import Context, Launch, Operands
from ..functions.registry import lookup

BUFFER_BYTES = 512 << 20  # far beyond any cache
GEMM_ROWS, GEMM_SIZE = 512, 4096
_PACK_ROWS = 64
_TINY_LAUNCHES = 2000

RateType = Literal["f32", "bf16"]


class MachineRates(msgspec.Struct, frozen=True):
    """Bytes per second and floating-point operations per second, in one type with its matrix kernel ("onednn" packed weights,
    or "aten" where oneDNN cannot pack that type)."""

    dtype: str
    gemm_kernel: str
    read_bandwidth: float
    gemm_rate: float


def measure_rates(dtype: str, repeats: int = 6, buffer_bytes: int = BUFFER_BYTES) -> MachineRates:
    """`read_bandwidth` is the better of a plain sum and a matrix-vector product over one big buffer."""
    rate, kernel = gemm_rate(dtype, max(2, repeats // 2))
    read = max(sum_bandwidth(repeats, buffer_bytes), gemv_bandwidth("f32", repeats, buffer_bytes)[0])
    return MachineRates(dtype, kernel, read, rate)


def better(first: MachineRates, second: MachineRates) -> MachineRates:
    """The higher of each rate: two looks at the same machine."""
    read, gemm = max(first.read_bandwidth, second.read_bandwidth), max(first.gemm_rate, second.gemm_rate)
    return msgspec.structs.replace(first, read_bandwidth=read, gemm_rate=gemm)


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` runs, after one that is not counted."""
    run()
    shortest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def sum_bandwidth(repeats: int = 6, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second read by a sum over float32."""
    buffer = torch.ones(buffer_bytes // 4)
    return buffer_bytes / best_seconds(buffer.sum, repeats)


def gemv_bandwidth(dtype: str, repeats: int = 6, buffer_bytes: int = BUFFER_BYTES) -> tuple[float, str]:
    """Bytes of weights per second read by a one-row linear, as decoding at batch 1 does; and its kernel."""
    element = torch.empty((), dtype=TORCH_TYPES[dtype]).element_size()
    rows = max(1, buffer_bytes // (GEMM_SIZE * element))
    launch, kernel = _linear(1, rows, dtype)
    return rows * GEMM_SIZE * element / best_seconds(launch, repeats), kernel


def gemm_rate(dtype: str, repeats: int = 3, rows: int = GEMM_ROWS, size: int = GEMM_SIZE) -> tuple[float, str]:
    """Floating-point operations per second of linear [rows, size] x [size, size], and its kernel."""
    launch, kernel = _linear(rows, size, dtype, size)
    return 2.0 * rows * size * size / best_seconds(launch, repeats), kernel


def _linear(rows: int, outputs: int, dtype: str, inputs: int = GEMM_SIZE) -> tuple[Launch, str]:
    kind = TORCH_TYPES[dtype]
    x, out = torch.ones(rows, inputs, dtype=kind), torch.empty(rows, outputs, dtype=kind)
    weight = torch.full((outputs, inputs), 2.0**-6, dtype=kind)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
    except RuntimeError:  # this machine's oneDNN has no such kernel for this type
        return _bound("linear", [x, weight], [out]), "aten"
    return _bound("linear_onednn", [x, packed], [out]), "onednn"


def dispatch_seconds() -> dict[str, float]:
    """Seconds of one launch of each function of a decoder layer on one row of 64 columns: the cost of launching itself."""
    row, gated = torch.ones(1, 64), torch.ones(1, 128)
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64), _PACK_ROWS)
    weight, outs = torch.ones(64), [torch.empty(1, 64) for _ in range(2)]
    bound = {
        "linear_onednn": _bound("linear_onednn", [row, packed], outs[:1]),
        "linear": _bound("linear", [row, torch.ones(64, 64)], outs[:1]),
        "add": _bound("add", [row, row], outs[:1]),
        "rms_norm": _bound("rms_norm", [row, weight], outs[:1], eps=1e-5),
        "add_rms_norm": _bound("add_rms_norm", [row, row, weight], outs, eps=1e-5),
        "gated_activation": _bound("gated_activation", [gated[:, :64], gated[:, 64:]], outs[:1], activation="silu"),
    }
    return {name: best_seconds(lambda launch=launch: _many(launch), 3) / _TINY_LAUNCHES for name, launch in bound.items()}


def _many(launch: Launch) -> None:
    for _ in range(_TINY_LAUNCHES):
        launch()


def _bound(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor], **attributes: Attribute) -> Launch:
    return lookup(name)(Operands(name, inputs, outputs, attributes, Context()))
