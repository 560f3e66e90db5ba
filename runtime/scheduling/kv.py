"""The KV manager: which physical block holds what, for whom, and what may be reused. Contents live on the device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from ...plans.errors import PlanError
from ...plans.schema import KvGeometry
from .blocks import Reuse, Unit
from .disk_tier import DiskJob, DiskTier, StoredUnit
from .errors import OutOfBlocks, SchedulerMisuse
from .order import Clock
from .pool import BlockPool
from .prefix import TOKEN_BYTES, chain_seed
from .request import TurnEnd
from .retention import Owner, Retention
from .sequence_blocks import NOBODY, Hits, SequenceBlocks
from .step import BlockCopies
from .windows import WindowHits, WindowPool


class KvManager:
    """A pool of `blocks` physical blocks of `block_tokens` tokens; a prefix hash covers `identity_tokens` tokens.

    `compatibility` is the digest of all that makes KV interchangeable (weights, dtype, geometry, rope). Raises PlanError when
    the numbers make no sense. With `share` false no prefix is ever found or kept: blocks alone are not what a sequence needs to
    go on where another one was (recurrent states are by slot, and no block holds them). Steps are completed in order: a block
    released while a launched step may still touch it is set aside until `complete_step` of that step.

    `host_blocks` are more blocks in the host's memory: units go there in the background (`launch`), and come back for a
    sequence that starts with them. Such a sequence has rows once `is_ready`, in the step being planned or later.
    `bytes_per_block` is what a block takes (0: unknown).

    `windows` are pools of further blocks: how many tokens a row sees, and how many blocks there are (windows.py). A prefix counts
    as known where they have what the next row sees.
    """

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        identity_tokens: int,
        compatibility: str,
        share: bool = True,
        host_blocks: int = 0,
        bytes_per_block: int = 0,
        windows: Sequence[tuple[int, int]] = (),
    ) -> None:
        _check_geometry(blocks, block_tokens, identity_tokens, host_blocks)
        self.blocks, self.block_tokens, self.identity_tokens = blocks, block_tokens, identity_tokens
        self.unit_blocks = identity_tokens // block_tokens
        self.compatibility, self.bytes_per_block = compatibility, bytes_per_block
        self.clock = Clock()
        self.retention = Retention(self.clock, 4 * (blocks + host_blocks) // self.unit_blocks + 4)
        self.pool = BlockPool(0, blocks, self.unit_blocks, host_blocks, share, self.clock)
        self.windows = tuple(
            WindowPool(BlockPool(number, count, self.unit_blocks, 0, share, self.clock), window, identity_tokens)
            for number, (window, count) in enumerate(windows, 1)
        )
        self._pools = (self.pool, *(window.pool for window in self.windows))
        self._open: set[SequenceBlocks] = set()
        self._retiring: dict[int, list[SequenceBlocks]] = {}
        self.completed_step = -1

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens

    @property
    def kept_tokens(self) -> int:
        """How many tokens sessions may be let into: half of the tier has copies of what the device has, so that this can be
        evicted (docs/performance.md, "Agents' traffic, simulated")."""
        tier = self.pool.tier
        return self.tokens + (0 if tier is None else tier.blocks * self.block_tokens // 2)

    @property
    def available(self) -> int:
        """Blocks that can be written now: free ones and evictable ones."""
        return self.pool.available

    @property
    def retiring(self) -> bool:
        """Whether blocks are set aside until a launched step is complete."""
        tier = self.pool.tier
        return bool(self._retiring) or (tier is not None and any(True for _ in tier.returning()))

    @property
    def usage(self) -> float:
        """Share of the fullest pool in use, 0 to 1; cached blocks nobody uses do not count."""
        return max(1 - pool.available / pool.blocks for pool in self._pools)

    @property
    def host_usage(self) -> float:
        """Share of the host tier's blocks that hold a copy or are being filled with one, 0 to 1; 0 where there is no tier."""
        tier = self.pool.tier
        return 0.0 if tier is None else 1 - len(tier.free) / tier.blocks

    @property
    def evictions(self) -> int:
        """Units that the device has given up."""
        return self.pool.evictions

    @property
    def offloaded_tokens(self) -> int:
        """Tokens copied to the host so far."""
        return self.pool.saved_units * self.identity_tokens

    @property
    def reloaded_tokens(self) -> int:
        """Tokens brought back from the host so far."""
        return self.pool.loaded_units * self.identity_tokens

    @property
    def disk_usage(self) -> float:
        """Share of the places on disk that hold a unit or are being written, 0 to 1; 0 where there are none."""
        disk = self.disk
        return 0.0 if disk is None else 1 - len(disk.free) / disk.places

    @property
    def disk_tokens(self) -> dict[str, int]:
        """Running totals of the tier on disk, as in `SchedulerStats`."""
        disk, size = self.disk, self.identity_tokens
        if disk is None:
            return {}
        units = {"stored": disk.written_units, "fetched": disk.read_units, "refused": disk.refused_units}
        units["restored"] = disk.restored_units
        return {f"{name}_tokens": count * size for name, count in units.items()}

    def seed(self, salt: str) -> bytes:
        return chain_seed(self.compatibility, salt)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def lookup(self, digests: Sequence[bytes], tokens: bytes) -> Hits:
        """The longest known prefix of a chain (its seed, then one digest per unit); changes nothing. O(units of the hit)."""
        size, units, idle, reload, absent, count = self.identity_tokens * TOKEN_BYTES, list[Unit](), 0, 0, 0, 0
        behind, best = WindowHits(self.windows), Hits([], 0)
        for number, digest in enumerate(digests[1:]):
            of_unit = digests[number], tokens[number * size : (number + 1) * size]
            unit = self.pool.find(digest, *of_unit)
            if unit is None:
                break
            units.append(unit)
            if not unit.indices:
                reload += self.unit_blocks
                absent += not unit.host or unit.storing
            elif not unit.users and not unit.arriving:
                idle += self.unit_blocks
            if not self.windows or behind.tell(digest, *of_unit):
                best, count = Hits(units, idle, reload, (), absent), len(units)
        return best._replace(units=units[:count], windows=behind.last(count)) if self.windows else best

    def probable_units(self, digests: Sequence[bytes]) -> int:
        """How many units of a chain are known, if none is missing before one that is there: found by halving, O(log units)."""
        low, high = 0, len(digests) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if digests[middle] in self.pool.index:
                low = middle
            else:
                high = middle - 1
        return low

    def limit_rows(self, rows: int, longest: int) -> None:
        """Sequences have up to `longest` tokens, and so many rows in steps in flight: said before the first. Raises PlanError
        where a window's pool does not hold one of them."""
        for number, window in enumerate(self.windows, 1):
            window.limit_rows(rows)
            needed = window.blocks_to_reserve(longest, 0, longest)
            if needed > window.pool.blocks:
                raise PlanError(
                    "a window's pool does not hold one sequence",
                    where=f"kv.windows, {number}: blocks",
                    expected=f"at least {needed}",
                    got=str(window.pool.blocks),
                    fix="compile the plan again",
                )

    def reservations(self, length: int, hits: Hits, limit: int) -> tuple[int, ...]:
        """Blocks to reserve in window pools for a sequence of `length` tokens, `limit` in the end, that starts with `hits`."""
        cached = len(hits.units) * self.identity_tokens
        return tuple(window.blocks_to_reserve(length, cached, limit) for window in self.windows)

    def open(self, hits: Hits, owner: Owner = NOBODY, reserve: Sequence[int] = ()) -> SequenceBlocks:
        """Blocks for a new sequence that starts with `hits`, looked up since the last change of this manager; `reserve` blocks of
        each window pool are for it. None of the hits may be `absent`."""
        if hits.absent:
            raise SchedulerMisuse(f"{hits.absent} units of the hits are on disk alone: fetch them first")
        held = [self.pool.hold(unit) for unit in hits.units]  # first, so that loads evict none of them
        sealed = [share or self.pool.load(unit) for share, unit in zip(held, hits.units, strict=True)]
        for unit in chain(hits.units, *hits.windows):
            self.retention.used(unit, owner)
        self._leave([*self.retention.begin(owner)], owner.session)
        blocks = SequenceBlocks(sealed, owner)
        blocks.windows = tuple(
            window.open(seen, len(hits.units), count)
            for window, seen, count in zip(self.windows, hits.windows or ([],) * len(self.windows), reserve, strict=True)
        )
        if self.pool.tier is not None:
            blocks.awaits = max((self.pool.tier.place(unit) for unit in hits.units), default=-1)
            self.pool.tier.board()
        self._open.add(blocks)
        return blocks

    def is_ready(self, blocks: SequenceBlocks) -> bool:
        """Whether all that the sequence starts with is on the device before the rows of the step that is planned next."""
        tier = self.pool.tier
        return tier is None or tier.has_left(blocks.awaits)

    def grow(self, blocks: SequenceBlocks, count: int) -> list[int]:
        """Append `count` writable blocks, evicting if needed, and give their indices. OutOfBlocks changes nothing."""
        blocks.require()
        if count > self.available:
            raise OutOfBlocks(f"{count} KV blocks wanted, {self.available} available")
        grown = [self.pool.take_free().write() for _ in range(count)]
        blocks.writable.extend(grown)
        return [block.index for block in grown]

    def seal(self, blocks: SequenceBlocks, digest: bytes, parent: bytes, tokens: bytes) -> None:
        """The sequence's next unit is full, computed and known: from now on it is immutable and may be shared.

        Where the same unit is in the index already, this copy stays the sequence's own.
        """
        blocks.require()
        sealed = self.pool.seal(blocks.writable[: self.unit_blocks], digest, parent, tokens)
        del blocks.writable[: self.unit_blocks]
        blocks.sealed.append(sealed)
        self.retention.used(sealed.unit, blocks.owner)
        for window, part in zip(self.windows, blocks.windows, strict=True):
            window.seal(part, digest, parent, tokens)
            self.retention.used(part.sealed[-1].unit, blocks.owner)

    def cover(self, blocks: SequenceBlocks, tokens: int) -> list[tuple[int, list[int]]]:
        """Let the sequence write its first `tokens` tokens in window pools too: of each the first new block, counted from the
        sequence's first token, and all new ones. What it reserved is enough."""
        count = self.blocks_for(tokens)
        return [window.cover(part, count) for window, part in zip(self.windows, blocks.windows, strict=True)]

    def leave_behind(self, blocks: SequenceBlocks, confirmed: int, limit: int, prefills: bool) -> list[int]:
        """No row of the sequence before position `confirmed` is left in any step, and all its full units are sealed: how many
        blocks it gives back in each window pool."""
        given: list[int] = []
        for window, part in zip(self.windows, blocks.windows, strict=True):
            reserve = part.reserved if prefills else window.blocks_to_reserve(0, 0, limit)
            given.append(window.leave_behind(part, confirmed, reserve, self.retention.leave_behind))
        return given

    def release(self, blocks: SequenceBlocks, last_step: int, ended: bool = True) -> None:
        """The sequence gives all its blocks back, because it ended or was preempted; `last_step` is the last launched step that
        touches them (-1: none)."""
        blocks.consume()
        blocks.ended = ended
        if ended:
            self.retention.end(blocks.owner)
        self._open.remove(blocks)
        if last_step > self.completed_step:
            self._retiring.setdefault(last_step, []).append(blocks)
        else:
            self._give_back(blocks)

    def add_disk(self, places: int, bytes_per_second: float, units: Iterable[StoredUnit] = ()) -> None:
        """A tier on disk below the one on the host, of so many places for a unit each; once, before anything else. `units` are
        there already, those that are to leave first before the others. Raises PlanError where there is no tier on the host, or
        windows have pools of their own."""
        tier = self.pool.tier
        if tier is None or self.windows:
            raise PlanError(
                "a tier on disk is not possible for this plan",
                where="kv",
                expected="a tier in host memory, and no pools for windows",
                got="no host_blocks" if tier is None else f"{len(self.windows)} windows",
                fix="serve without --disk-kv" if tier is not None else "compile the plan with --host-kv",
            )
        tier.disk = DiskTier(places, self.clock, bytes_per_second)
        tier.disk.restore(units, self.pool.index)

    @property
    def disk(self) -> DiskTier | None:
        """The tier on disk, if there is one."""
        return None if self.pool.tier is None else self.pool.tier.disk

    def disk_jobs(self) -> list[DiskJob]:
        """What is to be written to disk and read from there that was not told before. In the background, in any order; steps may
        go on meanwhile."""
        tier, disk = self.pool.tier, self.disk
        return [] if tier is None or disk is None else self.pool.disk_jobs(tier, disk)

    def disk_done(self, number: int, well: bool) -> None:
        """A job is done; not `well`: what was to be written is not there, what was to be read is not what it was."""
        tier, disk = self.pool.tier, self.disk
        if tier is None or disk is None or number not in disk.storing.keys() | disk.fetching.keys():
            raise SchedulerMisuse(f"no job {number} of the tier on disk is under way")
        self.pool.disk_done(tier, disk, number, well)

    def fetch(self, hits: Hits) -> set[int]:
        """Begin to bring what is `absent` of hits just looked up back to the host, as far as there is room for it: the jobs after
        which to look again. What the host has of them stays, as what is expected back soon does."""
        tier, disk = self.pool.tier, self.disk
        if tier is None or disk is None:
            return set()
        wanted = [unit for unit in hits.units if not unit.indices]
        for unit in wanted:
            unit.reuse, unit.since = max(unit.reuse, Reuse.TOOL), self.clock.now
            self.pool.regard(unit)
        return self.pool.fetch(tier, disk, wanted)

    def fetch_seconds(self, hits: Hits) -> float:
        """How long it takes to read what is absent from disk."""
        disk = self.disk
        return 0.0 if disk is None else hits.absent * self.unit_blocks * self.bytes_per_block / disk.bytes_per_second

    def begin_step(self, load_blocks: int) -> None:
        """A step is planned that may load so many blocks, and one unit at least. What waits longest is loaded first."""
        if self.pool.tier is not None:
            self.pool.tier.begin_step(load_blocks // self.unit_blocks)

    def would_lose(self, blocks: int, keep: Sequence[Unit]) -> bool:
        """Whether to take so many blocks, while these units are kept, would evict what could have a copy on the host soon."""
        return self.pool.would_lose(blocks, keep)

    def await_copies(self, blocks: int, keep: Sequence[Unit]) -> None:
        """Let the next step make copies, so that so many blocks could be taken without loss beside these units."""
        self.pool.await_copies(blocks, keep)

    @property
    def copied_or_free(self) -> int:
        """Blocks that can be taken without loss, now or when the launched steps have made their copies."""
        return self.pool.copied_or_free

    @property
    def awaits_copies(self) -> bool:
        """Whether somebody waits for copies that the next step is to make."""
        return self.pool.awaited > 0

    @property
    def has_tier(self) -> bool:
        return self.pool.tier is not None

    @property
    def boarding_blocks(self) -> int:
        """Blocks that the step being planned loads."""
        return self.pool.boarding_blocks

    @property
    def has_unsaved(self) -> bool:
        """Whether there is something without a copy on the host."""
        return self.pool.tier is not None and bool(self.pool.tier.unsaved or self.pool.tier.fresh)

    def launch(self, step_id: int, save_blocks: int) -> tuple[tuple[BlockCopies, ...], tuple[BlockCopies, ...]]:
        """What the planned step copies: saves, of at most so many blocks, and loads. They are done with `complete_step`."""
        save, load = self.pool.launch(step_id, save_blocks)
        return () if save is None else (save,), () if load is None else (load,)

    def complete_step(self, step_id: int) -> None:
        """Step `step_id` and all before it will touch no block any more, and what they copied is there."""
        self.completed_step = max(self.completed_step, step_id)
        self.pool.complete_step(step_id)
        for step in sorted(step for step in self._retiring if step <= step_id) if self._retiring else ():
            for blocks in self._retiring.pop(step):
                self._give_back(blocks)

    def fail_step(self, step_id: int) -> bool:
        """What step `step_id` was to copy is not there: call before `complete_step`. Whether sequences hold blocks that it was to
        load (`is_spoilt`): they must end."""
        return self.pool.fail_step(step_id)

    def is_spoilt(self, blocks: SequenceBlocks) -> bool:
        """Whether a unit of the sequence could not be loaded."""
        return any(block.unit.spoilt for block in blocks.sealed)

    def reserved(self, blocks: SequenceBlocks) -> list[int]:
        """Blocks of each window pool that are for this sequence."""
        return [part.reserved for part in blocks.windows]

    def retiring_reserved(self) -> list[int]:
        """The same of sequences that wait for launched steps to be complete."""
        retiring = [blocks for batch in self._retiring.values() for blocks in batch]
        return [sum(blocks.windows[at].reserved for blocks in retiring) for at in range(len(self.windows))]

    def unreserved(self) -> list[int]:
        """Blocks of each window pool that are for nobody."""
        return [window.unreserved for window in self.windows]

    def reclaimable(self, blocks: SequenceBlocks, keep: Collection[Unit] = ()) -> int:
        """Blocks that become available when this sequence releases, not counting the units in `keep`."""
        sole = sum(block.unit.readers == 1 and block.unit not in keep for block in blocks.sealed)
        return len(blocks.writable) + sole * self.unit_blocks

    def retiring_blocks(self, keep: Collection[Unit] = ()) -> int:
        """Blocks that become available when the launched steps are complete."""
        retiring = sum(self.reclaimable(blocks, keep) for batch in self._retiring.values() for blocks in batch)
        if self.pool.tier is None:
            return retiring
        return retiring + sum(unit not in keep for unit in self.pool.tier.returning()) * self.unit_blocks

    def _give_back(self, blocks: SequenceBlocks) -> None:
        """Tail first, so that of one sequence the tail is evicted before the head it hangs on."""
        self.pool.free_writable(reversed(blocks.writable))
        for block in reversed(blocks.sealed):
            self.retention.expect(block.unit, blocks.owner, blocks.ended)
            self.pool.give_back(block)
        for window, part in zip(self.windows, blocks.windows, strict=True):
            for block in part.sealed:
                self.retention.expect(block.unit, blocks.owner, blocks.ended)
            window.give_back(part)

    def end_turn(self, session: str, end: TurnEnd) -> None:
        """Hint: how a session's last turn ended. O(units of the turn)."""
        for digest, reuse in self.retention.end_turn(session, end):
            for pool, unit in self._own(digest, session):
                behind = pool is not self.pool and unit.reuse is Reuse.GONE
                if unit.reuse is not reuse and not behind:
                    unit.reuse, unit.since = reuse, self.clock.now
                    pool.regard(unit)

    def close_session(self, session: str) -> None:
        """Hint: a session has no further turn. O(units of its last turn)."""
        self._leave([*self.retention.close(session)], session)

    def park_session(self, session: str) -> None:
        """A session gave up its place: nothing is expected of its last turn's units for now. O(units of the turn)."""
        for digest in self.retention.digests(session):
            for pool, unit in self._own(digest, session):
                if unit.reuse > Reuse.IDLE:
                    unit.reuse, unit.since = Reuse.IDLE, self.clock.now
                    pool.regard(unit)

    def _own(self, digest: bytes, session: str) -> Iterator[tuple[BlockPool, Unit]]:
        """Of each pool a unit that this session alone has used, and nobody uses now."""
        for pool in self._pools:
            unit = pool.index.get(digest)
            if unit is not None and unit.session == session and not (unit.shared or unit.readers):
                yield pool, unit

    def _leave(self, digests: Sequence[bytes], session: str) -> None:
        """Units of this session that will not be wanted again: they are evicted first."""
        for digest in digests:
            for pool, unit in self._own(digest, session):
                if unit.reuse is not Reuse.GONE:
                    unit.reuse = Reuse.GONE
                    pool.regard(unit)

    def open_sequences(self) -> Collection[SequenceBlocks]:
        """Blocks of sequences that have not released, for checks."""
        return self._open

    def holders(self) -> Iterator[SequenceBlocks]:
        """Blocks of all sequences, those included that wait for a launched step."""
        yield from self._open
        for batch in self._retiring.values():
            yield from batch

    def retiring_steps(self) -> Collection[int]:
        """Steps that sequences wait for with their blocks."""
        return self._retiring.keys()


def manager_of(geometry: KvGeometry) -> KvManager:
    """The manager of a plan's blocks."""
    numbers = geometry.blocks, geometry.block_tokens, geometry.identity_tokens
    tier = geometry.host_blocks, geometry.bytes_per_block
    windows = [(pool.window, pool.blocks) for pool in geometry.windows]
    return KvManager(*numbers, geometry.compatibility, geometry.shares_prefixes, *tier, windows)


def _check_geometry(blocks: int, block_tokens: int, identity_tokens: int, host_blocks: int) -> None:
    if blocks < 1 or block_tokens < 1 or identity_tokens < 1 or identity_tokens % block_tokens or host_blocks < 0:
        raise PlanError(
            "the KV geometry is not usable",
            where="kv",
            expected="blocks >= 1, block_tokens >= 1, host_blocks >= 0, and block_tokens divides identity_tokens",
            got=f"blocks={blocks}, block_tokens={block_tokens}, identity_tokens={identity_tokens}, host_blocks={host_blocks}",
            fix="compile the plan again",
        )
