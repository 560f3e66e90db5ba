"""The tier of KV blocks where caches are in the host's memory themselves: more of it, and copies made before a step's rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import MemoryPlanError
from ..plans.kv_caches import cache_names
from ..plans.schema import Manifest
from ..plans.units import format_bytes
from .block_tier import NO_COPIES, BlockTier, CacheUses, NoTier, StepCopies, TierSize, groups_by_pool
from .host_arrays import HostArray, large_bytes
from .scheduling.step import BlockCopies, StepBatch

_Bytes = NDArray[np.uint8]


class HostBlockTier:
    """A `BlockTier`. What steps before wrote is there when a step begins, and so are its copies when `begin` returns.

    For each pool pairs of arrays: a cache as bytes [blocks, bytes of a block], and its tier [host_blocks, bytes of a block].
    """

    def __init__(self, pools: Mapping[int, tuple[TierSize, list[tuple[_Bytes, _Bytes]]]]) -> None:
        self._pools = pools

    def begin(self, batch: StepBatch, uses: CacheUses) -> StepCopies:
        for copies in batch.saves:
            self._copy(copies, to_host=True)
        for copies in batch.loads:
            self._copy(copies, to_host=False)
        return NO_COPIES

    def wait(self) -> None:
        pass

    def parts(self, block: int) -> list[_Bytes]:
        return [tier[block] for _, tier in self._pools[0][1]]

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._pools = {}

    def _copy(self, copies: BlockCopies, *, to_host: bool) -> None:
        size, pairs = self._pools[copies.pool]
        for run in size.runs(copies):
            here, there = slice(run.device, run.device + run.blocks), slice(run.host, run.host + run.blocks)
            for cache, tier in pairs:
                if to_host:
                    tier[there] = cache[here]
                else:
                    cache[here] = tier[there]


def host_block_tier(manifest: Manifest, caches: Mapping[str, HostArray]) -> BlockTier:
    """The tier that a plan asks for; its memory is the process's once blocks come. `caches` are all KV caches by name.

    Raises MemoryPlanError where so much cannot be promised.
    """
    kv = manifest.kv
    if not any(kv.pool_host_blocks):
        return NoTier()
    pools = {}
    for pool, groups in groups_by_pool(kv).items():
        flat = [_as_bytes(caches[name]) for group in groups for name in cache_names(group)]
        count = kv.pool_host_blocks[pool]
        size = TierSize(blocks=kv.pool_blocks[pool], host_blocks=count, piece=max(1, count))
        pools[pool] = size, [(cache, _tier(count, cache)) for cache in flat]
    return HostBlockTier(pools)


def _tier(blocks: int, cache: _Bytes) -> _Bytes:
    count = blocks * cache.shape[1]
    try:
        return large_bytes(count).reshape(blocks, cache.shape[1])
    except (OSError, OverflowError, MemoryError) as error:
        raise MemoryPlanError(
            "The plan's host tier cannot be allocated.",
            where="kv.host_blocks",
            expected=f"{format_bytes(count)} for each cache",
            got=str(error) or "too little memory",
            fix="free memory, or compile the plan with a smaller --host-kv",
        ) from None


def _as_bytes(cache: HostArray) -> _Bytes:
    """A cache [blocks, block_tokens, heads, head_dim] as bytes [blocks, bytes of a block], the same memory; blocks may be
    head-major."""
    data = cache.data if cache.data.flags.c_contiguous else cache.data.transpose(0, 2, 1, 3)
    assert data.flags.c_contiguous, "a block is one stretch of memory"
    return data.reshape(len(data), -1).view(np.uint8)
