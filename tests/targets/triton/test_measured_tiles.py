"""Tiles come from a table of measurements where a row holds, else from rules; a table that is not sound is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import measured_tiles
from tokenspeed.targets.triton.linear_tiles import tiles_for
from tokenspeed.targets.triton.measured_tiles import (
    ExpertRow,
    ExpertTiles,
    LinearRow,
    LinearTiles,
    Receipt,
    SplitRow,
    SplitTiles,
    TileTable,
    described,
    find_experts,
    find_linear,
    find_split,
    table_of,
    table_path,
)
from tokenspeed.targets.triton.release import VERSION

ARCHITECTURE = "sm_90a"
RECEIPT = Receipt(device="A device", driver="1.2", torch="2.11", date="2026-11-28", bandwidth=4e12, rate=7e14)


def linear_row(rows: int, columns: int, inner: int, tile_inner: int = 256) -> LinearRow:
    tiles = LinearTiles(way="few_rows", rows=16, columns=32, inner=tile_inner, warps=4, stages=rows)
    times = {"seconds": 2e-5, "runner_up_seconds": 3e-5, "bound_seconds": 1e-5}
    return LinearRow(receipt=0, dtype="bf16", rows=rows, columns=columns, inner=inner, tiles=tiles, runner_up=tiles, **times)


def split_row(rows: int, kv_heads: int) -> SplitRow:
    tiles = SplitTiles(shares=rows, tokens=64, warps=4, stages=4)
    times = {"seconds": 2e-5, "runner_up_seconds": None, "bound_seconds": 1e-5}
    return SplitRow(
        receipt=0, dtype="bf16", rows=rows, kv_heads=kv_heads, width=128, contexts=(2048,), tiles=tiles, runner_up=None, **times
    )


def expert_row(rows: int) -> ExpertRow:
    tiles = ExpertTiles(pairs=16, columns=32, inner=128, warps=4, stages=rows)
    times = {"seconds": 2e-5, "runner_up_seconds": None, "bound_seconds": 1e-5}
    return ExpertRow(
        receipt=0, dtype="bf16", rows=rows, experts=8, top_k=2, hidden=64, inner=32, tiles=tiles, runner_up=None, **times
    )


TABLE = TileTable(
    architecture=ARCHITECTURE,
    triton=VERSION,
    receipts=(RECEIPT,),
    linear=(linear_row(16, 4096, 4096), linear_row(1, 4096, 4096), linear_row(16, 8192, 4096, 512), linear_row(512, 4096, 4096)),
    attention=(split_row(1, 8), split_row(16, 8), split_row(1, 4)),
    experts=(expert_row(4), expert_row(64)),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table above takes the place of the one that is shipped."""
    table_path(ARCHITECTURE, tmp_path).write_bytes(msgspec.json.encode(TABLE))
    found = table_of(ARCHITECTURE, tmp_path)
    monkeypatch.setattr(measured_tiles, "table_of", lambda name: found if name == ARCHITECTURE else table_of(name, tmp_path))
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("rows", "columns", "inner", "found"),
    [
        (1, 4096, 4096, (1, 4096)),
        (2, 4096, 4096, (16, 4096)),
        (48, 4096, 4096, (512, 4096)),
        (512, 4096, 4096, (512, 4096)),
        (4096, 4096, 4096, None),
        (16, 5120, 4096, (16, 4096)),
        (16, 7680, 4096, (16, 8192)),
        (16, 7680, 4096 + 256, (16, 4096)),
        (16, 1024, 4096, None),
        (16, 4096, 4096 + 64, None),
        (512, 5120, 4096, None),
    ],
)
def test_the_row_of_a_layer(rows: int, columns: int, inner: int, found: tuple[int, int] | None) -> None:
    row = find_linear(ARCHITECTURE, "bf16", rows, columns, inner)
    assert (None if row is None else (row.rows, row.columns)) == found


@pytest.mark.usefixtures("folder")
def test_the_rows_of_attention_and_experts() -> None:
    found = [find_split(ARCHITECTURE, "f16", rows, heads, 128) for rows, heads in ((1, 4), (1, 8), (3, 8), (2, 4), (99, 8))]
    assert [(row.rows, row.kv_heads) for row in found if row] == [(1, 4), (1, 8), (16, 8), (1, 8), (16, 8)]
    assert find_split(ARCHITECTURE, "bf16", 1, 8, 64) is None and find_split(ARCHITECTURE, "f32", 1, 8, 128) is None
    experts = [find_experts(ARCHITECTURE, "bf16", rows, (8, 2, 64, 32)) for rows in (1, 4, 5, 100)]
    assert [row.rows for row in experts if row] == [4, 4, 64, 64]
    assert find_experts(ARCHITECTURE, "bf16", 1, (8, 2, 64, 64)) is None


@pytest.mark.usefixtures("folder")
def test_tiles_come_from_the_table_and_else_from_rules() -> None:
    hopper, ampere = ACCELERATORS["h200"], ACCELERATORS["a100"]
    assert tiles_for(hopper, "bf16", 16, 4096, 4096, True) == TABLE.linear[0].tiles
    without = measured_tiles.table_of("sm_80")
    assert without == TileTable(architecture="sm_80", triton=VERSION, receipts=())
    others = [(ampere, 16, 4096, True), (hopper, 16, 4096, False), (hopper, 16, 512, True)]
    for accelerator, rows, columns, aligned in others:
        assert tiles_for(accelerator, "bf16", rows, columns, 4096, aligned) not in {row.tiles for row in TABLE.linear}


@pytest.mark.usefixtures("folder")
def test_a_receipt_in_words() -> None:
    text = described(ARCHITECTURE, TABLE.linear[0], "16 rows")
    assert text.startswith(
        "measured: few_rows 16 x 32 x 256, 4 warps, 16 stages: 20.0 us for 16 rows, A device, 2026-11-28, Triton"
    )
    assert text.endswith("driver 1.2; next few_rows 16 x 32 x 256, 4 warps, 16 stages: 30.0 us")
    assert described(ARCHITECTURE, TABLE.experts[0], "").endswith("driver 1.2")


def without_receipts(text: str) -> str:
    return text.replace(msgspec.json.encode(TABLE.receipts).decode(), "[]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], "truncated"),
        (lambda text: text.replace('"few_rows"', '"some_rows"', 1), "some_rows"),
        (lambda text: text.replace('"dtype"', '"type"', 1), "unknown field `type`"),
        (lambda text: text.replace(f'"{VERSION}"', '"1.0"', 1), "sm_90a and 1.0"),
        (lambda text: text.replace("2e-05", "-2e-05").replace("0.00002", "-0.00002"), "seconds above 0"),
        (lambda text: text.replace('"columns":32', '"columns":0', 1), "sizes of tiles above 0"),
        (without_receipts, "a receipt from 0"),
    ],
)
def test_a_table_that_is_not_sound_is_refused(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    path = table_path(ARCHITECTURE, tmp_path)
    path.write_text(change(msgspec.json.encode(TABLE).decode()))
    with pytest.raises(UsageError, match=f"(?s)not sound.*{path.name}.*{said}.*benchmarks/tune.py"):
        table_of(ARCHITECTURE, tmp_path)


@pytest.mark.parametrize("path", sorted(measured_tiles.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_tables_that_are_shipped(path: Path) -> None:
    architecture = path.name.removesuffix(f"-{VERSION}.json")
    assert architecture in {accelerator.arch for accelerator in ACCELERATORS.values()}
    table = table_of(architecture)
    assert table.linear and all(0 < row.share <= 1 for row in (*table.linear, *table.attention, *table.experts))
