"""Which bytes of a checkpoint a rank hashes: those that it reads, shared out among the ranks of its host that read them too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from zlib import crc32

from ..plans.digests import DIGEST_CHUNK_BYTES, tensor_digest
from ..plans.errors import WeightsError
from ..plans.rank_reads import reads
from ..plans.rank_recipes import recipe_of_rank
from ..plans.recipe_shapes import lookup_in
from ..plans.schema import SourceTensor, Weight
from ..plans.template import instantiate
from .mapped_pages import release_pages
from .mesh import Rank

Check = Callable[[], None]
"""Raises when bytes are not those they should be."""


class Shares:
    """Who checks what. All of a host's ranks that read a chunk of a tensor come to the same answer without asking.

    `wanted` are the weights that this rank loads: (weight, layers). A tensor without digests of its chunks is one chunk.
    """

    def __init__(self, rank: Rank, wanted: Iterable[tuple[Weight, Sequence[int]]], sources: Mapping[str, SourceTensor]) -> None:
        self._own = rank.neighbours.index(rank.coordinates)
        self._ranks = len(rank.neighbours)
        self._read: dict[str, list[set[int]]] = {}
        for weight, layers in wanted:
            lookup = lookup_in(sources, layers[0] if weight.layers else None)
            for at, place in enumerate(rank.neighbours):
                for read in reads(recipe_of_rank(weight.recipe, place), lookup, place):
                    for layer in layers if weight.layers else (0,):
                        source = sources[instantiate(read.name, layer) if weight.layers else read.name]
                        chunks = self._read.setdefault(source.name, [set() for _ in range(self._ranks)])
                        chunks[at].update(read.chunks(source) if _has_chunks(source) else (0,))

    def of(self, source: SourceTensor) -> list[int]:
        """The numbers of the chunks that this rank checks."""
        read = self._read[source.name]
        mine = []
        for chunk in sorted(read[self._own]):
            readers = [at for at in range(self._ranks) if chunk in read[at]]
            if readers[(crc32(source.name.encode()) + chunk) % len(readers)] == self._own:
                mine.append(chunk)
        return mine


def digest_checks(source: SourceTensor, data: memoryview, chunks: Sequence[int]) -> list[Check]:
    """Checks of these chunks of a tensor against the plan's digests."""
    if not _has_chunks(source):
        return [partial(_check, source, data, str(source.digest), tensor_digest)] if chunks else []
    found = []
    for chunk in chunks:
        part = data[chunk * DIGEST_CHUNK_BYTES : (chunk + 1) * DIGEST_CHUNK_BYTES]
        found.append(partial(_check, source, part, source.chunks[chunk], lambda parts: hashlib.sha256(parts[0]).hexdigest()))
    return found


def _has_chunks(source: SourceTensor) -> bool:
    return len(source.chunks) > 1


def _check(source: SourceTensor, data: memoryview, expected: str, digest: Callable[[list[memoryview]], str]) -> None:
    found = digest([data])
    release_pages(data)
    if found != expected:
        raise WeightsError(
            "A tensor's bytes are not those the plan is bound to.",
            where=source.name,
            expected=f"SHA-256 {expected}",
            got=found,
            fix="give the weights the plan was bound to, or bind it to these with tokenspeed-plan bind",
        )
