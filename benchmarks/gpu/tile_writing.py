"""Makes a table of tiles of measurements, or brings one up to date: rows that were not measured again stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenspeed.targets.triton.measured_tiles import (
    FOLDER,
    ExpertRow,
    ExpertTiles,
    LinearRow,
    LinearTiles,
    Receipt,
    SplitRow,
    SplitTiles,
    TileTable,
    table_of,
    table_path,
)

from .tuning_bundle import MeasuredCase, Measurements, read_measurements
from .tuning_cases import Kind, TuningCase, tuning_cases

Row = LinearRow | SplitRow | ExpertRow
_KINDS: dict[Kind, tuple[type[Row], type[LinearTiles | SplitTiles | ExpertTiles]]] = {
    "linear": (LinearRow, LinearTiles),
    "attention": (SplitRow, SplitTiles),
    "experts": (ExpertRow, ExpertTiles),
}
_SIZES: dict[Kind, tuple[str, ...]] = {
    "linear": ("columns", "inner"),
    "attention": ("kv_heads", "width"),
    "experts": ("experts", "top_k", "hidden", "inner"),
}
_DIGITS = 4
Known = dict[tuple[object, ...], tuple[Receipt, Any]]
"""Rows by what they are of, each with its receipt."""


def write_table(files: Sequence[Path], folder: Path = FOLDER) -> str:
    """Bring the table up to date with measurements, later files over earlier ones; gives back what became of it in words."""
    runs = [read_measurements(path) for path in files]
    known = list(tuning_cases())
    (architecture,) = {run.architecture for run in runs}
    table = table_of(architecture, folder)
    rows: dict[Kind, Known] = {}
    for kind in _KINDS:
        rows[kind] = {_key(kind, row): (table.receipts[row.receipt], row) for row in getattr(table, kind)}
    changed = 0
    for run in runs:
        for kind, row in _rows(run, known):
            rows[kind][_key(kind, row)] = (run.receipt, row)
            changed += 1
    receipts = tuple(dict.fromkeys(receipt for kind in _KINDS for receipt, _ in rows[kind].values()))
    path = table_path(architecture, folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(table, receipts, rows))
    table_of.cache_clear()
    table_of(architecture, folder)  # what was written is sound, or this says why not
    return f"{path}: {sum(map(len, rows.values()))} rows, {changed} of them new"


def _rows(run: Measurements, known: Sequence[TuningCase]) -> list[tuple[Kind, Row]]:
    """The rows that a run speaks for. Tiles of cases that are judged together are those that lose least, all told."""
    of_case = {item.case: item for item in run.cases}
    groups: dict[tuple[Kind, tuple[tuple[str, int], ...]], list[TuningCase]] = {}
    for tuned in known:
        groups.setdefault((tuned.kind, tuple(tuned.key.items())), []).append(tuned)
    found: list[tuple[Kind, Row]] = []
    for (kind, key), members in groups.items():
        cases = [of_case[item.case.name] for item in members if item.case.name in of_case]
        if len(cases) == len(members) and all(case.measurements for case in cases):
            contexts = tuple(item.context for item in members)
            found.append((kind, _row(kind, dict(key), cases, contexts)))
    return found


def _row(kind: Kind, key: dict[str, int], cases: Sequence[MeasuredCase], contexts: tuple[int, ...]) -> Row:
    seconds: dict[str, list[float]] = {}
    for case in cases:
        for item in case.measurements:
            seconds.setdefault(msgspec.json.encode(item.tiles).decode(), []).append(item.seconds)
    fastest = [case.measurements[0].seconds for case in cases]
    lost = {
        tiles: sum(made / best for made, best in zip(times, fastest, strict=True))
        for tiles, times in seconds.items()
        if len(times) == len(cases)
    }
    best, *others = sorted(lost, key=lambda tiles: (lost[tiles], tiles))
    row, tiles = _KINDS[kind]
    second = others[0] if others else None
    fields: dict[str, Any] = {**key, "receipt": 0, "dtype": "bf16"}
    fields |= {"bound_seconds": _rounded(sum(case.bound for case in cases)), "seconds": _rounded(sum(seconds[best]))}
    fields["runner_up_seconds"] = None if second is None else _rounded(sum(seconds[second]))
    fields["tiles"] = msgspec.json.decode(best, type=tiles)
    fields["runner_up"] = None if second is None else msgspec.json.decode(second, type=tiles)
    if kind == "attention":
        fields["contexts"] = contexts
    return row(**fields)


def _key(kind: Kind, row: Any) -> tuple[object, ...]:
    names = {
        "linear": ("columns", "inner"),
        "attention": ("kv_heads", "width"),
        "experts": ("experts", "top_k", "hidden", "inner"),
    }
    return (row.dtype, *(getattr(row, name) for name in names[kind]), row.rows)


def _text(
    table: TileTable, receipts: tuple[Receipt, ...], rows: dict[Kind, dict[tuple[object, ...], tuple[Receipt, Any]]]
) -> str:
    """JSON with a line for each row, so that changes can be read."""
    parts = [f'"architecture": "{table.architecture}"', f'"triton": "{table.triton}"', _list("receipts", receipts)]
    for kind, items in rows.items():
        ordered = (items[key] for key in sorted(items))
        parts.append(_list(kind, [msgspec.structs.replace(row, receipt=receipts.index(receipt)) for receipt, row in ordered]))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _list(name: str, items: Sequence[msgspec.Struct]) -> str:
    lines = ",\n".join(f"  {msgspec.json.encode(item).decode()}" for item in items)
    return f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []'


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{_DIGITS}g}")
