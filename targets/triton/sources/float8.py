"""8-bit floats e4m3 (of no infinities) by their bits, on devices that have no instructions for them as well.

They are read two at a time, out of halfwords, as float16: moved there, an e4m3's bits are the number less 8 powers of two, of the
smallest ones too. Devices of NVIDIA from sm_90 on have an instruction for it, after which there is nothing to make up for.
"""

import triton
import triton.language as tl

_BITS = tl.constexpr("""{
    .reg .b32 a, b;
    shl.b32 a, $2, 8;
    shl.b32 b, $2, 7;
    and.b32 b, b, 0x3f803f80;
    lop3.b32 $0, a, 0x80008000, b, 0xEA;
    shr.u32 b, $2, 1;
    and.b32 b, b, 0x3f803f80;
    lop3.b32 $1, $2, 0x80008000, b, 0xEA;
}""")
_INSTRUCTION = tl.constexpr("""{
    .reg .b32 p;
    .reg .b16 a, b;
    prmt.b32 p, $2, 0, 0x3120;
    mov.b32 {a, b}, p;
    cvt.rn.f16x2.e4m3x2 $0, a;
    cvt.rn.f16x2.e4m3x2 $1, b;
}""")


@triton.jit
def float8_pairs(halfwords, MEANS: tl.constexpr):
    """The low and the high bytes of halfwords as float16. MEANS is how: "bits", "paired bits" (of NVIDIA), "instruction"."""
    if MEANS == "instruction":
        return tl.inline_asm_elementwise(
            _INSTRUCTION, "=r,=r,r", [halfwords], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    elif MEANS == "paired bits":
        return tl.inline_asm_elementwise(_BITS, "=r,=r,r", [halfwords], dtype=(tl.float16, tl.float16), is_pure=True, pack=2)
    else:
        low = ((halfwords << 8) & -32768) | ((halfwords << 7) & 0x3F80)
        high = (halfwords & -32768) | ((halfwords >> 1) & 0x3F80)
        return low.to(tl.float16, bitcast=True), high.to(tl.float16, bitcast=True)


# a bfloat16 of the same bits, moved there, is the number less 120 powers of two
_BFLOAT16 = tl.constexpr("""{
    .reg .b32 a, b, m, z;
    mov.b32 m, 0x7B807B80;
    mov.b32 z, 0x80008000;
    shl.b32 a, $2, 8;
    shl.b32 b, $2, 4;
    and.b32 b, b, 0x07f007f0;
    lop3.b32 a, a, 0x80008000, b, 0xEA;
    fma.rn.bf16x2 $0, a, m, z;
    shr.u32 b, $2, 4;
    and.b32 b, b, 0x07f007f0;
    lop3.b32 a, $2, 0x80008000, b, 0xEA;
    fma.rn.bf16x2 $1, a, m, z;
}""")


@triton.jit
def float8_numbers(halfwords, PAIRED: tl.constexpr):
    """The low and the high bytes of halfwords as numbers, and what those must be multiplied by. PAIRED: bfloat16 by NVIDIA's
    instructions, else float16."""
    if PAIRED:
        low, high = tl.inline_asm_elementwise(
            _BFLOAT16, "=r,=r,r", [halfwords], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
        return low, high, 1.0
    else:
        low, high = float8_pairs(halfwords, "bits")
        return low, high, 256.0


@triton.jit
def float8_bits(values):
    """The bits of values rounded to the nearest e4m3, ties to even; what is larger than 448 becomes that."""
    values = values.to(tl.float32)
    sign = (values.to(tl.int32, bitcast=True) >> 24) & 128
    size = tl.minimum(tl.abs(values), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # steps of 2^-9 are the last bits of numbers around 2^14
    small = (size + 16384.0).to(tl.int32, bitcast=True) & 15
    code = tl.where(size < 0.015625, small, large)
    code = tl.where(values != values, 127, code)
    return (code | sign).to(tl.uint8)


@triton.jit
def float8_rounded(values):
    """Float32 values of at most 448 rounded to the nearest e4m3, ties to even, as float32."""
    bits = values.to(tl.int32, bitcast=True)
    large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576).to(tl.float32, bitcast=True)
    size = tl.abs(values)
    small = (size + 16384.0) - 16384.0
    return tl.where(size < 0.015625, tl.where(values < 0.0, -small, small), large)


@triton.jit
def stored(values, dtype: tl.constexpr):
    """Values as elements of `dtype`, of which bytes are 8-bit floats."""
    if dtype == tl.uint8:
        return float8_bits(values)
    else:
        return values.to(dtype)
