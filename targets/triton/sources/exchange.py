"""Sums over the ranks of an axis through memory that each may write of the others, with what follows: a residual, a norm.

Each rank has an exchange, laid out alike on all; `peers` holds where each rank's begins, then this rank's number. It begins with
a count for each block, of the messages that it has sent. Then each block has two places, in turns, with room for a row of each
rank. Every rank writes its row into all others' places, and adds up what it finds in its own. A place is written again two
messages later: by then the rank that sends has read the message between, which the other sent after it had read the first.

`in_words`: a message is words of 64 bits, two elements and the number of the message. Who reads a word knows by the number that
it has arrived, so that no fence is needed and the latency is that of one store; twice as much is sent. `in_rows`: a message is
the row itself, and a flag that is set behind it.

Both: x[R, N] of each rank -> total[R, N], their sum in the order of ranks, plus residual[R, N] if there is one; with weight[N]
its norm too: out[R, N]. Grid: blocks, each of which does the rows from its number on, as many apart as there are blocks. COUNTS
bytes are before the places (and the flags, which have FLAGS bytes); BLOCK words of 32 bits hold a row. THROUGH: what passes
between ranks must be told to leave the caches.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def _low(word, DTYPE: tl.constexpr):
    """The first element of a word, in f32."""
    return (word & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _high(word, DTYPE: tl.constexpr):
    """The second element of a word, in f32."""
    return ((word >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _word(low, high, DTYPE: tl.constexpr):
    """Two elements side by side."""
    first = low.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)
    second = high.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)
    return (first & 0xFFFF) | (second << 16)


@triton.jit
def _words_of(array):
    """The address of a row of elements, as that of words."""
    return array.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def _exchange(peers, rank):
    """Where a rank's begins."""
    return tl.load(peers + rank)


@triton.jit
def _send(place, values, inside, THROUGH: tl.constexpr):
    if THROUGH:
        tl.store(place, values, mask=inside, cache_modifier=".wt")
    else:
        tl.store(place, values, mask=inside)


@triton.jit
def _looked_up(place, inside, THROUGH: tl.constexpr):
    """What is there now, past all caches of one unit."""
    if THROUGH:
        return tl.load(place, mask=inside, other=0, cache_modifier=".cv")
    return tl.load(place, mask=inside, other=0, volatile=True)


