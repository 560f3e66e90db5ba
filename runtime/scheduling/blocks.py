"""KV blocks with their state in the type: each class has only the transitions that are legal in its state.

    free --write--> writable --seal--> sealed --release (last user)--> cached --evict--> free
                    writable --free--> free          ^------ use ------'

On the host, and in transfer between the two:

    free host block --save (with a share of a sealed unit)--> saving --done--> offloaded --evict--> free host block
    offloaded --load (with free blocks)--> loading --done--> offloaded, and on the device sealed or cached

A handle is linear: a transition consumes it, and any later use raises `HandleConsumed`. A sealed block is shared by
count: every user holds a handle of its own. A sealed, cached or offloaded block is one identity unit, `identity_tokens`
tokens, and lies in one physical block or, where the physical block is smaller, in several.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from .errors import HandleConsumed, SchedulerMisuse


class Reuse(IntEnum):
    """How soon a unit is expected to be used again; what is lower is evicted earlier.

    `GONE`: replaced by another turn of its session, or of a session that was closed. `IDLE`: nothing is known, or what was
    expected did not happen in time. `HINTED`: its client asked to keep it. `USER`: a person is to answer. `TOOL`: a tool is at
    work. `SHARED`: several sessions have used it.
    """

    GONE = 0
    IDLE = 1
    HINTED = 2
    USER = 3
    TOOL = 4
    SHARED = 5


class Handle:
    __slots__ = ("_live",)

    def __init__(self) -> None:
        self._live = True

    @property
    def live(self) -> bool:
        return self._live

    def require(self) -> None:
        if not self._live:
            raise HandleConsumed(f"this {type(self).__name__} was already consumed by a transition")

    def consume(self) -> None:
        if not self._live:
            self.require()
        self._live = False


class PhysicalBlock(Handle):
    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    @property
    def index(self) -> int:
        """Position in the pool; its token slots are index * block_tokens and those that follow."""
        if not self._live:
            self.require()
        return self._index


class FreeBlock(PhysicalBlock):
    """Holds nothing."""

    __slots__ = ()

    def write(self) -> WritableBlock:
        self.consume()
        return WritableBlock(self._index)


class WritableBlock(PhysicalBlock):
    """Belongs to one sequence, which may write it. Never shared."""

    __slots__ = ()

    def free(self) -> FreeBlock:
        self.consume()
        return FreeBlock(self._index)


class FreeHostBlock(PhysicalBlock):
    """A block of the host's tier that holds nothing. Its index is its place there."""

    __slots__ = ()


class Unit:
    """An identity unit: `identity_tokens` tokens at a known place in a known prefix, and where their KV lies.

    `digest` covers the whole prefix up to and with `tokens` (int32, little-endian). `indices` are its blocks on the device,
    `host` those of its copy on the host; empty where it has none. `place` is its place on disk (stored_blocks.py), or -1;
    `storing`: the host's copy is being written there. `users` counts the sealed handles, that of a save among them;
    `used` numbers the last time that a sequence gave it back.
    `arriving`: the device's blocks are still to be filled from the host. `leaving`: a launched step saves it. `spoilt`: filling
    them failed, so that nobody may read them. `reuse`, `since` and `hint` (seconds) say when it is expected to be wanted again
    (order.py); `session` computed it, and `shared` says whether others have used it.
    """

    __slots__ = (
        "arriving",
        "digest",
        "hint",
        "host",
        "indices",
        "leaving",
        "parent",
        "place",
        "reuse",
        "session",
        "shared",
        "since",
        "spoilt",
        "storing",
        "tokens",
        "used",
        "users",
    )

    def __init__(self, digest: bytes, parent: bytes, tokens: bytes, indices: tuple[int, ...]) -> None:
        self.digest, self.parent, self.tokens, self.indices = digest, parent, tokens, indices
        self.host: tuple[int, ...] = ()
        self.users = 0
        self.place, self.used = -1, 0
        self.arriving = self.leaving = self.spoilt = self.storing = False
        self.reuse, self.since, self.hint = Reuse.IDLE, 0.0, 0.0
        self.session, self.shared = "", False

    def matches(self, parent: bytes, tokens: bytes) -> bool:
        """Equal digests are not believed: the tokens are compared too, so that a collision is a miss."""
        return self.tokens == tokens and self.parent == parent

    @property
    def readers(self) -> int:
        """Sequences that use it."""
        return self.users - self.leaving

    def share(self) -> SealedBlock:
        """One more user of a unit that already has users; one without any is taken through its cached or loading block."""
        if not self.users:
            raise SchedulerMisuse("a unit without users cannot be shared; use its cached block")
        return SealedBlock(self)


class UnitHandle(Handle):
    __slots__ = ("_unit",)

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self._unit = unit

    @property
    def unit(self) -> Unit:
        if not self._live:
            self.require()
        return self._unit


