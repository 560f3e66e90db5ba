"""The KV manager: which physical block holds what, for whom, and what may be reused. Contents live on the device."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

from ...plans.errors import PlanError
from ...plans.schema import KvGeometry
from .blocks import CachedBlock, FreeBlock, Handle, SealedBlock, Unit, WritableBlock, seal
from .errors import IntegrityError, OutOfBlocks
from .prefix import TOKEN_BYTES, chain_seed

BlockState = Literal["free", "writable", "sealed", "cached"]


class SequenceBlocks(Handle):
    """The blocks of one running sequence, in order: sealed units first, then blocks it may write."""

    __slots__ = ("sealed", "writable")

    def __init__(self, sealed: list[SealedBlock]) -> None:
        super().__init__()
        self.sealed = sealed
        self.writable: list[WritableBlock] = []

    def indices(self) -> list[int]:
        """Physical blocks in the order of the sequence's tokens."""
        self.require()
        sealed = [index for block in self.sealed for index in block.unit.indices]
        return sealed + [block.index for block in self.writable]


class Hits(NamedTuple):
    """The longest cached prefix: its units in order, and how many physical blocks of it have no user (evictable until taken)."""

    units: list[Unit]
    idle_blocks: int


class KvManager:
    """A pool of `blocks` physical blocks of `block_tokens` tokens; a prefix hash covers `identity_tokens` tokens.

    `compatibility` is the digest of all that makes KV interchangeable (weights, dtype, geometry, rope). Raises PlanError when
    the numbers make no sense. With `share` false no prefix is ever found or kept: blocks alone are not what a sequence needs to
    go on where another one was (recurrent states are by slot, and no block holds them). Steps are completed in order: a block
    released while a launched step may still touch it is set aside until `complete_step` of that step.
    """

    def __init__(self, blocks: int, block_tokens: int, identity_tokens: int, compatibility: str, share: bool = True) -> None:
        _check_geometry(blocks, block_tokens, identity_tokens)
        self.shares = share
        self.blocks, self.block_tokens, self.identity_tokens = blocks, block_tokens, identity_tokens
        self.unit_blocks = identity_tokens // block_tokens
        self.compatibility = compatibility
        self.evictions = 0
        self._free = [FreeBlock(index) for index in reversed(range(blocks))]
        self._cached: OrderedDict[bytes, CachedBlock] = OrderedDict()
        self._index: dict[bytes, Unit] = {}
        self._open: set[SequenceBlocks] = set()
        self._retiring: dict[int, list[SequenceBlocks]] = {}
        self._completed_step = -1

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens

    @property
    def available(self) -> int:
        """Blocks that can be written now: free ones and evictable ones."""
        return len(self._free) + len(self._cached) * self.unit_blocks

    @property
    def retiring(self) -> bool:
        """Whether blocks are set aside until a launched step is complete."""
        return bool(self._retiring)

    @property
    def usage(self) -> float:
        """Share of the pool in use, 0 to 1; cached blocks nobody uses do not count."""
        return 1 - self.available / self.blocks

    def seed(self, salt: str) -> bytes:
        return chain_seed(self.compatibility, salt)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def lookup(self, digests: Sequence[bytes], tokens: bytes) -> Hits:
        """The longest cached prefix of a chain (its seed, then one digest per unit); changes nothing. O(units of the hit)."""
        if not self.shares:
            return Hits([], 0)
        size, units, idle = self.identity_tokens * TOKEN_BYTES, [], 0
        for number, digest in enumerate(digests[1:]):
            unit = self._index.get(digest)
            if unit is None or not unit.matches(digests[number], tokens[number * size : (number + 1) * size]):
                break
            units.append(unit)
            idle += not unit.users
        return Hits(units, idle * self.unit_blocks)

    def open(self, hits: Hits) -> SequenceBlocks:
        """Blocks for a new sequence that starts with `hits`, looked up since the last change of this manager."""
        blocks = SequenceBlocks([self._take(unit) for unit in hits.units])
        self._open.add(blocks)
        return blocks

    def grow(self, blocks: SequenceBlocks, count: int) -> list[int]:
        """Append `count` writable blocks, evicting if needed, and give their indices. OutOfBlocks changes nothing."""
        blocks.require()
        if count > self.available:
            raise OutOfBlocks(f"{count} KV blocks wanted, {self.available} available")
        grown = [self._take_free().write() for _ in range(count)]
        blocks.writable.extend(grown)
        return [block.index for block in grown]

    def seal(self, blocks: SequenceBlocks, digest: bytes, parent: bytes, tokens: bytes) -> None:
        """The sequence's next unit is full, computed and known: from now on it is immutable and may be shared.

        Where the same unit is in the index already, this copy stays the sequence's own.
        """
        blocks.require()
        sealed = seal(blocks.writable[: self.unit_blocks], digest, parent, tokens)
        del blocks.writable[: self.unit_blocks]
        blocks.sealed.append(sealed)
        if self.shares:
            self._index.setdefault(digest, sealed.unit)

    def release(self, blocks: SequenceBlocks, last_step: int) -> None:
        """The sequence gives all its blocks back; `last_step` is the last launched step that touches them (-1: none)."""
        blocks.consume()
        self._open.remove(blocks)
        if last_step > self._completed_step:
            self._retiring.setdefault(last_step, []).append(blocks)
        else:
            self._give_back(blocks)

    def complete_step(self, step_id: int) -> None:
        """Step `step_id` and all before it will touch no block any more."""
        self._completed_step = max(self._completed_step, step_id)
        for step in sorted(step for step in self._retiring if step <= step_id):
            for blocks in self._retiring.pop(step):
                self._give_back(blocks)

    def reclaimable(self, blocks: SequenceBlocks, keep: Collection[Unit] = ()) -> int:
        """Blocks that become available when this sequence releases, not counting the units in `keep`."""
        sole = sum(block.unit.users == 1 and block.unit not in keep for block in blocks.sealed)
        return len(blocks.writable) + sole * self.unit_blocks

    def retiring_blocks(self, keep: Collection[Unit] = ()) -> int:
        """Blocks that become available when the launched steps are complete."""
        return sum(self.reclaimable(blocks, keep) for batch in self._retiring.values() for blocks in batch)

    def _take(self, unit: Unit) -> SealedBlock:
        return unit.share() if unit.users else self._cached.pop(unit.digest).use()

    def _take_free(self) -> FreeBlock:
        if not self._free:
            digest, oldest = self._cached.popitem(last=False)
            del self._index[digest]
            self._free.extend(reversed(oldest.evict()))
            self.evictions += 1
        return self._free.pop()

    def _give_back(self, blocks: SequenceBlocks) -> None:
        """Tail first, so that of one sequence the tail is evicted before the head it hangs on."""
        self._free.extend(block.free() for block in reversed(blocks.writable))
        for block in reversed(blocks.sealed):
            cached = block.release()
            if cached is not None:
                self._keep_or_free(cached)

    def _keep_or_free(self, cached: CachedBlock) -> None:
        unit = cached.unit
        if self.shares and self._index.setdefault(unit.digest, unit) is unit:
            self._cached[unit.digest] = cached
        else:
            self._free.extend(reversed(cached.evict()))

    def open_sequences(self) -> Collection[SequenceBlocks]:
        """Blocks of sequences that have not released, for checks."""
        return self._open

    def _holders(self) -> Iterator[SequenceBlocks]:
        yield from self._open
        for batch in self._retiring.values():
            yield from batch

    def states(self) -> dict[int, BlockState]:
        """State of every physical block, for checks and people. Raises IntegrityError when one has two states or none."""
        states: dict[int, BlockState] = {}
        sealed = {block.unit for holder in self._holders() for block in holder.sealed}
        writable = [block.index for holder in self._holders() for block in holder.writable]
        groups: tuple[tuple[BlockState, list[int]], ...] = (
            ("free", [block.index for block in self._free]),
            ("writable", writable),
            ("sealed", [index for unit in sealed for index in unit.indices]),
            ("cached", [index for block in self._cached.values() for index in block.unit.indices]),
        )
        for state, indices in groups:
            for index in indices:
                _require(index not in states, f"block {index} is {states.get(index)} and {state}")
                states[index] = state
        _require(states.keys() == set(range(self.blocks)), "a block is in no state, or outside the pool")
        return states

    def check_integrity(self) -> None:
        """Verify every invariant of the pool; raises IntegrityError naming the first that is broken."""
        self.states()
        users = Counter(block.unit for holder in self._holders() for block in holder.sealed)
        for unit, count in users.items():
            _require(unit.users == count, f"unit at {unit.indices} counts {unit.users} users, has {count}")
            _require(len(unit.indices) == self.unit_blocks, f"unit at {unit.indices} has the wrong size")
            _require(count == 1 or self._index.get(unit.digest) is unit, f"shared unit at {unit.indices} is not in the index")
        for digest, cached in self._cached.items():
            _require(cached.unit.users == 0, f"cached unit at {cached.unit.indices} has users")
            _require(self._index.get(digest) is cached.unit, f"cached unit at {cached.unit.indices} is not in the index")
        for digest, unit in self._index.items():
            _require(unit.digest == digest, f"unit at {unit.indices} is indexed under another digest")
            _require(unit in users or digest in self._cached, f"indexed unit at {unit.indices} is neither sealed nor cached")
        _require(all(step > self._completed_step for step in self._retiring), "blocks retire on a step that is complete")


def manager_of(geometry: KvGeometry) -> KvManager:
    """The manager of a plan's blocks."""
    numbers = geometry.blocks, geometry.block_tokens, geometry.identity_tokens
    return KvManager(*numbers, geometry.compatibility, share=geometry.shares_prefixes)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)


def _check_geometry(blocks: int, block_tokens: int, identity_tokens: int) -> None:
    if blocks < 1 or block_tokens < 1 or identity_tokens < 1 or identity_tokens % block_tokens:
        raise PlanError(
            "the KV geometry is not usable",
            where="kv",
            expected="blocks >= 1, block_tokens >= 1, and block_tokens divides identity_tokens",
            got=f"blocks={blocks}, block_tokens={block_tokens}, identity_tokens={identity_tokens}",
            fix="compile the plan again",
        )
