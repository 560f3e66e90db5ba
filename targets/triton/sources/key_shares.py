"""Shares of the keys of decoding sequences: as many programs for a sequence as it has keys to be read, so that none is late."""

import triton
import triton.language as tl


@triton.jit
def _shares_of_all(
    lengths, sequences, goal, WINDOW: tl.constexpr, PAGE: tl.constexpr, BLOCK_T: tl.constexpr, SEQUENCES: tl.constexpr
):
    """Of each sequence the first token that is seen, how many shares its keys make, and how many blocks of BLOCK_T one has.

    The blocks of all sequences make about `goal` shares of one size, at most `goal` and one more for each sequence.
    """
    numbers = tl.arange(0, SEQUENCES)
    length = tl.load(lengths + numbers, mask=numbers < sequences, other=0)
    # what lies in blocks of the cache (PAGE tokens, or more) before the window is another sequence's by now
    first = tl.maximum(length - WINDOW, 0) // PAGE * PAGE if WINDOW > 0 else tl.zeros_like(length)
    blocks = tl.cdiv(length - first, BLOCK_T)
    size = tl.maximum(tl.cdiv(tl.sum(blocks, axis=0), goal), 1)
    return numbers, length, first, tl.cdiv(blocks, size), size


@triton.jit
def _of_sequence(numbers, values, sequence):
    return tl.sum(tl.where(numbers == sequence, values, 0), axis=0)


@triton.jit
def share_of_place(
    place, lengths, sequences, goal, WINDOW: tl.constexpr, PAGE: tl.constexpr, BLOCK_T: tl.constexpr, SEQUENCES: tl.constexpr
):  # fmt: skip
    """What program `place` does: its sequence and that one's tokens, its keys [start, stop), how many shares the sequence has.

    A program that is not needed has sequence 0 without a token.
    """
    numbers, length, first, shares, size = _shares_of_all(lengths, sequences, goal, WINDOW, PAGE, BLOCK_T, SEQUENCES)
    ends = tl.cumsum(shares, axis=0)
    sequence = tl.sum((ends <= place).to(tl.int32), axis=0)
    needed = sequence < sequences
    sequence = tl.where(needed, sequence, 0)
    count = tl.where(needed, _of_sequence(numbers, shares, sequence), 0)
    tokens = tl.where(needed, _of_sequence(numbers, length, sequence), 0)
    share = place - (_of_sequence(numbers, ends, sequence) - count)
    start = tl.where(needed, _of_sequence(numbers, first, sequence) + share * size * BLOCK_T, 0)
    start = tl.multiple_of(start, PAGE if WINDOW > 0 else BLOCK_T)
    return sequence, tokens, start, tl.minimum(start + size * BLOCK_T, tokens), count


@triton.jit
def places_of_sequence(
    sequence, lengths, sequences, goal, WINDOW: tl.constexpr, PAGE: tl.constexpr, BLOCK_T: tl.constexpr, SEQUENCES: tl.constexpr
):  # fmt: skip
    """The first program that has a share of a sequence, and how many have one; 0 of a sequence that is not there."""
    numbers, _, _, shares, _ = _shares_of_all(lengths, sequences, goal, WINDOW, PAGE, BLOCK_T, SEQUENCES)
    return tl.sum(tl.where(numbers < sequence, shares, 0), axis=0), _of_sequence(numbers, shares, sequence)
