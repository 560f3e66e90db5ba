"""Window pools: blocks of layers that see the last tokens alone. What lies behind the window is given back, and may be reused.

Every running sequence has blocks reserved in each window pool: as many as it can ever hold at once. So that it is never short of
one, and the pools of windows are looked at on admission alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from .blocks import SealedBlock, Unit, WritableBlock
from .errors import IntegrityError, SchedulerMisuse
from .pool import BlockPool


class WindowBlocks:
    """A sequence's blocks of one window pool: units from number `first` on, sealed ones, then blocks it may write. `reserved`
    blocks of the pool are for this sequence."""

    __slots__ = ("first", "reserved", "sealed", "writable")

    def __init__(self, first: int, sealed: list[SealedBlock], reserved: int) -> None:
        self.first, self.sealed, self.reserved = first, sealed, reserved
        self.writable: list[WritableBlock] = []


class WindowPool:
    """`window` is how many tokens a row sees, its own among them. A launched step may have rows from the last confirmed token on,
    `rows` of a sequence at most in all steps in flight (`limit_rows`)."""

    def __init__(self, pool: BlockPool, window: int, unit_tokens: int) -> None:
        self.pool, self.window, self.unit_tokens = pool, window, unit_tokens
        self.reserved = 0
        self._rows = 2

    def limit_rows(self, rows: int) -> None:
        """How many rows a sequence may have in steps in flight."""
        self._rows = max(2, rows)

    def first_seen(self, position: int) -> int:
        """The first unit that a row at `position` sees."""
        return max(0, position - self.window + 1) // self.unit_tokens

    def blocks_to_reserve(self, length: int, cached: int, limit: int) -> int:
        """For a sequence of `length` known tokens, of which so many are `cached`, and `limit` in the end."""
        rows, size = max(2, min(self._rows, length - cached + 1)), self.unit_tokens
        # what is behind the window stays until the next unit is full
        units = 1 - (-(rows - 1) // size) - (-(self.window - 1) // size)
        return min(units, -(-limit // size)) * self.pool.unit_blocks

    @property
    def unreserved(self) -> int:
        return self.pool.blocks - self.reserved

    def find(self, digest: bytes, parent: bytes, tokens: bytes) -> Unit | None:
        """A unit whose blocks are there."""
        unit = self.pool.find(digest, parent, tokens)
        return unit if unit is not None and unit.indices else None

    def open(self, units: Sequence[Unit], behind: int, reserve: int) -> WindowBlocks:
        """For a new sequence that starts with the last of `behind` units."""
        if reserve > self.unreserved:
            raise SchedulerMisuse(f"{reserve} blocks to be reserved in pool {self.pool.number}, {self.unreserved} are left")
        self.reserved += reserve
        held = [self.pool.hold(unit) for unit in units]
        return WindowBlocks(behind - len(units), [share for share in held if share is not None], reserve)

    def cover(self, part: WindowBlocks, blocks: int) -> tuple[int, list[int]]:
        """Make the sequence's blocks reach so far, counted from its first token: which one the first new one is, and all new."""
        start = (part.first + len(part.sealed)) * self.pool.unit_blocks + len(part.writable)
        grown = [self.pool.take_free().write() for _ in range(blocks - start)]
        part.writable.extend(grown)
        return start, [block.index for block in grown]

    def seal(self, part: WindowBlocks, digest: bytes, parent: bytes, tokens: bytes) -> None:
        """The first unit that is not sealed yet is full, computed and known."""
        part.sealed.append(self.pool.seal(part.writable[: self.pool.unit_blocks], digest, parent, tokens))
        del part.writable[: self.pool.unit_blocks]

    def leave_behind(self, part: WindowBlocks, confirmed: int, reserve: int, tell: Callable[[Unit], None]) -> int:
        """Give back what no row from position `confirmed` on sees, and `tell` of each unit: how many blocks. From here on the
        sequence needs no more than `reserve`, or what it holds now and one for its next row."""
        gone = min(self.first_seen(confirmed) - part.first, len(part.sealed))
        for share in part.sealed[: max(0, gone)]:
            tell(share.unit)
            self.pool.give_back(share)
        if gone > 0:
            del part.sealed[:gone]
            part.first += gone
        held = len(part.sealed) * self.pool.unit_blocks + len(part.writable)
        wanted = min(part.reserved, max(reserve, held + 1))
        self.reserved += wanted - part.reserved
        part.reserved = wanted
        return max(0, gone) * self.pool.unit_blocks

    def give_back(self, part: WindowBlocks) -> None:
        """The sequence ended, and no step touches its blocks any more. The tail is evicted before the head."""
        self.pool.free_writable(reversed(part.writable))
        for share in reversed(part.sealed):
            self.pool.give_back(share)
        self.reserved -= part.reserved

    def indices(self, part: WindowBlocks) -> list[int]:
        """Physical blocks in the order of tokens, from unit `first` on."""
        sealed = [index for share in part.sealed for index in share.unit.indices]
        return sealed + [block.index for block in part.writable]

    def check(self, parts: Iterable[WindowBlocks]) -> None:
        """Every invariant of the pool whose holders these are; raises IntegrityError."""
        parts, pool = list(parts), self.pool
        where = f"window pool {pool.number}"
        users = Counter(share.unit for part in parts for share in part.sealed)
        everywhere = Counter(
            [
                *(block.index for block in pool.free),
                *(block.index for part in parts for block in part.writable),
                *(index for unit in users for index in unit.indices),
                *(index for block in pool.cached for index in block.unit.indices),
            ]
        )
        _require(everywhere == Counter(range(pool.blocks)), f"{where}: a block has two states, or none")
        for unit, count in users.items():
            _require(unit.users == count, f"{where}: unit at {unit.indices} counts {unit.users} users, has {count}")
            _require(count == 1 or pool.index.get(unit.digest) is unit, f"{where}: shared unit is not in the index")
        for digest, unit in pool.index.items():
            _require(unit.digest == digest and bool(unit.indices), f"{where}: the index is wrong")
            _require(unit in users or unit in pool.cached, f"{where}: indexed unit is neither in use nor cached")
        _require(self.reserved == sum(part.reserved for part in parts) <= pool.blocks, f"{where}: reserved blocks miscounted")
        for part in parts:
            _require(len(self.indices(part)) <= part.reserved, f"{where}: a sequence holds more than is reserved for it")


