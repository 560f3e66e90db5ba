"""The smallest scaled logit that top-k, top-p and min-p keep of a row.

One pass over the vocabulary counts how many values lie in each of 2048 bins. That says in which bin the k-th largest lies, and,
since a bin's weights differ by 1.6 % at most, in which few bins the mass reaches p of the whole. A second pass gathers the values
of these bins; the exact cut is found among them by halving, in registers. Where they are more than there is room for, the passes
that halve go over the vocabulary instead: many values that are equal or nearly so, or a nucleus deep in a flat tail.
"""

import triton
import triton.language as tl

from .logits import scaled

BINS, OF_A_UNIT = tl.constexpr(2048), tl.constexpr(64.0)
_LOWEST_KEY = tl.constexpr(-2139095040)


@triton.jit
def _bin(x):
    """Which bin scaled values are in: 64 for each unit below 0, the last for all that is smaller."""
    return tl.minimum(-x * OF_A_UNIT, BINS - 1.0).to(tl.int32)


@triton.jit
def _of_key(key):
    """The float whose order among floats up to 0 is the order of `key` among integers up to 0."""
    return (-key | -2147483648).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _upper_key(index):
    """The key of the largest float of a bin."""
    return -((index.to(tl.float32) / OF_A_UNIT).to(tl.int32, bitcast=True))


@triton.jit
def _lower_key(index):
    """A key below those of all floats of a bin; none is below minus infinity."""
    return tl.where(index >= BINS - 1, _LOWEST_KEY, _upper_key(index + 1))


@triton.jit
def _counts(logits, adjusted, asked, row, best, heat, V: tl.constexpr, BLOCK: tl.constexpr):
    """How many values each bin holds, and the sum of all weights."""
    counts, sums = tl.zeros((BINS,), tl.int32), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = scaled(logits, adjusted, asked, row, columns, best, heat, V)
        counts += tl.histogram(_bin(x), BINS, mask=columns < V)
        sums += tl.exp(x).to(tl.float64)
    return counts, tl.sum(sums, axis=0)


@triton.jit
def _between(counts, first, last):
    """How many values the bins `first` to `last` hold."""
    bins = tl.arange(0, BINS)
    return tl.sum(tl.where((bins >= first) & (bins <= last), counts, 0), axis=0)


@triton.jit
def _weights(x, by_count):
    """What values count for: 1 each, or their mass."""
    return tl.where(by_count, 1.0, tl.exp(x)).to(tl.float64)


@triton.jit
def _gather(
    logits, adjusted, asked, row, best, heat, first, last, lowest, by_count, room,
    V: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """The values of bins `first` to `last` that are at least `lowest`, minus infinity after them; the weights of all larger."""
    tl.debug_barrier()
    found, sums = tl.zeros((), tl.int32), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = scaled(logits, adjusted, asked, row, columns, best, heat, V)
        bins = _bin(x)
        sums += tl.where((bins < first) & (x >= lowest), _weights(x, by_count), 0.0)
        chosen = ((bins >= first) & (bins <= last) & (x >= lowest) & (columns < V)).to(tl.int32)
        more = tl.sum(chosen, axis=0)
        if more > 0:
            place = found + tl.cumsum(chosen, axis=0) - 1
            tl.store(room + place, x, mask=(chosen > 0) & (place < ROOM))
            found += more
    tl.debug_barrier()
    places = tl.arange(0, ROOM)
    return tl.load(room + places, mask=places < found, other=-float("inf")), tl.sum(sums, axis=0)


@triton.jit
def _sum(logits, adjusted, asked, row, best, heat, lowest, by_count, V: tl.constexpr, BLOCK: tl.constexpr):
    """Of the weights of what is at least `lowest`."""
    sums = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = scaled(logits, adjusted, asked, row, columns, best, heat, V)
        sums += tl.where((x >= lowest) & (columns < V), _weights(x, by_count), 0.0)
    return tl.sum(sums, axis=0)


@triton.jit
def _bins_of_cut(counts, lowest, wanted, by_count):
    """The first and the last bin in which the weights of what is at least `lowest`, summed from the top, can reach `wanted`."""
    bins, most = tl.arange(0, BINS), _bin(lowest)
    # of the bin that `lowest` cuts through, all values may be kept, or none
    counted = tl.where(bins <= most, counts, 0).to(tl.float64)
    upper = counted * _weights(-bins.to(tl.float32) / OF_A_UNIT, by_count)
    whole = by_count | ((bins < BINS - 1) & (bins < most))
    lower = tl.where(whole, counted * _weights(-(bins + 1).to(tl.float32) / OF_A_UNIT, by_count), 0.0)
    # rounding of these sums must not exclude a bin
    slack = tl.where(by_count, 0.0, 1e-5)
    first = tl.sum((tl.cumsum(upper, axis=0) < wanted * (1 - slack)).to(tl.int32), axis=0)
    last = tl.sum((tl.cumsum(lower, axis=0) < wanted * (1 + slack)).to(tl.int32), axis=0)
    return tl.minimum(first, most), tl.minimum(last, most)


@triton.jit
def _cut(
    logits, adjusted, asked, row, best, heat, counts, lowest, wanted, by_count, room,
    V: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """The largest value from which on the weights of what is at least `lowest` sum to `wanted`."""
    first, last = _bins_of_cut(counts, lowest, wanted, by_count)
    low, high = _lower_key(last), _upper_key(first) + 1
    crowded = _between(counts, first, last) > ROOM
    while crowded & (high - low > 1):
        between = (first + last + 1) // 2
        middle = tl.where(last > first, _upper_key(between) + 1, low + (high - low) // 2)
        above = tl.maximum(_of_key(middle), lowest)
        enough = _sum(logits, adjusted, asked, row, best, heat, above, by_count, V, BLOCK) >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        if last > first:
            first, last = tl.where(enough, first, between), tl.where(enough, between - 1, last)
            crowded = _between(counts, first, last) > ROOM
    if high - low > 1:
        found, larger = _gather(logits, adjusted, asked, row, best, heat, first, last, lowest, by_count, room, V, BLOCK, ROOM)
        weights = _weights(found, by_count)
        while high - low > 1:
            middle = low + (high - low) // 2
            enough = larger + tl.sum(tl.where(found >= _of_key(middle), weights, 0.0), axis=0) >= wanted
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    return tl.maximum(_of_key(low), lowest)


@triton.jit
def lowest_kept(
    logits, adjusted, asked, row, slot, best, heat, top_k, top_p, min_p, room,
    V: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """The smallest scaled value that the filters of a slot keep. `room` is for ROOM values of this row."""
    lowest = tl.full((), -float("inf"), tl.float32)
    k, p = tl.load(top_k + slot), tl.load(top_p + slot)
    few = (k > 0) & (k < V)
    if few | (p < 1.0):
        counts, total = _counts(logits, adjusted, asked, row, best, heat, V, BLOCK)
        for turn in range(2):
            by_count = turn == 0
            if tl.where(by_count, few, p < 1.0):
                if (turn == 1) & few:
                    total = _sum(logits, adjusted, asked, row, best, heat, lowest, by_count, V, BLOCK)
                wanted = tl.where(by_count, k.to(tl.float64), total * p.to(tl.float64))
                lowest = _cut(
                    logits, adjusted, asked, row, best, heat, counts, lowest, wanted, by_count, room, V, BLOCK, ROOM
                )  # fmt: skip
    lowest = tl.maximum(lowest, tl.log(tl.load(min_p + slot)))
    return tl.minimum(lowest, 0.0)
