"""Which bytes of checkpoint tensors a rank reads: rows where parts cut the tensor's own rows, else all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .digests import DIGEST_CHUNK_BYTES
from .recipe import Addend, Blocks, Cast, Dequantize, Part, Quantize, Recipe, Slice, Source, inputs_of, sources
from .recipe_shapes import SourceLookup
from .schema import SourceTensor


@dataclass(frozen=True, eq=False)
class Read:
    """Entries of a tensor's first dimension, -1 where a part is filled up; None: all. `name` is a template if the recipe's are.

    `own` while those entries, in this order, are the first dimension of the value that is made of them.
    """

    name: str
    rows: NDArray[np.int64] | None
    own: bool = True

    def chunks(self, source: SourceTensor) -> range:
        """Numbers of the tensor's digest chunks that hold them, and of those between."""
        every = range(-(-source.bytes // DIGEST_CHUNK_BYTES))
        if self.rows is None or len(every) <= 1:
            return every
        rows = self.rows[self.rows >= 0]
        if not len(rows):
            return range(0)
        row = source.bytes // source.shape[0]
        return range(int(rows.min()) * row // DIGEST_CHUNK_BYTES, ((int(rows.max()) + 1) * row - 1) // DIGEST_CHUNK_BYTES + 1)


def reads(recipe: Recipe, lookup: SourceLookup, coordinates: Mapping[str, int]) -> list[Read]:
    """What the rank at `coordinates` (0 on axes that are left out) reads to make a weight, one for each source of the recipe."""
    match recipe:
        case Source():
            shape, _ = lookup(recipe.name)
            return [Read(recipe.name, np.arange(shape[0]) if shape else None)]
        case Dequantize() | Blocks():
            scales = [] if recipe.scales is None else [Read(name, None, own=False) for name in sources(recipe.scales.of)]
            return [*reads(recipe.of, lookup, coordinates), *scales]
        case Part() | Slice():
            found = reads(recipe.of, lookup, coordinates)
            return [_rows_of(recipe, read, coordinates) for read in found] if recipe.dimension == 0 else found
        case Cast() | Quantize() | Addend():
            return reads(recipe.of, lookup, coordinates)
        case _:
            return [replace(read, own=False) for of in inputs_of(recipe) for read in reads(of, lookup, coordinates)]


def _rows_of(recipe: Part | Slice, read: Read, coordinates: Mapping[str, int]) -> Read:
    if read.rows is None or not read.own:
        return read
    if isinstance(recipe, Slice):
        return replace(read, rows=read.rows[recipe.start : recipe.stop : recipe.stride])
    parts = []
    for stretch in recipe.stretches:
        first, stop = stretch.of_rank(coordinates.get(recipe.axis, 0))
        parts += [read.rows[first:stop], np.full(stretch.size - (stop - first), -1)]
    return replace(read, rows=np.concatenate(parts))
