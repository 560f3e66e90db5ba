"""A tier of KV blocks in host memory as an executor has it: a step's copies between it and the caches. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..plans.kv_caches import cache_names
from ..plans.program import DTYPE_BYTES
from ..plans.schema import KvGeometry, KvGroup
from .functions.context import Launch
from .scheduling.step import BlockCopies, IntArray, StepBatch

CacheUses = Mapping[Launch, tuple[str, ...]]
"""The KV caches that a launch reads or writes."""


class StepCopies(Protocol):
    """A step's copies, under way."""

    def ordered(self, launches: Iterable[Launch]) -> Iterable[Launch]:
        """The step's launches in order, among them what makes each wait for the blocks that it reads."""
        ...

    def wait(self) -> None:
        """Return when they are made; on any thread, inside of what the executor runs in."""
        ...


class BlockTier(Protocol):
    """Blocks in host memory. Of one thread, but for `StepCopies.wait`."""

    def begin(self, batch: StepBatch, uses: CacheUses) -> StepCopies:
        """Begin a step's copies; the launches of its rows come next, of which `uses` tells.

        Raises ValueError for blocks that are not there.
        """
        ...

    def wait(self) -> None:
        """Until its memory is there. Raises a TokenspeedError where that cannot be had."""
        ...

    def parts(self, block: int) -> Sequence[NDArray[np.uint8]]:
        """The bytes of a block of pool 0's tier, in the order of the plan's caches: arrays [caches, bytes] or [bytes], the memory
        itself. On any thread; who looks at it sees to it that no step copies it meanwhile."""
        ...

    def settle(self) -> None:
        """After a step could not be started: return when nothing is under way. What goes wrong then is not told."""
        ...

    def close(self) -> None:
        """Let go of what makes copies; their memory is given back with the placement's."""
        ...


class Run(NamedTuple):
    """Consecutive blocks, on both sides."""

    device: int
    host: int
    blocks: int


@dataclass(frozen=True)
class TierSize:
    """Of one pool: blocks on the device, blocks on the host, and how many of the latter lie together in one piece of memory."""

    blocks: int
    host_blocks: int
    piece: int

    def runs(self, copies: BlockCopies) -> list[Run]:
        """The pairs as few runs, within pieces. Raises ValueError for blocks that are not there."""
        _check("device", copies.device, self.blocks, copies.pool)
        _check("host", copies.host, self.host_blocks, copies.pool)
        if len(copies.device) != len(copies.host):
            raise ValueError(f"a step copies {len(copies.device)} device blocks and {len(copies.host)} host blocks")
        order = np.argsort(copies.device, kind="stable")
        device, host = copies.device[order], copies.host[order]
        pieces = host // self.piece
        breaks = (np.diff(device) != 1) | (np.diff(host) != 1) | (np.diff(pieces) != 0)
        cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(device)]
        return [Run(int(device[start]), int(host[start]), end - start) for start, end in pairwise(cuts) if end > start]


def _check(side: str, found: IntArray, most: int, pool: int) -> None:
    if len(found) and not (found.min() >= 0 and found.max() < most):
        raise ValueError(f"a step copies {side} blocks {found.min()} to {found.max()} of pool {pool}, which has {most}")


def reads(batch: StepBatch, copies: Iterable[BlockCopies], blocks: Mapping[int, int]) -> bool:
    """Whether rows of a step may touch the device's side of copies; `blocks` is the size of each pool."""
    for item in copies if batch.rows else ():
        tables = _tables(batch, item.pool)
        if tables.size and len(item.device):
            touched = np.zeros(blocks[item.pool], np.bool_)
            touched[item.device] = True
            if touched[tables].any():
                return True
    return False


def _tables(batch: StepBatch, pool: int) -> IntArray:
    return batch.block_tables if pool == 0 else batch.windows[pool - 1].block_tables


class NoTier:
    """Of a plan that has none, or of an executor that never copies."""

    def begin(self, batch: StepBatch, uses: CacheUses) -> StepCopies:
        if batch.saves or batch.loads:
            raise ValueError("a step copies KV blocks, but there is no host tier")
        return NO_COPIES

    def wait(self) -> None:
        pass

    def parts(self, block: int) -> Sequence[NDArray[np.uint8]]:
        raise ValueError(f"host block {block} is asked for, but there is no host tier")

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


class _NoCopies:
    def ordered(self, launches: Iterable[Launch]) -> Iterable[Launch]:
        return launches

    def wait(self) -> None:
        pass


NO_COPIES: StepCopies = _NoCopies()
"""Of a step that copies nothing, or whose copies are made."""


def groups_by_pool(kv: KvGeometry) -> dict[int, list[KvGroup]]:
    """The groups whose blocks each pool hands out; of pools that have any."""
    found: dict[int, list[KvGroup]] = {}
    for group in kv.groups:
        if group.layers:
            found.setdefault(group.pool, []).append(group)
    return found


def caches_of(group: KvGroup) -> Iterator[tuple[int, str]]:
    """(layer, cache) in the order in which they lie in memory."""
    names = list(cache_names(group))
    each = len(names) // len(group.layers)
    for at, name in enumerate(names):
        yield group.layers[at // each], name


def cache_block_bytes(group: KvGroup, block_tokens: int) -> int:
    """Bytes of one block in one cache of the group."""
    return block_tokens * group.heads * group.head_dim * DTYPE_BYTES[group.dtype]
