"""Tiles that were measured: a table for each architecture and release of Triton, whose every row has its receipt.

`tables/ARCHITECTURE-RELEASE.json` is made by benchmarks/tune.py on such a device. An architecture without one has no rows, and
its tiles come from rules. What a row holds for, the `find_` functions say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log2
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from ...plans.errors import UsageError
from .release import VERSION

FOLDER = Path(__file__).resolve().parent / "tables"

Way = Literal[
    "one_row", "few_rows", "few_rows_turned", "few_rows_ahead", "few_rows_shared", "many_rows", "many_rows_by_descriptors"
]
"""Functions that compute linear layers."""

_FEW = 64
"""Rows up to which weights alone matter, so that layers of about the same size want the same tiles."""

_MANY = 1024
"""Rows from which on arithmetic alone matters, so that more of them want the same tiles."""

_LIKE = 1.0
"""How far sizes of a layer may be from a measured one's, in powers of two."""

_SAME_WIDTH = {"f16": "bf16"}
"""Types whose products take the same tiles: as wide, and as fast."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Common settings: immutable, nothing unknown."""


class LinearTiles(_Part, frozen=True):
    """A function of linear layers and its sizes: rows, columns (of the output) and inner (of K) of a tile, warps of a block,
    stages of its loads, and `group` tiles of rows side by side."""

    way: Way
    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    group: int = 8

    def __str__(self) -> str:
        return f"{self.way} {self.rows} x {self.columns} x {self.inner}, {self.warps} warps, {self.stages} stages"


class SplitTiles(_Part, frozen=True):
    """Of decoding sequences: shares of a sequence's keys, tokens of a tile, warps of a block, stages of its loads."""

    shares: int
    tokens: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.shares} shares, {self.tokens} tokens, {self.warps} warps, {self.stages} stages"


class ExpertTiles(_Part, frozen=True):
    """Of experts: pairs of row and expert, columns of the output and inner elements of a tile, warps, stages."""

    pairs: int
    columns: int
    inner: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.pairs} x {self.columns} x {self.inner}, {self.warps} warps, {self.stages} stages"


class Receipt(_Part, frozen=True):
    """Where and when rows were measured; `bandwidth` (B/s) and `rate` (FLOP/s of bf16 products) of the same run give bounds."""

    device: str
    driver: str
    torch: str
    date: str
    bandwidth: float
    rate: float


class _Row(_Part, frozen=True):
    """Seconds of the chosen tiles, of the runner-up (None: there was no other), and the least that the receipt's rates allow."""

    receipt: int
    dtype: str
    rows: int
    seconds: float
    runner_up_seconds: float | None
    bound_seconds: float

    @property
    def share(self) -> float:
        """Share of the roofline, at most 1: what stays in caches can be faster than memory."""
        return min(1.0, self.bound_seconds / self.seconds)


class LinearRow(_Row, frozen=True):
    """Of layers with so many columns of output and of input, for up to `rows` rows."""

    columns: int
    inner: int
    tiles: LinearTiles
    runner_up: LinearTiles | None


class SplitRow(_Row, frozen=True):
    """Of up to `rows` decoding sequences with `kv_heads` heads of keys of `width`; seconds are those of all `contexts`
    together."""

    kv_heads: int
    width: int
    contexts: tuple[int, ...]
    tiles: SplitTiles
    runner_up: SplitTiles | None


class ExpertRow(_Row, frozen=True):
    """Of `experts` experts, of which each of up to `rows` rows has `top_k`."""

    experts: int
    top_k: int
    hidden: int
    inner: int
    tiles: ExpertTiles
    runner_up: ExpertTiles | None


class TileTable(_Part, frozen=True):
    """What was measured on devices of an architecture with kernels of one release of Triton."""

    architecture: str
    triton: str
    receipts: tuple[Receipt, ...]
    linear: tuple[LinearRow, ...] = ()
    attention: tuple[SplitRow, ...] = ()
    experts: tuple[ExpertRow, ...] = ()


def table_path(architecture: str, folder: Path = FOLDER) -> Path:
    """Where the table of an architecture is, for the release of Triton that kernels are made with."""
    return folder / f"{architecture}-{VERSION}.json"


@cache
def table_of(architecture: str, folder: Path = FOLDER) -> TileTable:
    """The table of an architecture, an empty one where nothing was measured. Raises UsageError if it is not a sound table."""
    path = table_path(architecture, folder)
    if not path.exists():
        return TileTable(architecture=architecture, triton=VERSION, receipts=())
    try:
        table = msgspec.json.decode(path.read_bytes(), type=TileTable)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _unsound(path, "rows as benchmarks/tune.py writes them", str(error)) from None
    if problems := _problems(table, architecture):
        raise _unsound(path, *problems[0])
    return table


