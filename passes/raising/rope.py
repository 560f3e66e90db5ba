"""Rules of rotary position embedding: tables, and the ways in which models turn by them.

Hugging Face code keeps a table in one of three ways: its halves alike, each column twice, or one half alone. `ts.rope_table` has
its halves alike and `ts.rope` reads the first one, so all three raise to one operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp, Bind, Cast, Number, defining, either, match, matches, op, result
from .raised import Raised, Raiser, Rule

_END = Number("end")

_ANGLES = op(
    "transpose",
    op(
        "matmul",
        op("expand", op("unsqueeze", op("unsqueeze", Bind("frequencies"), 0), 2), [1, -1, 1]),
        Cast(op("unsqueeze", Bind("positions"), 1)),
    ),
    1,
    2,
)
_ARRANGED = {
    "halves": op("cat", [_ANGLES, _ANGLES], -1),
    "neighbours": op("repeat_interleave", _ANGLES, 2, -1),
    "half": _ANGLES,
}
"""How the columns of a table are arranged, by the angles it is made of."""


@dataclass(frozen=True)
class _Table:
    """A table of cosines or sines of positions x frequencies, times `scaling`."""

    positions: ir.Value
    frequencies: ir.Value
    scaling: float
    dtype: str
    arrangement: str
    label: str

    @property
    def columns(self) -> int:
        return 2 * (shape_of(self.frequencies)[0] or 0)


def _table(value: ir.Value, which: str, raiser: Raiser) -> _Table | None:
    for arrangement, angles in _ARRANGED.items():
        wave = op(which, angles)
        bound = match(Cast(either(op("mul", wave, Number("scaling")), wave)), value)
        if bound is None:
            continue
        positions, frequencies = raiser.raised(bound["positions"]), raiser.constant(bound["frequencies"])
        made_by = defining(value)
        if positions is None or frequencies is None or made_by is None or positions.form is not Form.IDS:
            return None
        label, scaling = modules.label_of(made_by.operation), float(bound.get("scaling", 1.0))
        return _Table(positions.value, frequencies, scaling, dtype_of(value), arrangement, label)
    return None


def _rotary_table(root: AtenOp, raiser: Raiser) -> Raised | None:
    for index, which in enumerate(("cos", "sin")):
        table = _table(root.result, which, raiser)
        if table is not None and table.arrangement == "halves":
            return Raised(_build_table(table)[index], Form.ROWS)
    return None


def _build_table(table: _Table) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines, made where the frequencies are: before the layers that read them."""
    kind = tensor(table.dtype, [None, table.columns])
    block: Any = ir.InsertionPoint.current.block
    home = table.frequencies.owner
    inside = home.parent != block.owner if isinstance(home, ir.Operation) else home.operation.parent != block.owner
    with ir.InsertionPoint(block.owner) if inside else ir.InsertionPoint.current:
        made = dialect.RopeTable(kind, kind, table.positions, table.frequencies, modules.number(table.scaling)).operation
    modules.set_label(made, table.label)
    return made.results[0], made.results[1]


_X = Cast(Bind("x"))
_FIRST_HALF, _SECOND_HALF = op("slice", _X, 3, 0, Number("half")), op("slice", _X, 3, Number("half"), _END)
_EVEN, _ODD = op("slice", _X, 3, 0, _END, 2), op("slice", _X, 3, 1, _END, 2)
_A, _B = (result(part, "split", _X, Number("half"), -1) for part in (0, 1))


def _turned(rotated: Any) -> Any:
    """x * cos + rotated(x) * sin."""
    return op("add", Cast(op("mul", _X, Bind("cos"))), Cast(op("mul", Cast(rotated), Bind("sin"))))


_PAIRS = op("stack", [op("neg", _ODD), _EVEN], -1)
_COS, _SIN = Bind("cos"), Bind("sin")
_TURNED = {
    "halves": _turned(op("cat", [op("neg", _SECOND_HALF), _FIRST_HALF], -1)),
    "neighbours": _turned(either(op("view", _PAIRS, Bind("shape")), op("flatten", _PAIRS, -2))),
    "half": op(
        "cat",
        [
            op("sub", op("mul", _A, _COS), op("mul", _B, _SIN)),
            op("add", op("mul", _B, _COS), op("mul", _A, _SIN)),
        ],
        -1,
    ),
}
"""How x is turned, by the arrangement of the table that each way needs."""

_PARTIAL = op("cat", [Cast(Bind("turned")), op("slice", Cast(Bind("whole")), 3, Number("columns"), _END)], -1)
_LEADING = op("slice", Cast(Bind("whole")), 3, 0, Number("columns"))
_HEAD_AXIS = {Form.HEADS_FIRST: 1, Form.HEADS: 2}


@dataclass(frozen=True)
class _Turn:
    """The first `columns` of x[.., head_dim] turned by tables as ATen has them."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    arrangement: str
    columns: int


def _turns(value: ir.Value) -> Iterator[_Turn]:
    """All readings of the value as x turned: they differ in the casts that are looked through."""
    for partial in (None, *matches(Cast(_PARTIAL), value)):
        for arrangement, pattern in _TURNED.items():
            for bound in matches(Cast(pattern), value if partial is None else partial["turned"]):
                x, columns = bound["x"], shape_of(bound["x"])[-1] or 0
                if columns != 2 * bound.get("half", columns // 2):
                    continue
                wholes = [x] if partial is None else [leading["whole"] for leading in matches(_LEADING, x)]
                for whole in wholes:
                    if partial is None or (whole, columns) == (partial["whole"], partial["columns"]):
                        yield _Turn(whole, bound["cos"], bound["sin"], arrangement, columns)


def _spread(value: ir.Value, which: str, axis: int, raiser: Raiser) -> _Table | None:
    """The table behind a value that is spread over heads, dimension `axis`."""
    one = Cast(op("unsqueeze", Bind("table"), axis))
    twice = op("repeat_interleave", op("slice", one, 3, 0, Number("half")), 2, -1)
    bound = match(Cast(twice), value)
    doubled = bound is not None
    bound = bound if doubled else match(one, value)
    table = None if bound is None else _table(bound["table"], which, raiser)
    if table is None or bound is None:
        return None
    arrangement = table.arrangement
    if doubled:
        # the first half of a table of equal halves, each column twice
        if arrangement != "halves" or 2 * bound["half"] != table.columns:
            return None
        arrangement = "neighbours"
    return _Table(table.positions, table.frequencies, table.scaling, dtype_of(value), arrangement, table.label)


def _rope(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target not in {"aten.add.Tensor", "aten.cat.default", "aten._to_copy.default", "aten.type_as.default"}:
        return None
    for turn in _turns(root.result):
        x = raiser.raised(turn.x)
        if x is not None and x.form in _HEAD_AXIS and dtype_of(x.value) == dtype_of(root.result):
            return _built_rope(turn, x, raiser)
    return None


def _built_rope(turn: _Turn, x: Raised, raiser: Raiser) -> Raised | None:
    cos, sin = (_spread(value, name, _HEAD_AXIS[x.form], raiser) for name, value in (("cos", turn.cos), ("sin", turn.sin)))
    if cos is None or cos != sin or cos.arrangement != turn.arrangement or cos.columns != turn.columns:
        return None
    kind, interleaved = tensor(dtype_of(x.value), shape_of(x.value)), modules.flag(turn.arrangement == "neighbours")
    return Raised(dialect.Rope(kind, x.value, *_build_table(cos), interleaved).res, x.form)


ROPE_RULES: tuple[Rule, ...] = (_rotary_table, _rope)
