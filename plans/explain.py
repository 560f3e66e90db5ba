"""Why each operation of a plan runs as it does and lies where it does: its decisions, filtered, with totals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import RenderableType
from rich.table import Table

from .schema import Decision, MeshCandidate, PlacementDecision
from .tables import shown
from .units import format_bytes, format_seconds


def select_placements(placements: Sequence[PlacementDecision], text: str | None) -> list[PlacementDecision]:
    """Those whose operation or label contains `text` (any case); all of them without one."""
    wanted = (text or "").lower()
    return [item for item in placements if any(wanted in field.lower() for field in (item.operation, item.label))]


def layout(placements: Sequence[PlacementDecision], text: str | None = None) -> Table:
    """The same as a rich table."""
    table = Table(
        "operation", "axis", "cut", "operands", "results", "in a step", "runner-up", title="Layout over the mesh", box=None
    )
    for item in select_placements(placements, text):
        seconds = item.runner_up_seconds
        table.add_row(
            shown(f"{item.operation}\n{item.label}" if item.label else item.operation),
            shown(item.axis),
            shown(item.cut or "nothing"),
            shown("\n".join(item.operands)),
            shown("\n".join(item.results)),
            format_seconds(item.seconds),
            "none" if seconds is None else shown(f"{item.runner_up} ({format_seconds(seconds)})"),
        )
    return table


def candidates(meshes: Sequence[MeshCandidate]) -> Table:
    """The meshes that were weighed, as a rich table."""
    names = ("mesh", "weights of a rank", "tokens cached", "output tokens/s", "time per token", "first token", "")
    table = Table(*names, title="Meshes weighed for the expected traffic", box=None)
    for number, item in enumerate(meshes):
        mesh = ",".join(f"{axis.name}={axis.size}" for axis in item.mesh)
        if item.basis == "does not fit":
            table.add_row(shown(mesh), "", "", "", "", "", shown(f"does not fit: {item.reason}"))
            continue
        most = "" if item.basis == "searched" else "at most "
        least = "" if item.basis == "searched" else "at least "
        table.add_row(
            shown(mesh),
            format_bytes(int(item.weight_bytes)),
            "as many as wanted" if item.tokens is None else f"{item.tokens:,}",
            f"{most}{item.output_tokens_per_second:,.0f}",
            f"{least}{format_seconds(item.tpot_seconds)}",
            f"{least}{format_seconds(item.ttft_seconds)}",
            "not searched" if most else "taken" if number == 0 else "",
        )
    return table


def select(decisions: Sequence[Decision], text: str | None) -> list[Decision]:
    """The decisions whose operation, label or kernel contains `text` (any case); all of them without one."""
    if not text:
        return list(decisions)
    wanted = text.lower()
    return [item for item in decisions if any(wanted in field.lower() for field in (item.operation, item.label, item.kernel))]


def totals(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Per program and number of rows: predicted seconds of a step, and the share of them by what bounds the operations."""
    groups: dict[tuple[str, int], list[Decision]] = {}
    for item in decisions:
        groups.setdefault((item.program, item.rows), []).append(item)
    return [_total(program, rows, items) for (program, rows), items in groups.items()]


def explanation(decisions: Sequence[Decision], text: str | None = None) -> dict[str, Any]:
    """`explain --json`: the chosen decisions, each with its seconds over the whole step, and the totals."""
    chosen = select(decisions, text)
    rows = [msgspec.to_builtins(item) | {"step_seconds": item.predicted_seconds * item.times} for item in chosen]
    return {"decisions": rows, "totals": totals(chosen)}


def pages(decisions: Sequence[Decision], text: str | None = None) -> Iterator[RenderableType]:
    """The same as rich tables: one of decisions, one of totals."""
    chosen = select(decisions, text)
    table = Table("operation", "times", "kernel", "why", "runner-up", "predicted", "in a step", "bound", "roofline", box=None)
    for item in chosen:
        table.add_row(
            shown(f"{item.operation}\n{item.label}" if item.label else item.operation),
            str(item.times),
            shown(item.kernel),
            shown(item.reason),
            shown(_runner_up(item)),
            format_seconds(item.predicted_seconds),
            format_seconds(item.predicted_seconds * item.times),
            item.bound,
            f"{item.roofline_share:.0%}",
        )
    yield table
    summary = Table(
        "program", "rows", "operations", "predicted step", "bandwidth", "compute", "dispatch", title="Totals", box=None
    )
    for total in totals(chosen):
        shares = [f"{total['share_by_bound'][bound]:.0%}" for bound in ("bandwidth", "compute", "dispatch")]
        summary.add_row(
            shown(total["program"]), str(total["rows"]), str(total["operations"]), format_seconds(total["seconds"]), *shares
        )
    yield summary


def _total(program: str, rows: int, items: Sequence[Decision]) -> dict[str, Any]:
    seconds = sum(item.predicted_seconds * item.times for item in items)
    by_bound = {
        bound: sum(item.predicted_seconds * item.times for item in items if item.bound == bound) / seconds if seconds else 0.0
        for bound in ("bandwidth", "compute", "dispatch")
    }
    operations = sum(item.times for item in items)
    return {"program": program, "rows": rows, "operations": operations, "seconds": seconds, "share_by_bound": by_bound}


def _runner_up(item: Decision) -> str:
    if not item.runner_up:
        return "none"
    seconds = item.runner_up_seconds
    return item.runner_up if seconds is None else f"{item.runner_up} ({format_seconds(seconds)})"