def find_linear(architecture: str, dtype: str, rows: int, columns: int, inner: int) -> LinearRow | None:
    """The row for a layer: that of its sizes and the least measured rows that hold `rows`. Where none does, the most are taken if
    those are many: tiles for few rows would read all weights again and again.

    To 64 rows, a layer that was not measured takes the row of the nearest one: not more than a factor of two from it in columns
    and in inner, together as near as can be, and with tiles that divide its inner.
    """
    of_type = [row for row in table_of(architecture).linear if row.dtype == _SAME_WIDTH.get(dtype, dtype)]
    same = [row for row in of_type if (row.columns, row.inner) == (columns, inner)]
    if same or rows > _FEW:
        found = _least_above(same, rows)
        return found if found is not None and found.rows >= min(rows, _MANY) else None
    like: dict[float, list[LinearRow]] = {}
    for row in of_type:
        far = abs(log2(row.columns / columns)), abs(log2(row.inner / inner))
        if max(far) <= _LIKE and inner % row.tiles.inner == 0:
            like.setdefault(sum(far), []).append(row)
    return _least_above(like[min(like)], rows) if like else None


def find_split(architecture: str, dtype: str, rows: int, kv_heads: int, width: int) -> SplitRow | None:
    """The row for decoding sequences: of the same type and width, and the least measured number of sequences times kv heads that
    holds these (the most, where none does)."""
    of_type = [
        row for row in table_of(architecture).attention if (row.dtype, row.width) == (_SAME_WIDTH.get(dtype, dtype), width)
    ]
    ordered = sorted(of_type, key=lambda row: (row.rows * row.kv_heads, abs(row.kv_heads - kv_heads)))
    return next((row for row in ordered if row.rows * row.kv_heads >= rows * kv_heads), ordered[-1] if ordered else None)


def find_experts(architecture: str, dtype: str, rows: int, sizes: tuple[int, int, int, int]) -> ExpertRow | None:
    """The row for experts of exactly these sizes (experts, top_k, hidden, inner): as for layers of the same size."""
    kind = _SAME_WIDTH.get(dtype, dtype)
    of_type = (row for row in table_of(architecture).experts if row.dtype == kind)
    return _least_above([row for row in of_type if (row.experts, row.top_k, row.hidden, row.inner) == sizes], rows)


def described(architecture: str, row: LinearRow | SplitRow | ExpertRow, what: str) -> str:
    """A row's receipt in words: `what` was measured, how long it took, where, when, and what came second."""
    table = table_of(architecture)
    receipt = table.receipts[row.receipt]
    where = f"{receipt.device}, {receipt.date}, Triton {table.triton}, driver {receipt.driver}"
    text = f"measured: {row.tiles}: {row.seconds * 1e6:.1f} us for {what}, {where}"
    if row.runner_up is None or row.runner_up_seconds is None:
        return text
    return f"{text}; next {row.runner_up}: {row.runner_up_seconds * 1e6:.1f} us"


_AnyRow = TypeVar("_AnyRow", bound=_Row)


def _least_above(rows: Sequence[_AnyRow], wanted: int) -> _AnyRow | None:
    ordered = sorted(rows, key=lambda row: row.rows)
    return next((row for row in ordered if row.rows >= wanted), ordered[-1] if ordered else None)


def _problems(table: TileTable, architecture: str) -> list[tuple[str, str]]:
    """(Expected, got) of what is wrong with a table that parses."""
    found: list[tuple[str, str]] = []
    if (table.architecture, table.triton) != (architecture, VERSION):
        found.append((f"a table of {architecture} and Triton {VERSION}", f"{table.architecture} and {table.triton}"))
    for row in (*table.linear, *table.attention, *table.experts):
        if not 0 <= row.receipt < len(table.receipts):
            found.append((f"a receipt from 0 to {len(table.receipts) - 1}", f"{row.receipt} at {row.tiles}"))
        if min(row.seconds, row.bound_seconds, row.runner_up_seconds or row.seconds) <= 0:
            found.append(("seconds above 0", f"{row.seconds} at {row.tiles}"))
        if min(value for value in msgspec.to_builtins(row.tiles).values() if isinstance(value, int)) < 1:
            found.append(("sizes of tiles above 0", str(row.tiles)))
    return found


def _unsound(path: Path, expected: str, got: str) -> UsageError:
    fix = "make it again with benchmarks/tune.py, or install tokenspeed-compile again"
    return UsageError("a table of measured tiles is not sound", where=str(path), expected=expected, got=got, fix=fix)
