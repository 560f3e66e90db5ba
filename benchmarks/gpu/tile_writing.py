"""Makes a table of tiles of measurements, or brings one up to date: rows that were not measured again stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
_AS_GOOD = 1.015
"""How much longer tiles may take that count as as good as the best: what repeats of a run differ by."""

Sizes = tuple[tuple[str, int], ...]
"""Fields of a row that say what it is of."""

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
    """The rows that a run speaks for."""
    of_case = {item.case: item for item in run.cases}
    groups: dict[tuple[Kind, Sizes], list[TuningCase]] = {}
    for tuned in known:
        groups.setdefault((tuned.kind, tuple(tuned.key.items())), []).append(tuned)
    found: list[tuple[Kind, Row]] = []
    for kind in _KINDS:
        judged: dict[Sizes, _Judged] = {}
        for (of_kind, key), members in groups.items():
            cases = [of_case[item.case.name] for item in members if item.case.name in of_case]
            if of_kind == kind and len(cases) == len(members) and all(case.measurements for case in cases):
                judged[key] = _judged(cases, tuple(item.context for item in members))
        shared = _shared({key: item.lost for key, item in judged.items()})
        found.extend((kind, _row(kind, dict(key), item, shared[key])) for key, item in judged.items())
    return found


@dataclass(frozen=True)
class _Judged:
    """Cases that are judged together: by tiles (in JSON) all their seconds, and what they lose to the best of each case, 1 in
    each for none; what the device allows at least; contexts."""

    seconds: dict[str, float]
    lost: dict[str, float]
    bound: float
    contexts: tuple[int, ...]


def _judged(cases: Sequence[MeasuredCase], contexts: tuple[int, ...]) -> _Judged:
    times: dict[str, list[float]] = {}
    for case in cases:
        for item in case.measurements:
            times.setdefault(msgspec.json.encode(item.tiles).decode(), []).append(item.seconds)
    everywhere = {tiles: made for tiles, made in times.items() if len(made) == len(cases)}
    fastest = [case.measurements[0].seconds for case in cases]
    lost = {
        tiles: sum(seconds / best for seconds, best in zip(made, fastest, strict=True)) / len(cases)
        for tiles, made in everywhere.items()
    }
    seconds = {tiles: sum(made) for tiles, made in everywhere.items()}
    return _Judged(seconds, lost, sum(case.bound for case in cases), contexts)


def _shared(lost: dict[Sizes, dict[str, float]]) -> dict[Sizes, str]:
    """Tiles for each key: of those that are as good as the best, few for all keys together, since each is a kernel to compile."""
    good = {
        key: {tiles for tiles, loss in of_key.items() if loss <= min(of_key.values()) * _AS_GOOD} for key, of_key in lost.items()
    }
    left, kept = set(good), set[str]()
    while left:
        count = Counter(tiles for key in left for tiles in good[key])
        best = min(count, key=lambda tiles: (-count[tiles], sum(lost[key].get(tiles, 2.0) for key in left), tiles))
        kept.add(best)
        left = {key for key in left if best not in good[key]}
    return {key: min(kept & good[key], key=lambda tiles: (lost[key][tiles], tiles)) for key in good}


def _row(kind: Kind, key: dict[str, int], judged: _Judged, chosen: str) -> Row:
    row, tiles = _KINDS[kind]
    others = [other for other in sorted(judged.lost, key=lambda other: (judged.lost[other], other)) if other != chosen]
    second = others[0] if others else None
    fields: dict[str, Any] = {**key, "receipt": 0, "dtype": "bf16"}
    fields |= {"bound_seconds": _rounded(judged.bound), "seconds": _rounded(judged.seconds[chosen])}
    fields["runner_up_seconds"] = None if second is None else _rounded(judged.seconds[second])
    fields["tiles"] = msgspec.json.decode(chosen, type=tiles)
    fields["runner_up"] = None if second is None else msgspec.json.decode(second, type=tiles)
    if kind == "attention":
        fields["contexts"] = judged.contexts
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
