"""Functions of each element, over [R, HEADS, N] with strides (the output is dense). Grid: rows, blocks of a row."""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .elementary import activated, tanh


@triton.jit
def _places(columns, ROW: tl.constexpr, HEAD: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr):
    """Where elements of a row lie."""
    row = tl.program_id(0).to(tl.int64)
    if HEADS == 1:
        return row * ROW + columns
    return row * ROW + (columns // N) * HEAD + columns % N


@triton.jit
def map_one(
    a, out,
    HEADS: tl.constexpr, N: tl.constexpr, A_ROW: tl.constexpr, A_HEAD: tl.constexpr,
    KIND: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """a -> out. KIND is "copy", "scale" and "softcap" (by NUMBER), or an activation."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HEADS * N
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    x = tl.load(a + _places(columns, A_ROW, A_HEAD, N, HEADS), mask=inside, other=0.0)
    if KIND == "copy":
        y = x
    elif KIND == "scale":
        y = x.to(tl.float32) * NUMBER
    elif KIND == "softcap":
        y = NUMBER * tanh(x.to(tl.float32) / NUMBER)
    else:
        y = activated(x.to(tl.float32), KIND)
    tl.store(out + tl.program_id(0).to(tl.int64) * (HEADS * N) + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def map_two(
    a, b, out,
    HEADS: tl.constexpr, N: tl.constexpr,
    A_ROW: tl.constexpr, A_HEAD: tl.constexpr, B_ROW: tl.constexpr, B_HEAD: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """a, b -> out. KIND is "add", "mul", or an activation, of a, whose rounded result is multiplied by b."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HEADS * N
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    x = tl.load(a + _places(columns, A_ROW, A_HEAD, N, HEADS), mask=inside, other=0.0).to(tl.float32)
    y = tl.load(b + _places(columns, B_ROW, B_HEAD, N, HEADS), mask=inside, other=0.0).to(tl.float32)
    if KIND == "add":
        z = x + y
    elif KIND == "mul":
        z = x * y
    else:
        z = activated(x, KIND).to(out.dtype.element_ty).to(tl.float32) * y
    tl.store(out + tl.program_id(0).to(tl.int64) * (HEADS * N) + columns, z.to(out.dtype.element_ty), mask=inside)
