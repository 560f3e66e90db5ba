"""Weights into planes of blocks (codes.py) where they are loaded: from values, or from a checkpoint's blocks.

Values are rounded as ggml's reference quantisers round them; to 8-bit floats the largest of a block becomes the largest there is.
A weight is its chunks one after another, and so are all planes.
"""

import triton
import triton.language as tl

from .float8 import float8_bits


@triton.jit
def _inverse(scale):
    some = scale != 0.0
    return tl.where(some, tl.math.div_rn(tl.full(scale.shape, 1.0, tl.float32), tl.where(some, scale, 1.0)), 0.0)


@triton.jit
def _rounded(values):
    """To nearest, halves away from zero."""
    size = tl.abs(values)
    whole = tl.floor(size)
    whole += tl.floor(2.0 * (size - whole))
    return tl.where(values < 0.0, -whole, whole).to(tl.int32)


@triton.jit
def _quantized(values, FORMAT: tl.constexpr):
    """values[B, elements] -> codes of the same shape, scale[B], minimum[B]."""
    if FORMAT == "e4m3_128":
        scale = tl.max(tl.abs(values), axis=1)
        scale = tl.math.div_rn(scale, tl.full(scale.shape, 448.0, tl.float32))
        divisor = tl.broadcast_to(tl.where(scale == 0.0, 1.0, scale)[:, None], values.shape)
        return float8_bits(tl.math.div_rn(values, divisor)).to(tl.int32), scale, scale
    elif FORMAT == "q8_0":
        scale = tl.max(tl.abs(values), axis=1)
        scale = tl.math.div_rn(scale, tl.full(scale.shape, 127.0, tl.float32))
        return _rounded(values * _inverse(scale)[:, None]), scale, scale
    elif FORMAT == "q4_0":
        # the value of the largest size, the first of such, becomes -8
        size, place = tl.abs(values), tl.arange(0, 32)[None, :]
        first = tl.min(tl.where(size == tl.max(size, axis=1)[:, None], place, 32), axis=1)[:, None]
        scale = tl.sum(tl.where(place == first, values, 0.0), axis=1) * -0.125
        return tl.minimum((values * _inverse(scale)[:, None] + 8.5).to(tl.int32), 15), scale, scale
    else:
        least, most = tl.min(values, axis=1), tl.max(values, axis=1)
        scale = tl.math.div_rn(most - least, tl.full(least.shape, 15.0, tl.float32))
        return tl.minimum(((values - least[:, None]) * _inverse(scale)[:, None] + 0.5).to(tl.int32), 15), scale, least


@triton.jit
def _half(address, mask):
    return tl.load(address.to(tl.pointer_type(tl.float16)), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _of_checkpoint(data, block, inside, SOURCE: tl.constexpr):
    """codes[B, elements], scale[B], minimum[B] of blocks as they lie in a file."""
    element = tl.arange(0, 32)[None, :]
    if SOURCE == "e4m3_128":
        start = data + block * 132
        scale = tl.load(start.to(tl.pointer_type(tl.float32)), mask=inside, other=0.0)
        codes = tl.load(start[:, None] + 4 + tl.arange(0, 128)[None, :], mask=inside[:, None], other=0).to(tl.int32)
        return codes, scale, scale
    elif SOURCE == "q8_0":
        start = data + block * 34
        codes = tl.load(start[:, None] + 2 + element, mask=inside[:, None], other=0).to(tl.int8, bitcast=True).to(tl.int32)
        return codes, _half(start, inside), _half(start, inside)
    elif SOURCE == "q4_k":
        # blocks of 256: scale and minimum of 8 six-bit pairs, the pairs, and nibbles of which 32 bytes have two blocks of 32
        start, number = data + block // 8 * 144, (block % 8).to(tl.int32)
        pairs = start + 4 + number % 4
        one, two, three = (
            tl.load(pairs, mask=inside, other=0).to(tl.int32),
            tl.load(pairs + 4, mask=inside, other=0).to(tl.int32),
            tl.load(pairs + 8, mask=inside, other=0).to(tl.int32),
        )
        of_scale = tl.where(number < 4, one & 63, (three & 15) | ((one >> 6) << 4)).to(tl.float32)
        of_minimum = tl.where(number < 4, two & 63, (three >> 4) | ((two >> 6) << 4)).to(tl.float32)
        bytes = tl.load((start + 16 + number // 2 * 32)[:, None] + element, mask=inside[:, None], other=0).to(tl.int32)
        return (bytes >> (number % 2 * 4)[:, None]) & 15, _half(start, inside) * of_scale, -_half(start + 2, inside) * of_minimum
    else:
        head: tl.constexpr = 2 if SOURCE == "q4_0" else 4
        start = data + block * (16 + head)
        bytes = tl.load(start[:, None] + head + element % 16, mask=inside[:, None], other=0).to(tl.int32)
        return (bytes >> (element // 16 * 4)) & 15, _half(start, inside), _half(start + (head - 2), inside)


@triton.jit
def pack(
    data, codes, scales, minimums, blocks,
    SOURCE: tl.constexpr, FORMAT: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """data: values[blocks * SIZE], or the SOURCE's blocks -> planes. Grid: CHUNKS chunks each."""
    of_chunk: tl.constexpr = CHUNK // SIZE
    block = tl.program_id(0).to(tl.int64) * (CHUNKS * of_chunk) + tl.arange(0, CHUNKS * of_chunk)
    inside = block < blocks
    if SOURCE == "values":
        values = tl.load(data + block[:, None] * SIZE + tl.arange(0, SIZE)[None, :], mask=inside[:, None], other=0.0)
        code, scale, minimum = _quantized(values.to(tl.float32), FORMAT)
    else:
        code, scale, minimum = _of_checkpoint(data, block, inside, SOURCE)
    tl.store(scales + block, scale.to(scales.dtype.element_ty), mask=inside)
    if minimums is not None:
        tl.store(minimums + block, minimum.to(tl.float16), mask=inside)
    parts: tl.constexpr = 4 if FORMAT == "q4_0" or FORMAT == "q4_1" else 2
    bits: tl.constexpr = 16 // parts
    shifts = (tl.arange(0, parts) * bits)[None, :, None]
    placed = (code.reshape(CHUNKS, parts, CHUNK // parts) & ((1 << bits) - 1)) << shifts
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    halfword = chunk[:, None] * (CHUNK // parts) + tl.arange(0, CHUNK // parts)[None, :]
    tl.store(
        codes.to(tl.pointer_type(tl.int16)) + halfword,
        tl.sum(placed, axis=1).to(tl.int16),
        mask=(chunk * of_chunk < blocks)[:, None],
    )
