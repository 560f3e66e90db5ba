"""How a dimension of a value is cut, if it is: one way for each, so that neighbours agree on it."""

from __future__ import annotations

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.placements import Segment, Shard
from ...ir.types import shape_of

ELEMENTWISE = {
    "ts.add",
    "ts.mul",
    "ts.scale",
    "ts.softcap",
    "ts.cast",
    "ts.activation",
    "ts.gated_activation",
}


def cut_of(value: ir.Value, dimension: int, ranks: int) -> Shard | None:
    """The cut of an activation's dimension over so many ranks; None where it is not cut.

    Rows are cut whatever their number, the last parts filled up: `ir/rows.py`.
    Columns that are heads are cut between heads, and heads that are too few for the ranks are held in copies. Columns of which
    windows are taken are cut window by window. Columns that are neither may be filled up with zeros (`is_padded`).
    """
    shape = shape_of(value)
    size = shape[dimension]
    if size is None:
        return Shard(dimension)
    if dimension != 1:
        return None
    windows = _windows(value) if len(shape) == 2 else {}
    if windows:
        return _by_windows(windows, size, ranks)
    unit = 1 if len(shape) == 3 else unit_of(value)
    if size % unit:
        return None
    count = size // unit
    if count % ranks == 0:
        return Shard(dimension)
    if len(shape) == 3 or unit > 1:
        return Shard(dimension, copies=ranks // count) if ranks % count == 0 else None
    return Shard(dimension)


def is_padded(cut: Shard, size: int, ranks: int) -> bool:
    """Whether the last parts end in zeros."""
    return not cut.segments and size * cut.copies % ranks != 0


def unit_of(value: ir.Value) -> int:
    """Columns that stay together: those of a head, where the value is heads side by side; else 1."""
    found, known, waiting = 1, set(), [value]
    while waiting:
        current = waiting.pop()
        if current in known or len(shape_of(current)) != 2:
            continue
        known.add(current)
        around = [user for user, _ in modules.readers_of(current)]
        maker = modules.maker_of(current)
        around += [maker] if maker is not None else []
        for operation in around:
            if operation.name == "ts.reshape":
                shapes = [shape_of(item) for item in (operation.operands[0], operation.results[0])]
                found = max(found, *(shape[2] or 1 for shape in shapes if len(shape) == 3), 1)
            elif operation.name in ELEMENTWISE:
                waiting += [*operation.operands, *operation.results]
    return found


def _windows(value: ir.Value) -> dict[int, ir.Operation]:
    """Windows of columns by their start where nothing else is read of the value."""
    users = [user for user, _ in modules.readers_of(value)]
    if not users or any(user.name != "ts.slice" for user in users):
        return {}
    return {modules.int_attribute(user, "start"): user for user in users}


def _by_windows(windows: dict[int, ir.Operation], size: int, ranks: int) -> Shard | None:
    segments: list[Segment] = []
    end = 0
    for start, window in sorted(windows.items()):
        width = shape_of(window.results[0])[1] or 0
        cut = cut_of(window.results[0], 1, ranks)
        if start != end or cut is None or is_padded(cut, width, ranks):
            return None
        segments += cut.segments or (Segment(cut.local_size(width, ranks), cut.copies),)
        end = start + width
    return Shard(1, segments=tuple(segments)) if end == size else None
