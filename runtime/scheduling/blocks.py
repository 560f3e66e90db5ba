"""KV blocks with their state in the type: each class has only the transitions that are legal in its state.

    free --write--> writable --seal--> sealed --release (last user)--> cached --evict--> free
                    writable --free--> free          ^------ use ------'

A handle is linear: a transition consumes it, and any later use raises `HandleConsumed`. A sealed block is shared by
count: every user holds a handle of its own. A sealed or cached block is one identity unit, `identity_tokens` tokens,
and lies in one physical block or, where the physical block is smaller, in several.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import HandleConsumed, SchedulerMisuse


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
        self.require()
        self._live = False


class _PhysicalBlock(Handle):
    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    @property
    def index(self) -> int:
        """Position in the pool; its token slots are index * block_tokens and those that follow."""
        self.require()
        return self._index


class FreeBlock(_PhysicalBlock):
    """Holds nothing."""

    __slots__ = ()

    def write(self) -> WritableBlock:
        self.consume()
        return WritableBlock(self._index)


class WritableBlock(_PhysicalBlock):
    """Belongs to one sequence, which may write it. Never shared."""

    __slots__ = ()

    def free(self) -> FreeBlock:
        self.consume()
        return FreeBlock(self._index)


class Unit:
    """An identity unit: `identity_tokens` tokens at a known place in a known prefix, and where their KV lies.

    `digest` covers the whole prefix up to and with `tokens` (int32, little-endian); `users` counts the sealed handles.
    """

    __slots__ = ("digest", "indices", "parent", "tokens", "users")

    def __init__(self, digest: bytes, parent: bytes, tokens: bytes, indices: tuple[int, ...]) -> None:
        self.digest, self.parent, self.tokens, self.indices = digest, parent, tokens, indices
        self.users = 0

    def matches(self, parent: bytes, tokens: bytes) -> bool:
        """Equal digests are not believed: the tokens are compared too, so that a collision is a miss."""
        return self.tokens == tokens and self.parent == parent

    def share(self) -> SealedBlock:
        """One more user of a unit that already has users; a unit without any is taken through its `CachedBlock`."""
        if not self.users:
            raise SchedulerMisuse("a unit without users cannot be shared; use its cached block")
        return SealedBlock(self)


class SealedBlock(Handle):
    """One user's share of a full, hashed, immutable unit."""

    __slots__ = ("_unit",)

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self._unit = unit
        unit.users += 1

    @property
    def unit(self) -> Unit:
        self.require()
        return self._unit

    def release(self) -> CachedBlock | None:
        """Give this share back; the last one to do so gets the cached block."""
        self.consume()
        self._unit.users -= 1
        return None if self._unit.users else CachedBlock(self._unit)


class CachedBlock(Handle):
    """A sealed unit that nobody uses: a later prompt may take it, or it is evicted."""

    __slots__ = ("_unit",)

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self._unit = unit

    @property
    def unit(self) -> Unit:
        self.require()
        return self._unit

    def use(self) -> SealedBlock:
        self.consume()
        return SealedBlock(self._unit)

    def evict(self) -> tuple[FreeBlock, ...]:
        self.consume()
        return tuple(FreeBlock(index) for index in self._unit.indices)


def seal(blocks: Sequence[WritableBlock], digest: bytes, parent: bytes, tokens: bytes) -> SealedBlock:
    """Writable -> sealed: the blocks of one unit, all their tokens computed and known. Consumes them."""
    indices = tuple(block.index for block in blocks)
    for block in blocks:
        block.consume()
    return SealedBlock(Unit(digest, parent, tokens, indices))
