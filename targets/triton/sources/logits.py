"""The logits that a row is sampled from, block by block of the vocabulary."""

import triton
import triton.language as tl

ADJUSTMENTS = tl.constexpr(28)
"""Feature bits of slots whose logits are in `adjusted`."""


@triton.jit
def values(logits, adjusted, asked, row, columns, V: tl.constexpr):
    """What tokens of a row are chosen by, minus infinity outside of the vocabulary."""
    of_adjusted = tl.where((asked & ADJUSTMENTS) != 0, V, 0)
    changed, same = columns < of_adjusted, columns < V - of_adjusted
    found = tl.load(logits + row * V + columns, mask=same, other=-float("inf")).to(tl.float32)
    return tl.where(changed, tl.load(adjusted + row * V + columns, mask=changed, other=-float("inf")), found)


@triton.jit
def scaled(logits, adjusted, asked, row, columns, best, heat, V: tl.constexpr):
    """Values relative to the largest, over the temperature: 0 and less."""
    return (values(logits, adjusted, asked, row, columns, V) - best) / heat
