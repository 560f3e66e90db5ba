"""Tensor types of the dialect: ranked tensors whose first dimension is usually rows (`?`), with a placement as encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .mlir import DYNAMIC, ir

Placement = dict[str, str]
"""Mesh axis -> "replicate", "shard(DIMENSION)" or "partial"."""

ROWS = None
"""Stands for the symbolic row count in shapes given to `tensor`."""

_DTYPES = {"f64": "f64", "f32": "f32", "bf16": "bf16", "f16": "f16", "i64": "i64", "i32": "i32", "u8": "ui8", "i1": "i1"}
_NAMES = {text: name for name, text in _DTYPES.items()}


def tensor(dtype: str, shape: Sequence[int | None], placement: Mapping[str, str] | None = None) -> ir.RankedTensorType:
    """A tensor type; None in `shape` is the symbolic row count."""
    element = ir.Type.parse(_DTYPES[dtype])
    encoding = None
    if placement:
        encoding = ir.DictAttr.get({axis: ir.StringAttr.get(where) for axis, where in sorted(placement.items())})
    return ir.RankedTensorType.get([DYNAMIC if size is None else size for size in shape], element, encoding)


def ranked(value: ir.Value) -> ir.RankedTensorType:
    return ir.RankedTensorType(value.type)


def shape_of(value: ir.Value) -> tuple[int | None, ...]:
    """Static sizes, None where symbolic."""
    kind = ranked(value)
    return tuple(None if kind.is_dynamic_dim(axis) else kind.get_dim_size(axis) for axis in range(kind.rank))


def dtype_of(value: ir.Value) -> str:
    return _NAMES[str(ranked(value).element_type)]


def placement_of(value: ir.Value) -> Placement:
    """The value's placement; empty before partitioning."""
    encoding = ranked(value).encoding
    if encoding is None:
        return {}
    return {item.name: ir.StringAttr(item.attr).value for item in ir.DictAttr(encoding)}


def with_placement(value: ir.Value, placement: Mapping[str, str]) -> None:
    """Set the value's placement in its type."""
    value.set_type(tensor(dtype_of(value), shape_of(value), placement))
