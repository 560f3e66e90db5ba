"""A step's cost tables, of a module as one rank has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import msgspec

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.rows import count_rows, rows_worked_on
from ..plans.host_tier import HOST_LINK
from ..plans.schema import CostRow, Rate
from ..targets.collective import seconds_of
from ..targets.cost import attention_width, cost_of
from ..targets.machine import Machine
from ..targets.triton.attention import chunk_grid
from ..targets.triton.kernel import DeviceSetting
from .kv_geometry import ATTENTION

_MEASURED_RATES = {"products": "products.share", "overlap": "products.overlap", "attention": "attention.compute"}
"""Rates of steps that a target may have been measured for, by their names in a plan."""

_MEASURED_IN = {"bf16", "f16"}


def rates_of(machine: Machine, dtype: str, *, native: bool) -> dict[str, Rate]:
    """What the evaluator reads; `native`: all of the step is launched by the project's own code."""
    found = {
        "compute": machine.compute_rate(dtype),
        "bandwidth": machine.rates["bandwidth"],
        "dispatch": machine.dispatch_rate(native),
        HOST_LINK: _host_link(machine),
    }
    if dtype in _MEASURED_IN:
        found |= {name: machine.rates[figure] for name, figure in _MEASURED_RATES.items() if figure in machine.rates}
    return found


def _host_link(machine: Machine) -> Rate:
    """How fast blocks go to the host's memory, or come from there; where that is the device's own, they are copied within it."""
    if "link.host" in machine.rates:
        return machine.rates["link.host"]
    memory = machine.rates["bandwidth"]
    source = f"half of bandwidth, as a copy reads and writes each byte: {memory.source}"
    return msgspec.structs.replace(memory, value=memory.value / 2, source=source, basis="nominal")


def cost_rows(
    module: ir.Module, machine: Machine, sizes: Mapping[int, int], setting: DeviceSetting | None = None
) -> tuple[CostRow, ...]:
    """Work of a step at `sizes` (rows to logit rows). With `setting`, that of the kernels, shares of attention are known too."""
    counted, counts = _counted(module), count_rows(modules.step_block(module))
    found = [_cost_row(counted, counts, machine, rows, logit_rows) for rows, logit_rows in sorted(sizes.items())]
    if setting is not None and "attention.compute" in machine.rates:
        found = [_with_attention(row, counted, setting) for row in found]
    return tuple(found)


def attention_flops(module: ir.Module) -> float:
    """For each pair of a query and a key: 4 * heads * head_dim over all layers where keys and values are cached."""
    return 4.0 * sum(attention_width(operation) * times for operation, times in _counted(module) if operation.name in ATTENTION)


def _with_attention(row: CostRow, counted: Sequence[tuple[ir.Operation, int]], setting: DeviceSetting) -> CostRow:
    """With the share of its rate that attention of prompts reaches: all units take tiles, or shares of tiles, in rounds, of which
    few may have a part in the last, and shares go through a slower kernel."""
    units, cut = setting.accelerator.units, setting.accelerator.rates.get("attention.cut")
    weight = slowed = at_once = 0.0
    for operation, times in counted:
        if operation.name not in ATTENTION:
            continue
        work = attention_width(operation) * times
        share, rows = 1.0, 0.0
        if operation.name != "ts.latent_attention":
            grid = chunk_grid(operation, setting, row.rows)
            speed = cut.value if cut is not None and grid.shares > 1 else 1.0
            share = speed * grid.tiles * grid.shares / units / ceil(grid.tiles * grid.shares / units)
            rows = units * grid.queries / grid.kv_heads / grid.shares / speed
        weight, slowed, at_once = weight + work, slowed + work / share, at_once + work * rows
    if not weight:
        return row
    return msgspec.structs.replace(row, attention_share=weight / slowed, attention_rows=at_once / weight)


def _counted(module: ir.Module) -> list[tuple[ir.Operation, int]]:
    found = []
    for operation in modules.walk(modules.step_block(module)):
        parent = operation.parent
        if operation.name not in {"ts.repeat", "ts.yield", "func.return"}:
            repeated = parent is not None and parent.name == "ts.repeat"
            found.append((operation, modules.int_attribute(parent, "count") if repeated else 1))
    return found


def _cost_row(
    counted: Sequence[tuple[ir.Operation, int]], counts: Mapping[ir.Value, str], machine: Machine, rows: int, logit_rows: int
) -> CostRow:
    flops = weights = activations = communication = slowed = 0.0
    instructions, experts = 0, machine.rates.get("experts.share")
    for operation, times in counted:
        here = rows_worked_on(operation, counts, rows, logit_rows)
        cost = cost_of(operation, here)
        flops += cost.flops * times
        slowed += cost.flops * times / (experts.value if experts is not None and operation.name == "ts.moe_experts" else 1.0)
        weights += cost.weight_bytes * times
        activations += cost.activation_bytes * times
        instructions += times if cost.bytes or cost.flops else 0
        communication += times * seconds_of(operation, here, machine)
    return CostRow(
        rows=rows,
        flops=flops,
        weight_bytes=weights,
        activation_bytes=activations,
        instructions=instructions,
        communication=communication,
        products_share=flops / slowed if slowed else 1.0,
    )
