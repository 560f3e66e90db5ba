"""Causal attention of chunks over paged keys and values [blocks, KV_HEADS, TOKENS, D], for Hopper: warps with roles of their own.

One warp copies tiles by descriptors into shared memory, ahead of two groups of four warps that do half of a tile's rows each. A
group multiplies its queries with the next keys while it still multiplies weights with values, and takes exponentials meanwhile;
the groups take turns to begin their products, so that one's exponentials fall in with the other's products.
The heads of a kv head go through a tile together: row r of a tile is head r % BLOCK_H of query r // BLOCK_H. Scores are kept in
powers of two.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def _turn(count, STAGES: gl.constexpr):
    """Which of STAGES places something numbered `count` has, and the parity of its turn there."""
    return count % STAGES, (count // STAGES) & 1


@gluon.jit
def _of_round(first, UNITS: gl.constexpr):
    """This program's tile of the UNITS from `first` on: forward and backward by turns, so that long ones meet short ones."""
    place = gl.program_id(0)
    return first + gl.where(first // UNITS % 2 == 0, place, UNITS - 1 - place)


@gluon.jit
def _tile(number, rows, decoding, sequences, starts, KV_HEADS: gl.constexpr, BLOCK_Q: gl.constexpr, SEQUENCES: gl.constexpr):
    """Tile `number`: its first row, the row after its last, its kv head, and its sequences [first, last); tiles beyond the last
    have none."""
    # the last rows see the most keys: begin with them
    first_row = ((rows + BLOCK_Q - 1) // BLOCK_Q - 1 - number // KV_HEADS) * BLOCK_Q
    last_row = gl.minimum(first_row + BLOCK_Q, rows)
    # every warp has all of them, so that sums need no other warp
    layout: gl.constexpr = gl.SliceLayout(0, gl.BlockedLayout([1, 1], [1, 32], [gl.num_warps(), 1], [1, 0]))
    at_once: gl.constexpr = min(SEQUENCES, 64)  # more of them would want more registers than the warp that copies has
    numbers = gl.arange(0, at_once, layout=layout)
    first_sequence, last_sequence = decoding, decoding
    for at in range(decoding, sequences, at_once):
        inside = at + numbers < sequences
        ends = gl.load(starts + 1 + at + numbers, mask=inside, other=2147483647)
        begins = gl.load(starts + at + numbers, mask=inside, other=2147483647)
        first_sequence += gl.sum((ends <= first_row).to(gl.int32), 0)
        last_sequence += gl.sum((begins < last_row).to(gl.int32), 0)
    return first_row, last_row, number % KV_HEADS, first_sequence, last_sequence


@gluon.jit
def _span(
    sequence, first_row, last_row, starts, lengths, WINDOW: gl.constexpr, BLOCK_T: gl.constexpr, PAGE: gl.constexpr
):  # fmt: skip
    """Of a sequence in a tile: its rows [begin, end), its tokens, and the keys [low, stop) that its rows in the tile see; of them
    all rows see those below `seen_by_all`. Without a window both are multiples of BLOCK_T, else of a block of the cache as well:
    what lies in blocks before the window is another sequence's by now."""
    begin, end, length = gl.load(starts + sequence), gl.load(starts + sequence + 1), gl.load(lengths + sequence)
    shift = length - end
    lowest = gl.maximum(first_row, begin) + shift
    stop = gl.minimum(last_row, end) + shift
    if WINDOW > 0:
        low = gl.maximum(lowest - (WINDOW - 1), 0) // PAGE * PAGE
        seen_by_all = low
    else:
        low = 0
        # rows of another sequence may come before this one's: what they get is not kept
        seen_by_all = (lowest + 1) // BLOCK_T * BLOCK_T
    return begin, end, length, low, seen_by_all, stop


@gluon.jit
def _share(share, low, stop, SHARES: gl.constexpr, BLOCK_T: gl.constexpr):
    """Of the keys [low, stop) those of a share, and whether it has any; one without gets the last block, to see nothing of it."""
    size = (stop - low + SHARES * BLOCK_T - 1) // (SHARES * BLOCK_T) * BLOCK_T
    start = low + share * size
    there = start < stop
    start = gl.where(there, start, low + (stop - low - 1) // BLOCK_T * BLOCK_T)
    return start, gl.minimum(start + size, stop), there


@gluon.jit
def _copy_tiles(
    q, k_cache, v_cache, starts, lengths, tables, counts,
    q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, TABLE: gl.constexpr, D: gl.constexpr,
    Q_ROW: gl.constexpr, Q_HEAD: gl.constexpr, WINDOW: gl.constexpr, SEQUENCES: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, UNITS: gl.constexpr,
    SHARES: gl.constexpr,
):  # fmt: skip
    """The warp that copies: queries of a tile, then its keys and values."""
    page: gl.constexpr = min(TOKENS, BLOCK_T)
    group: gl.constexpr = HEADS // KV_HEADS
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([page, D], k_cache.dtype.element_ty)
    of_queries: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_Q // 2, BLOCK_H, D], q.dtype.element_ty)
    rows, decoding, sequences = gl.load(counts), gl.load(counts + 1), gl.load(counts + 2)
    queries = tma.make_tensor_descriptor(q, [rows, HEADS, D], [Q_ROW, Q_HEAD, 1], [BLOCK_Q // 2, BLOCK_H, D], of_queries)
    keys = tma.make_tensor_descriptor(k_cache, [2147483647, D], [D, 1], [page, D], layout)
    values = tma.make_tensor_descriptor(v_cache, [2147483647, D], [D, 1], [page, D], layout)
    items, copied = 0, 0
    for first in range(0, (rows + BLOCK_Q - 1) // BLOCK_Q * KV_HEADS * SHARES, UNITS):
        number = _of_round(first, UNITS)
        first_row, last_row, kv_head, first_sequence, last_sequence = _tile(
            number // SHARES, rows, decoding, sequences, starts, KV_HEADS, BLOCK_Q, SEQUENCES
        )
        for sequence in range(first_sequence, last_sequence):
            _, _, length, low, _, stop = _span(sequence, first_row, last_row, starts, lengths, WINDOW, BLOCK_T, page)
            if SHARES > 1:
                low, stop, _ = _share(number % SHARES, low, stop, SHARES, BLOCK_T)
            table = tables + sequence * TABLE
            place, parity = _turn(items, 2)
            mbarrier.wait(q_free.index(place), parity ^ 1)
            mbarrier.expect(q_full.index(place), 2 * q_tiles.index(0).nbytes_per_cta)
            for half in gl.static_range(2):
                tma.async_load(
                    queries,
                    [first_row + half * (BLOCK_Q // 2), kv_head * group, 0],
                    q_full.index(place),
                    q_tiles.index(place * 2 + half),
                )
            items += 1
            last_page = (length - 1) // TOKENS
            for token in range(low, stop, BLOCK_T):
                place, parity = _turn(copied, STAGES)
                mbarrier.wait(k_free.index(place), parity ^ 1)
                mbarrier.expect(k_full.index(place), k_tiles.index(0).nbytes_per_cta)
                for part in gl.static_range(BLOCK_T // page):
                    at = token + part * page
                    block = gl.load(table + gl.minimum(at // TOKENS, last_page))
                    row = (block * KV_HEADS + kv_head) * TOKENS + at % TOKENS
                    tma.async_load(keys, [row, 0], k_full.index(place), k_tiles.index(place).slice(part * page, page))
                mbarrier.wait(v_free.index(place), parity ^ 1)
                mbarrier.expect(v_full.index(place), v_tiles.index(0).nbytes_per_cta)
                for part in gl.static_range(BLOCK_T // page):
                    at = token + part * page
                    block = gl.load(table + gl.minimum(at // TOKENS, last_page))
                    row = (block * KV_HEADS + kv_head) * TOKENS + at % TOKENS
                    tma.async_load(values, [row, 0], v_full.index(place), v_tiles.index(place).slice(part * page, page))
                copied += 1


@gluon.jit
def _await_turn(HALF: gl.constexpr):
    """Until the other group has begun its products. The first of both groups begins."""
    # barriers of both groups' 256 threads; the compiler's own have lower numbers. One in shared memory costs what turns gain
    gl.inline_asm("bar.sync 8, 256;" if HALF == 0 else "bar.sync 9, 256;")


@gluon.jit
def _pass_turn(HALF: gl.constexpr):
    gl.inline_asm("bar.arrive 9, 256;" if HALF == 0 else "bar.arrive 8, 256;")


@gluon.jit
def _weigh(
    scores, token, positions, best, total,
    SCALE: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """A running softmax with scores of the keys from `token` on: weights, by how much what came before shrinks, largest score,
    sum of weights."""
    power: gl.constexpr = 1.4426950408889634 * (1.0 if SOFTCAP > 0.0 else SCALE)
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        scores = SOFTCAP - 2.0 * SOFTCAP / (gl.exp2(scores * (2.0 * 1.4426950408889634 * SCALE / SOFTCAP)) + 1.0)
    if MASKED:
        columns = gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, scores.type.layout))
        # rows of other sequences may see what is not theirs: what they get is not kept
        distance = positions[:, None] - (token + columns)[None, :]
        # what lies ahead is, without a sign, further than any window
        seen = distance.to(gl.uint32) < WINDOW if WINDOW > 0 else distance >= 0
        scores = gl.where(seen, scores, float("-inf"))
    higher = gl.maximum(best, gl.max(scores, axis=1) * power)
    # a row that has seen nothing yet has no largest score: minus infinity less itself is no number
    base = gl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
    weights = gl.exp2(scores * power - base[:, None])
    shrink = gl.exp2(best - base)
    return weights, shrink, higher, total * shrink + gl.sum(weights, axis=1)


@gluon.jit
def _step(
    query, token, positions, best, total, sums, weights, used,
    k_tiles, v_tiles, k_full, k_free, v_full, v_free,
    SCALE: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr, MASKED: gl.constexpr,
    STAGES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Scores of tile `used` while the weights of the one ahead are multiplied with its values."""
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, k_tiles.shape[1], 16])
    place, parity = _turn(used, STAGES)
    ahead, ahead_parity = _turn(used - 1, STAGES)
    mbarrier.wait(k_full.index(place), parity)
    _await_turn(HALF)
    scores = gl.zeros([query.shape[0], k_tiles.shape[1]], gl.float32, scores_layout)
    scores = warpgroup_mma(query, k_tiles.index(place).permute((1, 0)), scores, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(ahead), ahead_parity)
    sums = warpgroup_mma(weights, v_tiles.index(ahead), sums, is_async=True)
    _pass_turn(HALF)
    scores = warpgroup_mma_wait(1, deps=(scores,))
    mbarrier.arrive(k_free.index(place), count=1)
    later, shrink, best, total = _weigh(scores, token, positions, best, total, SCALE, SOFTCAP, WINDOW, MASKED)
    sums, weights = warpgroup_mma_wait(0, deps=(sums, weights))
    mbarrier.arrive(v_free.index(ahead), count=1)
    rows: gl.constexpr = gl.SliceLayout(1, sums.type.layout)
    sums = sums * gl.convert_layout(shrink, rows)[:, None]
    later = gl.convert_layout(later.to(v_tiles.dtype), weights.type.layout)
    return best, total, sums, later


@gluon.jit
def _store_share(
    partial, weight, sums, best, total, share, my_row, first_head, begin, end,
    HEADS: gl.constexpr, D: gl.constexpr, group: gl.constexpr, BLOCK_H: gl.constexpr, SHARES: gl.constexpr,
):  # fmt: skip
    """What a share makes of the rows that are a sequence's, as registers hold it: shared memory has no room for it."""
    layout: gl.constexpr = sums.type.layout
    numbers = gl.arange(0, sums.shape[0], layout=best.type.layout)
    row, of_group = my_row + numbers // BLOCK_H, numbers % BLOCK_H
    mine = (row >= begin) & (row < end) & (of_group < group)
    place = (row * HEADS + first_head + of_group) * SHARES + share
    gl.store(weight + place, best + gl.log2(total), mask=mine)
    # a row may see no key of a share
    scale = gl.convert_layout(1.0 / gl.where(total > 0.0, total, 1.0), gl.SliceLayout(1, layout))
    numbers = gl.arange(0, sums.shape[0], layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    of_query, of_group = numbers // BLOCK_H, numbers % BLOCK_H
    mine = (of_query >= begin - my_row) & (of_query < end - my_row) & (of_group < group)
    corner = partial + ((my_row.to(gl.int64) * HEADS + first_head) * SHARES + share) * D
    offsets = (of_query * HEADS + of_group) * (SHARES * D)
    gl.store(corner + offsets[:, None] + columns[None, :], sums * scale[:, None], mask=mine[:, None])


@gluon.jit
def _attend(
    starts, lengths, counts, sinks, out, partial, weight,
    q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, D: gl.constexpr,
    SCALE: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr, SEQUENCES: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, UNITS: gl.constexpr,
    SHARES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Four warps that do the first or second half of the rows of every tile."""
    group: gl.constexpr = HEADS // KV_HEADS
    height: gl.constexpr = BLOCK_Q // 2 * BLOCK_H
    dtype: gl.constexpr = out.dtype.element_ty
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_T, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    of_rows: gl.constexpr = gl.SliceLayout(1, scores_layout)
    lanes: gl.constexpr = D // 4
    out_layout: gl.constexpr = gl.BlockedLayout([height * lanes // 128, 4], [32 // lanes, lanes], [4, 1], [1, 0])
    rows = gl.load(counts)
    items, used = 0, 0
    if HALF == 1:
        _pass_turn(HALF)
    for first in range(0, (rows + BLOCK_Q - 1) // BLOCK_Q * KV_HEADS * SHARES, UNITS):
        number = _of_round(first, UNITS)
        # read again rather than kept: registers are few
        first_row, last_row, kv_head, first_sequence, last_sequence = _tile(
            number // SHARES, gl.load(counts), gl.load(counts + 1), gl.load(counts + 2), starts, KV_HEADS, BLOCK_Q, SEQUENCES
        )
        my_row = first_row + HALF * (BLOCK_Q // 2)
        flat = gl.arange(0, height, layout=of_rows)
        for sequence in range(first_sequence, last_sequence):
            begin, end, length, low, seen_by_all, stop = _span(
                sequence, first_row, last_row, starts, lengths, WINDOW, BLOCK_T, min(TOKENS, BLOCK_T)
            )
            positions = my_row + flat // BLOCK_H + length - end
            if SHARES > 1:
                low, stop, there = _share(number % SHARES, low, stop, SHARES, BLOCK_T)
                seen_by_all = gl.minimum(seen_by_all, stop)
                positions = gl.where(there, positions, -1)
            best = gl.full([height], float("-inf"), gl.float32, of_rows)
            total = gl.zeros([height], gl.float32, of_rows)
            sums = gl.zeros([height, D], gl.float32, sums_layout)
            place, parity = _turn(items, 2)
            mbarrier.wait(q_full.index(place), parity)
            query = q_tiles.index(place * 2 + HALF).reshape([height, D])
            tile, tile_parity = _turn(used, STAGES)
            mbarrier.wait(k_full.index(tile), tile_parity)
            scores = gl.zeros([height, BLOCK_T], gl.float32, scores_layout)
            scores = warpgroup_mma(query, k_tiles.index(tile).permute((1, 0)), scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=(scores,))
            mbarrier.arrive(k_free.index(tile), count=1)
            weights, _, best, total = _weigh(scores, low, positions, best, total, SCALE, SOFTCAP, WINDOW, True)
            weights = gl.convert_layout(weights.to(dtype), weights_layout)
            used += 1
            for token in range(low + BLOCK_T, seen_by_all, BLOCK_T):
                best, total, sums, weights = _step(
                    query, token, positions, best, total, sums, weights, used,
                    k_tiles, v_tiles, k_full, k_free, v_full, v_free,
                    SCALE, SOFTCAP, WINDOW, False, STAGES, HALF,
                )  # fmt: skip
                used += 1
            for token in range(gl.maximum(low + BLOCK_T, seen_by_all), stop, BLOCK_T):
                best, total, sums, weights = _step(
                    query, token, positions, best, total, sums, weights, used,
                    k_tiles, v_tiles, k_full, k_free, v_full, v_free,
                    SCALE, SOFTCAP, WINDOW, True, STAGES, HALF,
                )  # fmt: skip
                used += 1
            mbarrier.arrive(q_free.index(place), count=1)
            items += 1
            tile, tile_parity = _turn(used - 1, STAGES)
            mbarrier.wait(v_full.index(tile), tile_parity)
            last = low + (stop - 1 - low) // BLOCK_T * BLOCK_T
            if length - last < BLOCK_T:
                _clear(v_tiles.index(tile), length - last, D, BLOCK_T)
            sums = warpgroup_mma(weights, v_tiles.index(tile), sums, is_async=True)
            sums, weights = warpgroup_mma_wait(0, deps=(sums, weights))
            mbarrier.arrive(v_free.index(tile), count=1)
            head = kv_head * group + flat % BLOCK_H
            if SHARES == 1 and sinks is not None:
                sink = gl.load(sinks + head, mask=flat % BLOCK_H < group, other=float("-inf")).to(gl.float32) * 1.4426950408889634
                higher = gl.maximum(best, sink)
                shrink = gl.exp2(best - higher)
                total = total * shrink + gl.exp2(sink - higher)
                sums = sums * gl.convert_layout(shrink, gl.SliceLayout(1, sums_layout))[:, None]
            if SHARES > 1:
                _store_share(
                    partial, weight, sums, best, total, number % SHARES, my_row, kv_head * group, begin, end,
                    HEADS, D, group, BLOCK_H, SHARES,
                )  # fmt: skip
            else:
                share = gl.convert_layout(1.0 / total, gl.SliceLayout(1, sums_layout))
                result = gl.convert_layout((sums * share[:, None]).to(dtype), out_layout)
                numbers = gl.arange(0, height, layout=gl.SliceLayout(1, out_layout))
                columns = gl.arange(0, D, layout=gl.SliceLayout(0, out_layout))
                of_query, of_group = numbers // BLOCK_H, numbers % BLOCK_H
                mine = (of_query >= begin - my_row) & (of_query < end - my_row)
                if group < BLOCK_H:
                    mine = mine & (of_group < group)
                # offsets within a tile are small: one wide number for all of its elements
                corner = out + (my_row.to(gl.int64) * HEADS + kv_head * group) * D
                gl.store(corner + ((of_query * HEADS + of_group) * D)[:, None] + columns[None, :], result, mask=mine[:, None])
    if HALF == 0:
        _await_turn(HALF)  # what was passed last


@gluon.jit
def _clear(tile, kept, D: gl.constexpr, BLOCK_T: gl.constexpr):
    """Rows of a tile in shared memory from `kept` on become 0: beyond the last token the cache may hold anything, and 0 times
    anything need not be 0. Others may read the tile meanwhile: the rows that count stay what they are."""
    # in memory 128 bytes of all rows come before the next 128, and what is mixed up is within those
    width: gl.constexpr = 128 * 8 // tile.dtype.primitive_bitwidth
    height: gl.constexpr = 32
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    parts: gl.constexpr = D * BLOCK_T // width // height
    lines = tile.reinterpret(tile.dtype, [parts, height, width], plain)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    numbers = gl.arange(0, height, layout=gl.SliceLayout(1, layout))
    for part in range(parts):
        some = lines.index(part)
        found = some.load(layout)
        some.store(gl.where((part * height % BLOCK_T + numbers < kept)[:, None], found, 0.0))
    fence_async_shared()
    gl.barrier()


@gluon.jit
def chunks(
    q, k_cache, v_cache, starts, lengths, tables, counts, sinks, out, partial, weight,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, TABLE: gl.constexpr, D: gl.constexpr,
    Q_ROW: gl.constexpr, Q_HEAD: gl.constexpr,
    SCALE: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr,
    SEQUENCES: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_T: gl.constexpr,
    STAGES: gl.constexpr, UNITS: gl.constexpr, SHARES: gl.constexpr,
):  # fmt: skip
    """Sequences of several rows, those from counts[1] on, in tiles of BLOCK_Q rows of the step, whatever sequences they have.

    With several SHARES of the keys, results of one go to partial[R, HEADS, SHARES, D] and weight[R, HEADS, SHARES] (the power of
    two that stands for the share), else to out.

    Grid: UNITS programs, which stay and do one of every UNITS tiles and shares. SEQUENCES is a power of two that holds them all.
    TOKENS is a multiple of BLOCK_T or a divisor of it.
    """
    dtype: gl.constexpr = q.dtype.element_ty
    tiles_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_T, D], dtype)
    of_queries: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_Q // 2, BLOCK_H, D], dtype)
    q_tiles = gl.allocate_shared_memory(dtype, [4, BLOCK_Q // 2, BLOCK_H, D], of_queries)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_T, D], tiles_layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_T, D], tiles_layout)
    q_full, q_free = mbarrier.allocate_mbarrier(batch=2), mbarrier.allocate_mbarrier(batch=2)
    k_full, k_free = mbarrier.allocate_mbarrier(batch=STAGES), mbarrier.allocate_mbarrier(batch=STAGES)
    v_full, v_free = mbarrier.allocate_mbarrier(batch=STAGES), mbarrier.allocate_mbarrier(batch=STAGES)
    for place in gl.static_range(2):
        mbarrier.init(q_full.index(place), count=1)
        mbarrier.init(q_free.index(place), count=2)
    for place in gl.static_range(STAGES):
        mbarrier.init(k_full.index(place), count=1)
        mbarrier.init(k_free.index(place), count=2)
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(v_free.index(place), count=2)
    fence_async_shared()
    gl.warp_specialize([
        (_attend, (
            starts, lengths, counts, sinks, out, partial, weight,
            q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
            HEADS, KV_HEADS, TOKENS, D, SCALE, SOFTCAP, WINDOW, SEQUENCES, BLOCK_Q, BLOCK_H, BLOCK_T, STAGES, UNITS,
            SHARES, 0,
        )),
        (_attend, (
            starts, lengths, counts, sinks, out, partial, weight,
            q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
            HEADS, KV_HEADS, TOKENS, D, SCALE, SOFTCAP, WINDOW, SEQUENCES, BLOCK_Q, BLOCK_H, BLOCK_T, STAGES, UNITS,
            SHARES, 1,
        )),
        (_copy_tiles, (
            q, k_cache, v_cache, starts, lengths, tables, counts,
            q_tiles, k_tiles, v_tiles, q_full, q_free, k_full, k_free, v_full, v_free,
            HEADS, KV_HEADS, TOKENS, TABLE, D, Q_ROW, Q_HEAD, WINDOW, SEQUENCES,
            BLOCK_Q, BLOCK_H, BLOCK_T, STAGES, UNITS, SHARES,
        )),
    ], [4, 1], [240, 24])  # fmt: skip
