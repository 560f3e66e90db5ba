"""Rows out of a table in planes of blocks (codes.py)."""

import triton
import triton.language as tl

from .codes import factors, part_of, parts_of, planes, size_of
from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def gather(
    table, indices, out, N, K,
    FORMAT: tl.constexpr, CHUNK: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[i] = table[indices[i]] in elements, of a table[N, K]. Grid: rows, blocks of BLOCK halfwords of a row."""
    parts: tl.constexpr = parts_of(FORMAT)
    width: tl.constexpr = CHUNK // parts
    codes, scales, minimums = planes(table, N.to(tl.int64), K, FORMAT)
    halfwords = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = halfwords < K // parts
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    index = tl.load(indices + row).to(tl.int64)
    w = tl.load(codes + index * (K // parts) + halfwords, mask=inside, other=0)
    dtype: tl.constexpr = out.dtype.element_ty
    first = halfwords // width * CHUNK + halfwords % width
    for part in tl.static_range(parts):
        element = first + part * width
        block = index * (K // size_of(FORMAT)) + element // size_of(FORMAT)
        s = tl.load(scales + block, mask=inside, other=0.0)
        m = tl.load(minimums + block, mask=inside, other=0.0) if FORMAT == "q4_1" else s
        factor, added = factors(s, m, FORMAT, PAIRED, dtype)
        values = part_of(w, factor, added, part, FORMAT, PAIRED)
        tl.store(out + row * K + element, values.to(dtype), mask=inside)
