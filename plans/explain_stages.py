"""The stages of a pipeline: what each has, what it takes of a step, and how equal they are."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .integrity import ranks
from .perf_model import StepModel, StepWork, chunk_work
from .schema import Manifest
from .stages import performance_of
from .tables import shown
from .units import format_bytes, format_seconds


def stages(manifest: Manifest) -> list[dict[str, Any]]:
    """`explain --json`: a row for each stage, empty without. Seconds are of a step of this traffic's decoding sequences, shared
    out among the steps in flight, and of a whole chunk of a prompt."""
    count = len(manifest.stages)
    traffic, schedule = manifest.schedule.traffic, manifest.schedule
    rows = max(1.0, min(traffic["concurrency"], schedule.max_decode_rows) / max(1, count))
    context = rows * (traffic["prompt_tokens"] + traffic["output_tokens"] / 2)
    chunk = schedule.prefill_chunk
    found: list[dict[str, Any]] = []
    for number, stage in enumerate(manifest.stages):
        model, of_stage = StepModel(performance_of(manifest, stage)), ranks(manifest) // count
        found.append(
            {
                "stage": number,
                "first_layer": stage.first,
                "layers": stage.layers,
                "ranks": list(range(number * of_stage, (number + 1) * of_stage)),
                "decode_seconds": model.seconds(StepWork(rows, context)),
                "prefill_seconds": model.seconds(chunk_work(0, chunk)),
                "weight_bytes": stage.memory.weights,
                "kv_bytes_per_token": stage.kv_bytes_per_token,
                "memory_bytes": stage.memory.total,
                "sends": [f"{item.dtype}[{item.rows}, {', '.join(map(str, item.shape))}]" for item in stage.sends],
            }
        )
    return found


def stage_table(rows: list[dict[str, Any]]) -> Table:
    """The same as a rich table; a share is of what the slowest stage takes."""
    table = Table("stage", "layers", "ranks", "decode", "prefill", "weights", "KV of a token", "memory", "sends", box=None)
    table.title, table.title_justify = "Stages", "left"
    slowest = {name: max(row[name] for row in rows) for name in ("decode_seconds", "prefill_seconds")}
    for row in rows:
        last = row["first_layer"] + row["layers"] - 1
        times = [f"{format_seconds(row[name])} ({row[name] / most:.0%})" for name, most in slowest.items()]
        table.add_row(
            str(row["stage"]),
            f"{row['first_layer']}-{last}",
            f"{row['ranks'][0]}-{row['ranks'][-1]}" if len(row["ranks"]) > 1 else str(row["ranks"][0]),
            *times,
            format_bytes(row["weight_bytes"]),
            format_bytes(row["kv_bytes_per_token"]),
            format_bytes(row["memory_bytes"]),
            shown(", ".join(row["sends"]) or "tokens"),
        )
    return table