class SealedBlock(UnitHandle):
    """One user's share of a full, hashed, immutable unit. Where the unit is still arriving, a step that reads it comes with or
    after the one that loads it."""

    __slots__ = ()

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        unit.users += 1

    def release(self) -> CachedBlock | None:
        """Give this share back; the last one to do so gets the cached block, unless the unit is still arriving."""
        self.consume()
        self._unit.users -= 1
        return None if self._unit.users or self._unit.arriving else CachedBlock(self._unit)

    def save(self, into: Sequence[FreeHostBlock]) -> SavingBlock:
        """Begin a copy to the host. The share goes with it: until the copy is done nobody frees what it reads."""
        self.consume()
        return SavingBlock(self._unit, taken(into))


class CachedBlock(UnitHandle):
    """A sealed unit that nobody uses: a later prompt may take it, or it is evicted."""

    __slots__ = ()

    def use(self) -> SealedBlock:
        self.consume()
        return SealedBlock(self._unit)

    def evict(self) -> tuple[FreeBlock, ...]:
        self.consume()
        return _emptied(self._unit)


class SavingBlock(UnitHandle):
    """In transfer to the host: a launched step reads the unit on the device and fills blocks of the host."""

    __slots__ = ("_into",)

    def __init__(self, unit: Unit, into: tuple[int, ...]) -> None:
        super().__init__(unit)
        self._into = into
        unit.leaving = True

    @property
    def into(self) -> tuple[int, ...]:
        self.require()
        return self._into

    def done(self) -> tuple[OffloadedBlock, CachedBlock | None]:
        """The step is complete: there is a copy, and the share is given back as in `SealedBlock.release`."""
        cached = self._give_back()
        self._unit.host = self._into
        return OffloadedBlock(self._unit), cached

    def fail(self) -> tuple[tuple[FreeHostBlock, ...], CachedBlock | None]:
        """The step failed: there is no copy."""
        cached = self._give_back()
        return tuple(FreeHostBlock(index) for index in self._into), cached

    def _give_back(self) -> CachedBlock | None:
        self.consume()
        self._unit.leaving = False
        self._unit.users -= 1
        return None if self._unit.users else CachedBlock(self._unit)


class OffloadedBlock(UnitHandle):
    """A unit's copy on the host, whether or not the device has the unit too."""

    __slots__ = ()

    def load(self, into: Sequence[FreeBlock]) -> LoadingBlock:
        """Begin to bring a unit that the device does not have back into these blocks."""
        if self.unit.indices:
            raise SchedulerMisuse("the device has this unit")
        self.consume()
        self._unit.indices = taken(into)
        return LoadingBlock(self._unit)

    def evict(self) -> tuple[FreeHostBlock, ...]:
        self.consume()
        return _forgotten(self._unit)


class LoadingBlock(UnitHandle):
    """In transfer to the device, or waiting for a step that carries it: both places belong to the transfer."""

    __slots__ = ()

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        unit.arriving = True

    def share(self) -> SealedBlock:
        """One more user, who reads the unit no earlier than with the step that loads it."""
        return SealedBlock(self.unit)

    def done(self) -> tuple[OffloadedBlock, CachedBlock | None]:
        """The step is complete: the unit is there for its users, or cached where it has none."""
        self.consume()
        self._unit.arriving = False
        return OffloadedBlock(self._unit), None if self._unit.users else CachedBlock(self._unit)

    def cancel(self) -> tuple[OffloadedBlock, tuple[FreeBlock, ...]]:
        """No step carries it yet, and nobody wants it any more."""
        if self.unit.users:
            raise SchedulerMisuse("a load that a sequence waits for cannot be cancelled")
        self.consume()
        self._unit.arriving = False
        return OffloadedBlock(self._unit), _emptied(self._unit)

    def fail(self) -> tuple[tuple[FreeHostBlock, ...], CachedBlock | None]:
        """The step failed: the device's blocks hold nothing, and the copy is not trusted again. Users must not read the unit."""
        self.consume()
        self._unit.arriving, self._unit.spoilt = False, True
        return _forgotten(self._unit), None if self._unit.users else CachedBlock(self._unit)


def seal(blocks: Sequence[WritableBlock], digest: bytes, parent: bytes, tokens: bytes) -> SealedBlock:
    """Writable -> sealed: the blocks of one unit, all their tokens computed and known. Consumes them."""
    return SealedBlock(Unit(digest, parent, tokens, taken(blocks)))


def restore(blocks: Sequence[WritableBlock], unit: Unit) -> SealedBlock:
    """Writable -> sealed where the unit is known but the device did not have it: computed anew, as its copy on the host is."""
    if unit.indices:
        raise SchedulerMisuse("the device has this unit")
    unit.indices = taken(blocks)
    return SealedBlock(unit)


def taken(blocks: Sequence[PhysicalBlock]) -> tuple[int, ...]:
    """Consume all of these, or none where one is consumed already."""
    indices = tuple([block.index for block in blocks])
    for block in blocks:
        block.consume()
    return indices


def _emptied(unit: Unit) -> tuple[FreeBlock, ...]:
    """The unit leaves the device."""
    indices, unit.indices = unit.indices, ()
    return tuple([FreeBlock(index) for index in indices])


def _forgotten(unit: Unit) -> tuple[FreeHostBlock, ...]:
    """The unit's copy leaves the host."""
    indices, unit.host = unit.host, ()
    return tuple([FreeHostBlock(index) for index in indices])