@triton.jit
def _received(place, inside, count, THROUGH: tl.constexpr):
    """A message of words that bear its number, once all of it is there."""
    found = _looked_up(place, inside, THROUGH)
    while tl.max((inside & ((found >> 32).to(tl.int32) != count)).to(tl.int32), axis=0) > 0:
        found = _looked_up(place, inside, THROUGH)
    return (found & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _factor(element, ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """What a normalised value is multiplied with, as in norms.py."""
    if ONE_PLUS:
        element += 1.0
        if CAST_FIRST:
            element = element.to(DTYPE).to(tl.float32)
    return element


@triton.jit
def _factors(weight, words, inside, ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """Of first and of second elements."""
    low = tl.zeros(words.shape, tl.float32)
    high = low
    if weight is not None:
        read = tl.load(_words_of(weight) + words, mask=inside, other=0)
        low = _factor(_low(read, DTYPE), ONE_PLUS, CAST_FIRST, DTYPE)
        high = _factor(_high(read, DTYPE), ONE_PLUS, CAST_FIRST, DTYPE)
    return low, high


@triton.jit
def _beside(residual, row, words, inside, RESIDUAL_ROW: tl.constexpr):
    """A row of the residual, read before the others' rows are waited for; zeros where there is none."""
    kept = tl.zeros(words.shape, tl.int32)
    if residual is not None:
        kept = tl.load(_words_of(residual) + row.to(tl.int64) * (RESIDUAL_ROW // 2) + words, mask=inside, other=0)
    return kept


@triton.jit
def _finish(
    low, high, kept, row, words, inside, residual, weight, factors_low, factors_high, total, out,
    N: tl.constexpr, EPS: tl.constexpr, CAST_FIRST: tl.constexpr,
):  # fmt: skip
    """Writes a row of sums, with what follows."""
    DTYPE: tl.constexpr = total.dtype.element_ty
    at = row.to(tl.int64) * (N // 2) + words
    if residual is not None:
        low += _low(kept, DTYPE)
        high += _high(kept, DTYPE)
    summed = _word(low, high, DTYPE)
    tl.store(_words_of(total) + at, summed, mask=inside)
    if weight is not None:
        low = _low(summed, DTYPE)
        high = _high(summed, DTYPE)
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=0) / N + EPS)
        low *= scale
        high *= scale
        if CAST_FIRST:
            low = low.to(DTYPE).to(tl.float32)
            high = high.to(DTYPE).to(tl.float32)
        tl.store(_words_of(out) + at, _word(low * factors_low, high * factors_high, DTYPE), mask=inside)


@triton.jit
def in_words(
    x, residual, weight, peers, total, out, R,
    N: tl.constexpr, X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, EPS: tl.constexpr, ONE_PLUS: tl.constexpr,
    CAST_FIRST: tl.constexpr, RANKS: tl.constexpr, COUNTS: tl.constexpr, FLAGS: tl.constexpr, BLOCK: tl.constexpr,
    THROUGH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Messages of words that bear their number."""
    DTYPE: tl.constexpr = total.dtype.element_ty
    WORDS: tl.constexpr = N // 2
    block = tl.program_id(0)
    words = tl.arange(0, BLOCK)
    inside = words < WORDS
    me = tl.load(peers + RANKS).to(tl.int32)
    own = _exchange(peers, me)
    factors_low, factors_high = _factors(weight, words, inside, ONE_PLUS, CAST_FIRST, DTYPE)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    counted = own.to(tl.pointer_type(tl.int32)) + block
    count = tl.load(counted)
    row = block
    while row < R:
        count += 1
        place = (block * 2 + (count & 1)) * (RANKS * WORDS)
        mine = tl.load(_words_of(x) + row.to(tl.int64) * (X_ROW // 2) + words, mask=inside, other=0)
        kept = _beside(residual, row, words, inside, RESIDUAL_ROW)
        message = (count.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
        for rank in tl.static_range(RANKS):
            if rank != me:
                theirs = (_exchange(peers, rank) + COUNTS).to(tl.pointer_type(tl.int64))
                _send(tl.multiple_of(theirs + place + me * WORDS + words, 16), message, inside, THROUGH)
        low = tl.zeros((BLOCK,), tl.float32)
        high = tl.zeros((BLOCK,), tl.float32)
        arrived = (own + COUNTS).to(tl.pointer_type(tl.int64))
        for rank in tl.static_range(RANKS):
            part = mine
            if rank != me:
                part = _received(tl.multiple_of(arrived + place + rank * WORDS + words, 16), inside, count, THROUGH)
            low += _low(part, DTYPE)
            high += _high(part, DTYPE)
        _finish(
            low, high, kept, row, words, inside, residual, weight, factors_low, factors_high, total, out,
            N, EPS, CAST_FIRST,
        )  # fmt: skip
        row += tl.num_programs(0)
    tl.store(counted, count)


@triton.jit
def in_rows(
    x, residual, weight, peers, total, out, R,
    N: tl.constexpr, X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, EPS: tl.constexpr, ONE_PLUS: tl.constexpr,
    CAST_FIRST: tl.constexpr, RANKS: tl.constexpr, COUNTS: tl.constexpr, FLAGS: tl.constexpr, BLOCK: tl.constexpr,
    THROUGH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Messages of plain rows, each with a flag behind it."""
    DTYPE: tl.constexpr = total.dtype.element_ty
    WORDS: tl.constexpr = N // 2
    block = tl.program_id(0)
    words = tl.arange(0, BLOCK)
    inside = words < WORDS
    me = tl.load(peers + RANKS).to(tl.int32)
    own = _exchange(peers, me)
    factors_low, factors_high = _factors(weight, words, inside, ONE_PLUS, CAST_FIRST, DTYPE)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    counted = own.to(tl.pointer_type(tl.int32)) + block
    count = tl.load(counted)
    row = block
    while row < R:
        count += 1
        place = (block * 2 + (count & 1)) * (RANKS * WORDS)
        mine = tl.load(_words_of(x) + row.to(tl.int64) * (X_ROW // 2) + words, mask=inside, other=0)
        kept = _beside(residual, row, words, inside, RESIDUAL_ROW)
        for rank in tl.static_range(RANKS):
            if rank != me:
                theirs = (_exchange(peers, rank) + (COUNTS + FLAGS)).to(tl.pointer_type(tl.int32))
                _send(tl.multiple_of(theirs + place + me * WORDS + words, 16), mine, inside, THROUGH)
        tl.debug_barrier()
        for rank in tl.static_range(RANKS):
            if rank != me:
                flags = (_exchange(peers, rank) + COUNTS).to(tl.pointer_type(tl.int32))
                tl.atomic_xchg(flags + block * RANKS + me, count, sem="release", scope="sys")
        low = tl.zeros((BLOCK,), tl.float32)
        high = tl.zeros((BLOCK,), tl.float32)
        raised = (own + COUNTS).to(tl.pointer_type(tl.int32)) + block * RANKS
        arrived = (own + (COUNTS + FLAGS)).to(tl.pointer_type(tl.int32))
        for rank in tl.static_range(RANKS):
            part = mine
            if rank != me:
                # the other may be one message ahead
                while tl.atomic_add(raised + rank, 0, sem="acquire", scope="sys") - count < 0:
                    pass
                tl.debug_barrier()
                part = _looked_up(tl.multiple_of(arrived + place + rank * WORDS + words, 16), inside, THROUGH)
            low += _low(part, DTYPE)
            high += _high(part, DTYPE)
        _finish(
            low, high, kept, row, words, inside, residual, weight, factors_low, factors_high, total, out,
            N, EPS, CAST_FIRST,
        )  # fmt: skip
        row += tl.num_programs(0)
    tl.store(counted, count)


@triton.jit
def gather(
    x, peers, out, R,
    N: tl.constexpr, X_ROW: tl.constexpr, PARTS: tl.constexpr, RANKS: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
    THROUGH: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """x[R, N] of each rank -> out[R, RANKS * N], side by side in the order of ranks. Each row goes in PARTS of BLOCK words,
    messages as of `in_words`. Grid: blocks, each of which does the parts from its number on."""
    WORDS: tl.constexpr = N // 2
    block = tl.program_id(0)
    words = tl.arange(0, BLOCK)
    me = tl.load(peers + RANKS).to(tl.int32)
    own = _exchange(peers, me)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    counted = own.to(tl.pointer_type(tl.int32)) + block
    count = tl.load(counted)
    item = block
    while item < R * PARTS:
        count += 1
        row = (item // PARTS).to(tl.int64)
        columns = (item % PARTS) * BLOCK + words
        inside = columns < WORDS
        place = (block * 2 + (count & 1)) * (RANKS * BLOCK)
        mine = tl.load(_words_of(x) + row * (X_ROW // 2) + columns, mask=inside, other=0)
        message = (count.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
        for rank in tl.static_range(RANKS):
            if rank != me:
                theirs = (_exchange(peers, rank) + COUNTS).to(tl.pointer_type(tl.int64))
                _send(tl.multiple_of(theirs + place + me * BLOCK + words, 16), message, inside, THROUGH)
        arrived = (own + COUNTS).to(tl.pointer_type(tl.int64))
        for rank in tl.static_range(RANKS):
            part = mine
            if rank != me:
                part = _received(tl.multiple_of(arrived + place + rank * BLOCK + words, 16), inside, count, THROUGH)
            tl.store(_words_of(out) + row * (RANKS * WORDS) + rank * WORDS + columns, part, mask=inside)
        item += tl.num_programs(0)
    tl.store(counted, count)
