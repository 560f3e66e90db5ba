"""A table of tiles made of measurements: which tiles a row gets, and what becomes of rows that were not measured again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tokenspeed.benchmarks.gpu import tile_writing
from tokenspeed.benchmarks.gpu.tile_writing import write_table
from tokenspeed.benchmarks.gpu.tuning_bundle import MeasuredCase, Measurement, Measurements
from tokenspeed.benchmarks.gpu.tuning_cases import TuningCase, tuning_cases
from tokenspeed.targets.triton.measured_tiles import LinearTiles, Receipt, SplitTiles, table_of

KNOWN = {tuned.case.name: tuned for tuned in tuning_cases()}
LAYERS = [f"linear 4096 x 4096, {rows} rows" for rows in (1, 16)]
ATTENTION = [f"attention, 1 x {context}, 8 kv heads" for context in (2048, 16384)]
NARROW, WIDE, OTHER = (
    LinearTiles(way="few_rows", rows=16, columns=columns, inner=256, warps=4, stages=3) for columns in (16, 32, 64)
)
FEW, MANY = (SplitTiles(shares=shares, tokens=64, warps=4, stages=3) for shares in (8, 32))


def run(path: Path, device: str, cases: Mapping[str, Mapping[LinearTiles, float] | Mapping[SplitTiles, float]]) -> Path:
    """A run's file: microseconds of each case by tiles."""
    receipt = Receipt(device=device, driver="1", torch="2.11", date="2026-11-28", bandwidth=4e12, rate=8e14)
    measured = []
    for case, times in cases.items():
        ordered = sorted(times.items(), key=lambda item: item[1])
        found = [Measurement(msgspec.to_builtins(tiles), 1e-6 * time, 0.001) for tiles, time in ordered]
        measured.append(MeasuredCase(case, 1e-6, None, found, []))
    path.write_bytes(msgspec.json.encode(Measurements("sm_90a", "3.9.0", receipt, measured)))
    return path


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[TuningCase] = [KNOWN[name] for name in (*LAYERS, *ATTENTION)]
    monkeypatch.setattr(tile_writing, "tuning_cases", lambda: chosen)


def test_tiles_that_are_as_good_are_shared(tmp_path: Path) -> None:
    times = {LAYERS[0]: {NARROW: 10.0, WIDE: 10.1, OTHER: 11.0}, LAYERS[1]: {WIDE: 20.0, NARROW: 21.0}}
    write_table([run(tmp_path / "run.json", "A", times)], tmp_path)
    one, sixteen = table_of("sm_90a", tmp_path).linear
    assert (one.rows, one.tiles, one.seconds) == (1, WIDE, 1.01e-5) and (one.runner_up, one.runner_up_seconds) == (NARROW, 1e-5)
    assert (sixteen.rows, sixteen.tiles, sixteen.runner_up) == (16, WIDE, NARROW)


def test_tiles_of_several_contexts_lose_least_all_told(tmp_path: Path) -> None:
    times = {ATTENTION[0]: {FEW: 1.0, MANY: 1.2}, ATTENTION[1]: {FEW: 15.0, MANY: 10.0}}
    write_table([run(tmp_path / "run.json", "A", times)], tmp_path)
    (row,) = table_of("sm_90a", tmp_path).attention
    assert (row.tiles, row.contexts, row.seconds, row.bound_seconds) == (MANY, (2048, 16384), 1.12e-5, 2e-6)
    write_table([run(tmp_path / "half.json", "B", {ATTENTION[0]: {FEW: 1.0}})], tmp_path)
    assert table_of("sm_90a", tmp_path).attention == (row,)


def test_rows_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    first = run(tmp_path / "first.json", "A", {name: {NARROW: 10.0, OTHER: 12.0} for name in LAYERS})
    write_table([first], tmp_path)
    said = write_table([run(tmp_path / "second.json", "B", {LAYERS[1]: {OTHER: 9.0}})], tmp_path)
    table = table_of("sm_90a", tmp_path)
    assert "2 rows, 1 of them new" in said
    assert [(row.tiles, table.receipts[row.receipt].device) for row in table.linear] == [(NARROW, "A"), (OTHER, "B")]
    assert table.linear[1].runner_up is None
