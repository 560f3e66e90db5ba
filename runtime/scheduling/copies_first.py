"""When an admission waits, so that what it would evict has a copy on the host first: policy rule 4."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Unit
from .kv import KvManager


class CopiesFirst:
    """Copying is so much faster than computing that an admission may wait for it, but only as long as it gets on: from one round
    of planning to the next there must be more blocks that can be taken without loss."""

    def __init__(self, kv: KvManager) -> None:
        self._kv = kv
        self._round, self._safe = -1, -1

    def waits(self, number: int, blocks: int, keep: Sequence[Unit]) -> bool:
        """Whether an admission that needs so many blocks beside `keep` waits, in the round of this number. If so, the next step
        makes copies though it may have no rows."""
        if not self._kv.would_lose(blocks, keep):
            self._safe = -1
            return False
        safe = self._kv.copied_or_free
        if number != self._round and safe <= self._safe:
            self._safe = -1
            return False
        self._round, self._safe = number, safe
        self._kv.await_copies(blocks, keep)
        return True
