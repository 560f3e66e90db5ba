"""Rotary position embedding, and the KV cache's writes, alone and together."""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .float8 import stored
from .norms import norm_factor, scaled


@triton.jit
def table(
    positions, frequencies, cos, sin,
    HALF: tl.constexpr, SCALING: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """positions[R], frequencies[HALF] -> cos[R, 2 HALF], sin[R, 2 HALF], both halves alike. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HALF
    frequency = tl.load(frequencies + columns, mask=inside, other=0.0)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    angle = tl.load(positions + row).to(tl.float32) * frequency
    # hardware's sine is good near 0 only, and a position may be a million
    turns = angle.to(tl.float64) * 0.15915494309189535
    rest = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
    cosine = (tl.cos(rest) * SCALING).to(cos.dtype.element_ty)
    sine = (tl.sin(rest) * SCALING).to(sin.dtype.element_ty)
    start = row * (2 * HALF) + columns
    tl.store(cos + start, cosine, mask=inside)
    tl.store(cos + start + HALF, cosine, mask=inside)
    tl.store(sin + start, sine, mask=inside)
    tl.store(sin + start + HALF, sine, mask=inside)


@triton.jit
def _places(pairs, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Columns of the two that are turned together."""
    left = pairs * 2 if INTERLEAVED else pairs
    right = left + 1 if INTERLEAVED else pairs + TURNED // 2
    return left, right


@triton.jit
def _norm_factors(
    weight, pairs, D: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr, REST: tl.constexpr,
    ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What the columns of a normalised head are multiplied with: the left and the right of each pair, and those not turned."""
    left, right = _places(pairs, TURNED, INTERLEAVED)
    inside = pairs < TURNED // 2
    of_left = norm_factor(weight, left, inside, ONE_PLUS, CAST_FIRST, DTYPE)
    of_right = norm_factor(weight, right, inside, ONE_PLUS, CAST_FIRST, DTYPE)
    columns = TURNED + tl.arange(0, REST if REST > 0 else 1)
    of_rest = norm_factor(weight, columns, columns < D, ONE_PLUS, CAST_FIRST, DTYPE)
    return of_left, of_right, of_rest


@triton.jit
def _turn_heads(
    x, out, factors, cosine, sine, heads, limit, pairs,
    D: tl.constexpr, TURNED: tl.constexpr, X_HEAD: tl.constexpr, OUT_HEAD: tl.constexpr,
    INTERLEAVED: tl.constexpr, REST: tl.constexpr, EPS: tl.constexpr, CAST_FIRST: tl.constexpr,
):  # fmt: skip
    """Turn the `heads` below `limit` of one row; x and out point at the row's first head. `factors`, unless None, are those of an
    RMS norm of each head, which comes first."""
    left, right = _places(pairs, TURNED, INTERLEAVED)
    mask = (heads < limit)[:, None] & (pairs < TURNED // 2)[None, :]
    source, target = x + heads[:, None] * X_HEAD, out + heads[:, None] * OUT_HEAD
    first = tl.load(source + left[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + right[None, :], mask=mask, other=0.0).to(tl.float32)
    if REST > 0:
        columns = TURNED + tl.arange(0, REST)
        of_rest = (heads < limit)[:, None] & (columns < D)[None, :]
        rest = tl.load(source + columns[None, :], mask=of_rest, other=0.0).to(tl.float32)
    if factors is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST > 0:
            squares += tl.sum(rest * rest, axis=1)
        kind: tl.constexpr = x.dtype.element_ty
        scale = tl.rsqrt(squares / D + EPS)
        first = scaled(first, scale, factors[0], CAST_FIRST, kind).to(tl.float32)
        second = scaled(second, scale, factors[1], CAST_FIRST, kind).to(tl.float32)
        if REST > 0:
            rest = scaled(rest, scale, factors[2], CAST_FIRST, kind).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(target + left[None, :], stored(first * cosine[None, :] - second * sine[None, :], dtype), mask=mask)
    tl.store(target + right[None, :], stored(second * cosine[None, :] + first * sine[None, :], dtype), mask=mask)
    if REST > 0:
        tl.store(target + columns[None, :], stored(rest, dtype), mask=of_rest)


@triton.jit
def rope(
    x, cos, sin, out,
    HEADS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr,
    TABLE_ROW: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """x[R, HEADS, D] -> out[R, HEADS, D], its first TURNED columns turned. Grid: rows, blocks of heads."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    pairs = tl.arange(0, BLOCK)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    inside = pairs < TURNED // 2
    cosine = tl.load(cos + row * TABLE_ROW + pairs, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + row * TABLE_ROW + pairs, mask=inside, other=0.0).to(tl.float32)
    _turn_heads(
        x + row * X_ROW, out + row * (HEADS * D), None, cosine, sine, heads, HEADS, pairs,
        D, TURNED, X_HEAD, D, INTERLEAVED, REST, 0.0, False,
    )  # fmt: skip


@triton.jit
def _copy_heads(x, out, heads, limit, columns, D: tl.constexpr, X_HEAD: tl.constexpr, OUT_HEAD: tl.constexpr):
    mask = (heads < limit)[:, None] & (columns < D)[None, :]
    values = tl.load(x + heads[:, None] * X_HEAD + columns[None, :], mask=mask)
    tl.store(out + heads[:, None] * OUT_HEAD + columns[None, :], stored(values, out.dtype.element_ty), mask=mask)


@triton.jit
def rope_kv_write(
    q, k, v, cos, sin, slot_mapping, q_norm, k_norm, q_out, k_cache, v_cache,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr, V_HEAD: tl.constexpr, TABLE_ROW: tl.constexpr, TOKENS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, REST: tl.constexpr,
    EPS: tl.constexpr, ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Turn q into q_out[R, HEADS, D] and k into its cache, copy v into its own; caches are [blocks, KV_HEADS, TOKENS, D].

    Heads of q and k are normalised first, unless q_norm and k_norm, the weights of that, are None.

    Grid: rows, blocks of q's heads and then of kv heads.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    pairs = tl.arange(0, BLOCK)
    inside = pairs < TURNED // 2
    let_next_begin(DEPENDENT)
    # no kernel writes weights and the step's inputs
    kind: tl.constexpr = q.dtype.element_ty
    if q_norm is not None:
        q_factors = _norm_factors(q_norm, pairs, D, TURNED, INTERLEAVED, REST, ONE_PLUS, CAST_FIRST, kind)
        k_factors = _norm_factors(k_norm, pairs, D, TURNED, INTERLEAVED, REST, ONE_PLUS, CAST_FIRST, kind)
    else:
        q_factors, k_factors = None, None
    slot = tl.load(slot_mapping + row)
    wait_for_inputs(DEPENDENT)
    cosine = tl.load(cos + row * TABLE_ROW + pairs, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + row * TABLE_ROW + pairs, mask=inside, other=0.0).to(tl.float32)
    if part < q_parts:
        heads = part * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        _turn_heads(
            q + row * Q_ROW, q_out + row * (HEADS * D), q_factors, cosine, sine, heads, HEADS, pairs,
            D, TURNED, Q_HEAD, D, INTERLEAVED, REST, EPS, CAST_FIRST,
        )  # fmt: skip
    else:
        heads = (part - q_parts) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        # a padded row has no slot, and writes nothing
        limit = tl.where(slot < 0, 0, KV_HEADS)
        kept = tl.maximum(slot, 0)
        start = (kept // TOKENS) * (KV_HEADS * TOKENS * D) + (kept % TOKENS) * D
        _turn_heads(
            k + row * K_ROW, k_cache + start, k_factors, cosine, sine, heads, limit, pairs,
            D, TURNED, K_HEAD, TOKENS * D, INTERLEAVED, REST, EPS, CAST_FIRST,
        )  # fmt: skip
        _copy_heads(v + row * V_ROW, v_cache + start, heads, limit, tl.arange(0, BLOCK_D), D, V_HEAD, TOKENS * D)


@triton.jit
def kv_write(
    k, v, slot_mapping, k_cache, v_cache,
    KV_HEADS: tl.constexpr, D: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr, V_HEAD: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Copy k and v into their caches [blocks, KV_HEADS, TOKENS, D]. Grid: rows, blocks of heads."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, BLOCK_D)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    slot = tl.load(slot_mapping + row)
    limit = tl.where(slot < 0, 0, KV_HEADS)
    kept = tl.maximum(slot, 0)
    start = (kept // TOKENS) * (KV_HEADS * TOKENS * D) + (kept % TOKENS) * D
    _copy_heads(k + row * K_ROW, k_cache + start, heads, limit, columns, D, K_HEAD, TOKENS * D)
    _copy_heads(v + row * V_ROW, v_cache + start, heads, limit, columns, D, V_HEAD, TOKENS * D)
