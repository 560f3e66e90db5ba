"""How an operation's operands lie in memory: what lowering makes of slices and reshapes, known from the IR alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.storage import stored_type
from ...ir.types import dtype_of, shape_of
from ...plans.device_kernels import Pointer
from ...plans.program import DTYPE_BYTES, DType
from ...plans.weight_layout import BLOCKS

BUFFER_ALIGNMENT = 64
"""Bytes; arrays on a device begin at a multiple of it."""

MOST_ALIGNMENT = 16
"""Bytes; what code gains by, and so relies on, at most."""


@dataclass(frozen=True)
class Layout:
    """Sizes (None: rows), element strides, and elements from the start of the buffer. The last dimension is dense.

    Of a weight in blocks, which lies in planes, sizes alone mean anything; `dtype` is its block type then."""

    dtype: DType
    shape: tuple[int | None, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def row_stride(self) -> int:
        return self.strides[0] if self.strides else 0

    @property
    def columns(self) -> int:
        """Elements of a row, all dimensions together."""
        return prod(size or 1 for size in self.shape[1:])

    @property
    def alignment(self) -> int:
        """Bytes that every row, and within it every head, begins at a multiple of."""
        if self.dtype in BLOCKS:
            return MOST_ALIGNMENT
        width = DTYPE_BYTES[self.dtype]
        return gcd(MOST_ALIGNMENT, *(width * step for step in (self.offset, *self.strides[:-1])))

    def pointer(self, operand: int) -> Pointer:
        """Parameter for the operand of this layout."""
        return Pointer(operand, self.dtype, self.alignment)


def layout_of(value: ir.Value) -> Layout:
    """Where lowering puts a value (passes/lower.py): slices are windows; reshapes are views, or dense copies of what is not."""
    owner = value.owner
    operation = None if isinstance(owner, ir.Block) else owner if isinstance(owner, ir.Operation) else owner.operation
    shape, dtype = shape_of(value), _dtype(value)
    if operation is not None and operation.name == "ts.weight":
        dtype: DType = stored_type(operation, dtype)  # pyright: ignore[reportAssignmentType]
    if operation is None or operation.name not in {"ts.slice", "ts.reshape"}:
        return Layout(dtype, shape, dense_strides(shape))
    source = layout_of(operation.operands[0])
    if operation.name == "ts.slice":
        return Layout(dtype, shape, source.strides, source.offset + modules.int_attribute(operation, "start"))
    if source.strides[1:] != dense_strides(source.shape)[1:]:
        return Layout(dtype, shape, dense_strides(shape))
    return Layout(dtype, shape, (source.strides[0], *dense_strides(shape)[1:]), source.offset)


def dense_strides(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """Element strides of a row-major array; a dimension of rows has no stride beyond it."""
    sizes = [size or 1 for size in shape]
    return tuple(prod(sizes[at + 1 :]) for at in range(len(sizes)))


def _dtype(value: ir.Value) -> DType:
    return dtype_of(value)  # pyright: ignore[reportReturnType]
