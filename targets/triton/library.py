"""The kernels that accelerators offer: one row for each operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...ir.mlir import ir
from ...plans.device_kernels import DEVICE
from ...plans.weight_layout import WEIGHT_BLOCKS
from ..collective import LINKS, measured_links
from ..machine import Kernel, Machine
from .attention import attention, cached_attention
from .attention import measured as measured_attention
from .block_linear import block_linear
from .block_rows import block_embedding
from .block_tiles import RECEIPT as BLOCK_RECEIPT
from .block_tiles import efficiency as block_efficiency
from .elementwise import activation, cast, mul, scale, softcap
from .exchange import all_gather, all_reduce_or_nothing
from .few_experts import add_or_experts
from .gated_linear import gated_activation_or_both
from .kernel import DeviceOperation, DeviceSetting
from .latent import latent_attention
from .linear import measured as measured_linear
from .linear_tiles import RECEIPT, efficiency
from .mixture import measured_experts, moe_experts, moe_route
from .normed_linear import add_rms_norm_or_nothing, linear_after_norm, rms_norm_or_nothing
from .norms import layer_norm
from .operand import layout_of
from .rope import rope, rope_kv_write, rope_table
from .rows import embedding, gather_rows


def _row(operation: str, device: Callable[[ir.Operation, DeviceSetting], DeviceOperation], efficiency: float = 0.8) -> Kernel:
    name = operation.removeprefix("ts.")
    return Kernel(
        name=f"triton.{name}",
        operation=operation,
        function=f"{DEVICE}{name}",
        efficiency=lambda _rows: efficiency,
        receipt="set, not measured",
        device=device,
    )


def _collective(name: str) -> Kernel:
    function = name.partition(".")[2]
    return Kernel(name, f"ts.{function}", function, lambda _rows: 1.0, LINKS, measured=measured_links)


LIBRARY_KERNELS: tuple[Kernel, ...] = (
    Kernel("torch.aten", "ts.aten", "aten", lambda _rows: 0.3, "set, not measured"),
    # one row of each sequence at a time, each call of the body an ATen call
    Kernel("torch.recurrence", "ts.recurrence", "recurrence", lambda _rows: 0.05, "set, not measured"),
    replace(_collective("exchange+nccl.all_reduce"), device=all_reduce_or_nothing),
    replace(_collective("exchange+nccl.all_gather"), device=all_gather),
    Kernel("nccl.send", "ts.send", "send", lambda _rows: 1.0, LINKS),
    Kernel("nccl.receive", "ts.receive", "receive", lambda _rows: 1.0, LINKS),
    _collective("nccl.reduce_scatter"),
    Kernel("torch.take_part", "ts.take_part", "take_part", lambda _rows: 0.5, "set, not measured"),
)
"""What has no kernel of its own: torch runs it on the device, call by call beside the captured graphs; collectives in them."""


def _of_blocks(row: Kernel, *operands: int) -> Kernel:
    """The row's twin for operands in blocks, one of which at least must be."""

    def refuses(operation: ir.Operation, _machine: Machine) -> str | None:
        some = any(layout_of(operation.operands[at]).dtype in WEIGHT_BLOCKS for at in operands)
        return None if some else "reads weights in blocks only"

    return replace(
        row, name=f"{row.name}_blocks", refuses=refuses, prepack="planes", packs=operands, reads=("planes",), blocks=WEIGHT_BLOCKS
    )


TRITON_KERNELS: tuple[Kernel, ...] = (
    *LIBRARY_KERNELS,
    _row("ts.embedding", embedding),
    _of_blocks(_row("ts.embedding", block_embedding), 1),
    _row("ts.gather_rows", gather_rows),
    replace(_row("ts.linear", linear_after_norm), efficiency=efficiency, receipt=RECEIPT, measured=measured_linear),
    _of_blocks(replace(_row("ts.linear", block_linear), efficiency=block_efficiency, receipt=BLOCK_RECEIPT), 1),
    _row("ts.rms_norm", rms_norm_or_nothing),
    _row("ts.add_rms_norm", add_rms_norm_or_nothing),
    _row("ts.layer_norm", layer_norm),
    _row("ts.rope_table", rope_table),
    _row("ts.rope", rope),
    _row("ts.rope_kv_write", rope_kv_write),
    replace(_row("ts.attention", attention), measured=measured_attention),
    replace(_row("ts.cached_attention", cached_attention), measured=measured_attention),
    _row("ts.latent_attention", latent_attention),
    _row("ts.gated_activation", gated_activation_or_both),
    _row("ts.activation", activation),
    _row("ts.add", add_or_experts),
    _row("ts.mul", mul),
    _row("ts.scale", scale),
    _row("ts.softcap", softcap),
    _row("ts.cast", cast),
    _row("ts.moe_route", moe_route),
    replace(_row("ts.moe_experts", moe_experts), measured=measured_experts),
    _of_blocks(_row("ts.moe_experts", moe_experts), 3, 4),
)
