"""Weights in blocks along K, in planes: all codes, then a scale for each block, then of q4_1 a minimum for each.

Codes lie in halfwords, so that a thread that holds neighbouring ones holds pairs for matrix instructions. K is cut into chunks of
CHUNK elements, one block or two, and a chunk into as many parts as a halfword has codes: 2 bytes (q8_0, and 8-bit floats) or 4
nibbles (q4_0 and q4_1). Halfword i of a chunk has element i of each part, that of the first in its lowest bits. Blocks have 32
elements, those of 8-bit floats 128, which are multiplied as they are, and the sums of a block by its scale.

NVIDIA's devices turn codes into bfloat16 two at a time (PAIRED). Bits in the middle of a number's fraction make it a power of two
and the code, from which a multiple of the scale is taken away.
"""

import triton
import triton.language as tl

from .float8 import float8_numbers

# two's complement: 0x4300 and 7 bits are 128 and they; 0x4300 and the sign are 128, or 256 where it is set
_BYTE_0 = tl.constexpr("""{
    .reg .b32 a, b, m, z;
    mov.b32 m, 0xBF80BF80;
    mov.b32 z, 0x80008000;
    lop3.b32 a, $1, 0x00800080, 0x43004300, 0xEA;
    lop3.b32 b, $1, 0x007f007f, 0x43004300, 0xEA;
    fma.rn.bf16x2 a, a, m, b;
    fma.rn.bf16x2 $0, a, $2, z;
}""")
_BYTE_1 = tl.constexpr("""{
    .reg .b32 a, b, m, z;
    mov.b32 m, 0xBF80BF80;
    mov.b32 z, 0x80008000;
    shr.u32 a, $1, 8;
    lop3.b32 b, a, 0x007f007f, 0x43004300, 0xEA;
    lop3.b32 a, a, 0x00800080, 0x43004300, 0xEA;
    fma.rn.bf16x2 a, a, m, b;
    fma.rn.bf16x2 $0, a, $2, z;
}""")
# 0x4180 and a nibble three bits up are 16 and it
_NIBBLE_0 = tl.constexpr("""{
    .reg .b32 a;
    shl.b32 a, $1, 3;
    lop3.b32 a, a, 0x00780078, 0x41804180, 0xEA;
    fma.rn.bf16x2 $0, a, $2, $3;
}""")
_NIBBLE_1 = tl.constexpr(_NIBBLE_0.value.replace("shl.b32 a, $1, 3", "shr.u32 a, $1, 1"))
_NIBBLE_2 = tl.constexpr(_NIBBLE_0.value.replace("shl.b32 a, $1, 3", "shr.u32 a, $1, 5"))
_NIBBLE_3 = tl.constexpr(_NIBBLE_0.value.replace("shl.b32 a, $1, 3", "shr.u32 a, $1, 9"))


@triton.constexpr_function
def parts_of(FORMAT):
    """Codes of a halfword."""
    return 4 if FORMAT == "q4_0" or FORMAT == "q4_1" else 2


@triton.constexpr_function
def size_of(FORMAT):
    """Elements of a block."""
    return 128 if FORMAT == "e4m3_128" else 32


