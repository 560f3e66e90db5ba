"""Sampling: logits to tokens over the slot buffers of plans/sampling.py, one program or more for each logit row.

A row whose slot is -1 is padding. What a slot asks for are the bits of `features`, so that greedy rows cost an argmax alone.
"""

import triton
import triton.language as tl

from .cut import lowest_kept
from .dependence import let_next_begin, wait_for_inputs
from .logits import ADJUSTMENTS, scaled, values

RANDOM, FILTERS, PENALTIES, BIAS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4), tl.constexpr(8)
MINIMUM_TOKENS, LOGPROBS = tl.constexpr(16), tl.constexpr(32)
_PHILOX_ROUNDS = tl.constexpr(10)


@triton.jit
def _asked(features, slot):
    return tl.where(slot >= 0, tl.load(features + tl.maximum(slot, 0)), 0)


@triton.jit
def adjust_logits(
    logits, logit_slots, features, repetition_penalty, presence_penalty, frequency_penalty, prompt_seen, output_counts,
    bias_tokens, bias_values, min_tokens, output_position, end_tokens, adjusted,
    V: tl.constexpr, BIASES: tl.constexpr, ENDS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Logits as requests want them changed; rows that ask for no change are not written. Grid: logit rows, blocks of V."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    slot = tl.load(logit_slots + row).to(tl.int64)
    asked = _asked(features, slot)
    if asked & ADJUSTMENTS:
        values = tl.load(logits + row * V + columns, mask=inside, other=0.0).to(tl.float32)
        if asked & PENALTIES:
            counts = tl.load(output_counts + slot * V + columns, mask=inside, other=0)
            seen = tl.load(prompt_seen + slot * V + columns, mask=inside, other=0)
            repetition = tl.load(repetition_penalty + slot)
            penalised = tl.where(values > 0, values / repetition, values * repetition)
            values = tl.where((counts > 0) | (seen != 0), penalised, values)
            values -= tl.load(presence_penalty + slot) * (counts > 0).to(tl.float32)
            values -= tl.load(frequency_penalty + slot) * counts.to(tl.float32)
        if asked & BIAS:
            for at in range(BIASES):
                token = tl.load(bias_tokens + slot * BIASES + at)
                if token >= 0:
                    values += tl.where(columns == token, tl.load(bias_values + slot * BIASES + at), 0.0)
        early = tl.load(output_position + slot) < tl.load(min_tokens + slot)
        if ((asked & MINIMUM_TOKENS) != 0) & early:
            for at in range(ENDS):
                token = tl.load(end_tokens + slot * ENDS + at)
                values = tl.where((token >= 0) & (columns == token), -float("inf"), values)
        tl.store(adjusted + row * V + columns, values, mask=inside)


@triton.jit
def largest_of_blocks(
    logits, adjusted, logit_slots, features, largest, places,
    V: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The largest value of each block and its first place; infinity where one is not a number. Grid: logit rows, blocks of V."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    asked = _asked(features, tl.load(logit_slots + row))
    found = values(logits, adjusted, asked, row, columns, V)
    broken = tl.max((found != found).to(tl.int32), axis=0) > 0
    best, place = tl.max(found, axis=0, return_indices=True, return_indices_tie_break_left=True)
    at = row * tl.num_programs(1) + block
    tl.store(largest + at, tl.where(broken, float("inf"), best))
    tl.store(places + at, block * BLOCK + place)


@triton.jit
def draw_tokens(
    logits, adjusted, logit_slots, features, temperature, top_k, top_p, min_p, seed, output_position, largest, places,
    room, tokens, V: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BLOCKS_ABOVE: tl.constexpr, PARTS: tl.constexpr,
    ROOM: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The token of each row: the first of the largest values, or one drawn of those that the filters keep. Grid: logit rows.

    `largest` and `places` have BLOCKS of a row, `room` has space for ROOM values of it; it is read in PARTS of BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    slot = tl.load(logit_slots + row).to(tl.int64)
    asked = _asked(features, slot)
    blocks = tl.arange(0, BLOCKS_ABOVE)
    bests = tl.load(largest + row * BLOCKS + blocks, mask=blocks < BLOCKS, other=-float("inf"))
    best = tl.max(bests, axis=0)
    firsts = tl.load(places + row * BLOCKS + blocks, mask=blocks < BLOCKS, other=V)
    token = tl.min(tl.where(bests == best, firsts, V), axis=0)
    usable = (best > -float("inf")) & (best < float("inf"))
    if usable & (slot >= 0) & ((asked & RANDOM) != 0):
        heat = tl.load(temperature + slot)
        lowest = tl.full((), -float("inf"), tl.float32)
        if asked & FILTERS:
            mine = room + row * ROOM
            lowest = lowest_kept(
                logits, adjusted, asked, row, slot, best, heat, top_k, top_p, min_p, mine, V, BLOCK, ROOM
            )  # fmt: skip
        chance = _uniform(tl.load(seed + slot), tl.load(output_position + slot))
        token = _inverse(logits, adjusted, asked, row, best, heat, lowest, chance, token, V, BLOCK, PARTS)
    tl.store(tokens + row, tl.where(slot < 0, 0, tl.where(usable, token, -1)))


@triton.jit
def _weights(logits, adjusted, asked, row, columns, best, heat, lowest, V: tl.constexpr):
    x = scaled(logits, adjusted, asked, row, columns, best, heat, V)
    return tl.where(x >= lowest, tl.exp(x), 0.0).to(tl.float64)


@triton.jit
def _inverse(
    logits, adjusted, asked, row, best, heat, lowest, chance, likeliest, V: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """The first token, in order, up to which the weights sum to more than `chance` of their sum: the block in which they do is
    known from the sums of blocks. The last of that block that weighs anything where rounding leaves none."""
    parts = tl.arange(0, PARTS)
    sums = tl.zeros((PARTS,), tl.float64)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        weights = _weights(logits, adjusted, asked, row, columns, best, heat, lowest, V)
        sums = tl.where(parts == start // BLOCK, tl.sum(weights, axis=0), sums)
    target = tl.sum(sums, axis=0) * chance
    at = tl.sum(((tl.cumsum(sums, axis=0) <= target) & (parts < (V - 1) // BLOCK)).to(tl.int32), axis=0)
    columns = at * BLOCK + tl.arange(0, BLOCK)
    weights = _weights(logits, adjusted, asked, row, columns, best, heat, lowest, V)
    running = tl.sum(tl.where(parts < at, sums, 0.0), axis=0) + tl.cumsum(weights, axis=0)
    found = tl.min(tl.where((running > target) & (weights > 0), columns, V), axis=0)
    last = tl.max(tl.where(weights > 0, columns, -1), axis=0)
    return tl.where(found < V, found, tl.where(last >= 0, last, likeliest))


@triton.jit
def _uniform(seed, position):
    """A number in [0, 1) with 53 random bits: Philox4x32-10 of the seed (the key) and the output position (the counter)."""
    zero = tl.zeros((), tl.uint32)
    c0, c1, c2, c3 = position.to(tl.uint32), zero, zero, zero
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(_PHILOX_ROUNDS):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = b.to(tl.uint32), a.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    bits = ((c0.to(tl.uint64) << 32) | c1.to(tl.uint64)) >> 11
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def token_logprobs(
    logits, tokens, logit_slots, features, chosen, top_tokens, top_values,
    V: tl.constexpr, TOPS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Log probabilities of the chosen token and of the TOPS likeliest, of rows that ask. Grid: logit rows."""
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    asked = _asked(features, tl.load(logit_slots + row))
    if asked & LOGPROBS:
        best = tl.full((), -float("inf"), tl.float32)
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
            best = tl.maximum(best, tl.max(values, axis=0))
        total = tl.zeros((), tl.float64)
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
            total += tl.sum(tl.exp(values - best).to(tl.float64), axis=0)
        shift = best + tl.log(total.to(tl.float32))
        token = tl.maximum(tl.load(tokens + row), 0)
        tl.store(chosen + row, tl.load(logits + row * V + token).to(tl.float32) - shift)
        last, last_token = tl.full((), float("inf"), tl.float32), tl.full((), -1, tl.int32)
        for place in range(TOPS):
            next_value, next_token = tl.full((), -float("inf"), tl.float32), tl.full((), V, tl.int32)
            for start in range(0, V, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                values = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
                below = (columns < V) & ((values < last) | ((values == last) & (columns > last_token)))
                value = tl.max(tl.where(below, values, -float("inf")), axis=0)
                first = tl.min(tl.where(below & (values == value), columns, V), axis=0)
                better = (value > next_value) | ((value == next_value) & (first < next_token))
                next_value, next_token = tl.where(better, value, next_value), tl.where(better, first, next_token)
            last, last_token = next_value, next_token
            tl.store(top_tokens + row * TOPS + place, tl.where(last_token < V, last_token, -1))
            tl.store(top_values + row * TOPS + place, tl.where(last_token < V, last - shift, -float("inf")))


@triton.jit
def record_tokens(
    tokens, logit_slots, features, last_tokens, output_counts, output_position, rows,
    V: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sampled tokens into their slots; padded and failed rows record nothing. Grid: blocks of logit rows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = at < rows
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    token = tl.load(tokens + at, mask=present, other=-1)
    slot = tl.load(logit_slots + at, mask=present, other=-1).to(tl.int64)
    real = (token >= 0) & (slot >= 0)
    position = tl.load(output_position + slot, mask=real, other=0)
    tl.store(output_position + slot, position + 1, mask=real)
    tl.store(last_tokens + slot, token, mask=real)
    counted = real & ((tl.load(features + slot, mask=real, other=0) & PENALTIES) != 0)
    count = tl.load(output_counts + slot * V + token, mask=counted, other=0)
    tl.store(output_counts + slot * V + token, count + 1, mask=counted)