class WindowHits:
    """Which prefixes the window pools allow: told of every unit in turn, from the first."""

    def __init__(self, pools: Sequence[WindowPool]) -> None:
        self._pools = pools
        self._units: list[list[Unit | None]] = [[] for _ in pools]
        self._in_a_row = [0] * len(pools)

    def tell(self, digest: bytes, parent: bytes, tokens: bytes) -> bool:
        """Of one unit more: whether the windows have what the row behind it sees."""
        complete = True
        for at, pool in enumerate(self._pools):
            unit = pool.find(digest, parent, tokens)
            self._units[at].append(unit)
            self._in_a_row[at] = 0 if unit is None else self._in_a_row[at] + 1
            complete = complete and self._in_a_row[at] >= self._seen(pool, len(self._units[at]))
        return complete

    def last(self, count: int) -> tuple[list[Unit], ...]:
        """Of a prefix of so many units, after which `tell` gave true: the units that the next row sees, by pool."""
        return tuple(
            [unit for unit in units[count - self._seen(pool, count) : count] if unit is not None]
            for pool, units in zip(self._pools, self._units, strict=True)
        )

    @staticmethod
    def _seen(pool: WindowPool, count: int) -> int:
        """How many of so many units the next row sees."""
        return count - pool.first_seen(count * pool.unit_tokens)


def entries(parts: Iterable[WindowBlocks], pools: Iterable[WindowPool]) -> Iterator[tuple[int, list[int]]]:
    """Of each pool: the first block that a sequence has there, counted from its first token, and its blocks from there on."""
    for part, pool in zip(parts, pools, strict=True):
        yield part.first * pool.pool.unit_blocks, pool.indices(part)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