@triton.jit
def planes(weight, rows, K, FORMAT: tl.constexpr):
    """Where codes (as halfwords), scales and minimums of a weight [rows, K] begin. `rows` is a 64-bit integer."""
    codes = rows * (K // parts_of(FORMAT) * 2)
    scales = (weight + codes).to(tl.pointer_type(tl.float32 if FORMAT == "e4m3_128" else tl.float16))
    return weight.to(tl.pointer_type(tl.int16)), scales, scales + rows * (K // size_of(FORMAT))


@triton.jit
def factors(scales, minimums, FORMAT: tl.constexpr, PAIRED: tl.constexpr, dtype: tl.constexpr):
    """What `part_of` makes a part's codes weights with: a factor for each block, and what is added."""
    factor = scales.to(dtype)
    if FORMAT == "e4m3_128":
        return scales, scales
    elif FORMAT == "q8_0":
        return factor, factor
    elif PAIRED:
        zero = factor.to(tl.float32) * (-24.0 if FORMAT == "q4_0" else -16.0)
        return factor, (zero + minimums.to(tl.float32) if FORMAT == "q4_1" else zero).to(dtype)
    else:
        return factor, minimums.to(dtype)


@triton.jit
def _paired(assembly: tl.constexpr, codes, factor, added):
    return tl.inline_asm_elementwise(assembly, "=r,r,r,r", [codes, factor, added], dtype=tl.bfloat16, is_pure=True, pack=2)


@triton.jit
def part_of(codes, factor, added, PART: tl.constexpr, FORMAT: tl.constexpr, PAIRED: tl.constexpr):
    """The weights of a part, of halfwords `codes`, as the type of `factor`. Both `factors` are there for every halfword."""
    if FORMAT == "e4m3_128":
        low, high, power = float8_numbers(codes, PAIRED)
        return (low if PART == 0 else high).to(tl.float32) * (factor * power)
    elif PAIRED and FORMAT == "q8_0":
        return _paired(_BYTE_0 if PART == 0 else _BYTE_1, codes, factor, added)
    elif PAIRED:
        if PART < 2:
            return _paired(_NIBBLE_0 if PART == 0 else _NIBBLE_1, codes, factor, added)
        else:
            return _paired(_NIBBLE_2 if PART == 2 else _NIBBLE_3, codes, factor, added)
    elif FORMAT == "q8_0":
        return ((codes << 8 - 8 * PART) >> 8).to(factor.dtype) * factor
    elif FORMAT == "q4_0":
        return (((codes >> 4 * PART) & 15) - 8).to(factor.dtype) * factor
    else:
        return ((codes >> 4 * PART) & 15).to(factor.dtype) * factor + added


@triton.jit
def of_chunks(plane, first, last, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr):
    """A plane's values for CHUNKS chunks from number `first` on, [rows, chunks], none from `last` on: of their first blocks and
    of their last. `plane` points at the rows' beginnings."""
    number = tl.arange(0, CHUNKS)
    mask = (first + number < last)[None, :] | WHOLE
    if CHUNK == 64:
        # both at once, so that they may be copied beside the work
        words = plane.to(tl.pointer_type(tl.int32))[:, None] + first + number[None, :]
        both = tl.load(words) if WHOLE else tl.load(words, mask=mask, other=0)
        return both.to(tl.int16).to(tl.float16, bitcast=True), (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        one = plane[:, None] + first + number[None, :]
        values = tl.load(one) if WHOLE else tl.load(one, mask=mask, other=0.0)
        return values, values


@triton.jit
def _of_halfwords(values, EACH: tl.constexpr):
    """values[rows, chunks] for each of a chunk's halfwords."""
    wide = tl.broadcast_to(values[:, :, None], (values.shape[0], values.shape[1], EACH))
    return wide.reshape(values.shape[0], values.shape[1] * EACH)


@triton.jit
def _float8_product(
    values, present, codes, scales, first, last, sums, BLOCK_K: tl.constexpr, PAIRED: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """As `product`, block by block of BLOCK_K: sums of one are exact but for those in f32, and then scaled."""
    tl.static_assert(BLOCK_K == 128, "a block at a time")
    half: tl.constexpr = BLOCK_K // 2
    dtype: tl.constexpr = values.dtype.element_ty
    within = tl.arange(0, half)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        low, high, power = float8_numbers(tl.load(codes[:, None] + start // 2 + within[None, :]), PAIRED)
        scale = tl.load(scales + start // BLOCK_K) * power
        source = values[None, :] + start + within[:, None]
        part = tl.dot(low.to(dtype), tl.load(source, mask=present[None, :], other=0.0), input_precision="ieee")
        part = tl.dot(high.to(dtype), tl.load(source + half, mask=present[None, :], other=0.0), part, input_precision="ieee")
        sums += part * scale[:, None]
    return sums


@triton.jit
def product(
    values, present, codes, scales, minimums, first, last, K, sums,
    BLOCK_K: tl.constexpr, FORMAT: tl.constexpr, CHUNK: tl.constexpr, PAIRED: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """sums[N, R] and weights times rows of x, over K from `first` to `last`.

    `values` points at those rows' beginnings, `codes`, `scales` and `minimums` at those of the weight's. Rows that are not
    `present` count as 0. WHOLE: K is a multiple of BLOCK_K.
    """
    if FORMAT == "e4m3_128":
        return _float8_product(values, present, codes, scales, first, last, sums, BLOCK_K, PAIRED, STAGES)
    else:
        parts: tl.constexpr = parts_of(FORMAT)
        width: tl.constexpr = CHUNK // parts
        chunks: tl.constexpr = BLOCK_K // CHUNK
        dtype: tl.constexpr = values.dtype.element_ty
        halfwords = tl.arange(0, BLOCK_K // parts)
        inner = halfwords // width * CHUNK + halfwords % width
        for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
            # a chunk lies within K or beyond it as a whole
            inside = (start + inner < K) | WHOLE
            if WHOLE:
                w = tl.load(codes[:, None] + start // parts + halfwords[None, :])
            else:
                w = tl.load(codes[:, None] + start // parts + halfwords[None, :], mask=inside[None, :], other=0)
            s = of_chunks(scales, start // CHUNK, K // CHUNK, chunks, CHUNK, WHOLE)
            m = s
            if FORMAT == "q4_1":
                m = of_chunks(minimums, start // CHUNK, K // CHUNK, chunks, CHUNK, WHOLE)
            for part in tl.static_range(parts):
                factor, added = factors(s[part * 2 // parts], m[part * 2 // parts], FORMAT, PAIRED, dtype)
                mask = present[None, :] & inside[:, None]
                v = tl.load(values[None, :] + start + part * width + inner[:, None], mask=mask, other=0.0)
                weight = part_of(w, _of_halfwords(factor, width), _of_halfwords(added, width), part, FORMAT, PAIRED)
                sums = tl.dot(weight, v, sums, input_precision="ieee")
        return sums
