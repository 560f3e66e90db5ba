"""What `tokenspeed-compile --list-targets` prints: a table for a terminal, aligned columns for a pipe, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ..plans.schema import Rate
from ..plans.tables import shown
from ..targets.accelerator import Accelerator
from ..targets.machine import Machine

COLUMNS = ("name", "vendor", "arch", "memory", "bandwidth", "bf16", "state")
NOTE = "Figures are nominal, dense and of one device but for those marked *, which were measured; of CPUs they are of two cores."


def print_targets(targets: Mapping[str, Machine], console: Console) -> None:
    """The table, on a terminal; without lines, and never wrapped, anywhere else."""
    rows = [target_row(machine) for machine in targets.values()]
    if console.is_terminal:
        table = Table(*COLUMNS, caption=NOTE)
        for row in rows:
            table.add_row(*map(shown, row))
        console.print(table)
        return
    widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def target_data(machine: Machine) -> dict[str, Any]:
    """Everything a target's description holds, as JSON has it."""
    device = machine if isinstance(machine, Accelerator) else None
    return {
        "name": machine.name,
        "kind": machine.kind,
        "vendor": machine.vendor,
        "arch": machine.arch,
        "description": machine.description,
        "state": machine.state,
        "features": machine.features,
        "instructions": device.instructions if device else (),
        "row_padding": machine.row_padding,
        "rates": msgspec.to_builtins(machine.rates),
        "sizes": msgspec.to_builtins(dict(device.sizes)) if device else {},
        "nominal": msgspec.to_builtins(dict(device.nominal)) if device else {},
    }


def target_row(machine: Machine) -> tuple[str, ...]:
    """A target's cells, one for each of `COLUMNS`."""
    memory = "host's" if machine.memory_bytes is None else f"{machine.memory_bytes / 1e9:.0f} GB"
    bandwidth, products = machine.rates["bandwidth"], machine.rates["compute.bf16"]
    return machine.name, machine.vendor, machine.arch, memory, _rate(bandwidth), _rate(products), machine.state


def _rate(rate: Rate) -> str:
    scale, prefix = (1e12, "T") if rate.value >= 1e12 else (1e9, "G")
    digits = 0 if rate.value >= 10 * scale else 2
    return f"{rate.value / scale:.{digits}f} {prefix}{rate.unit}{'*' if rate.basis == 'measured' else ''}"
