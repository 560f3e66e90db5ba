"""What changes with every step, one numpy row per sampling slot, so that a step costs no Python object per request."""

from __future__ import annotations

import heapq
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .step import IntArray

PENDING = -1


class Phase:
    """Of a slot: plain numbers, which numpy compares in half the time that members of an enumeration take.

    `LOADING`: it has its slot and blocks, and waits for a step that loads some of them; then it goes on to `PREFILL`.
    """

    EMPTY: Final = 0
    PREFILL: Final = 1
    DECODE: Final = 2
    LOADING: Final = 3


# Beside arrays of their types numpy takes these in half the time that Python's numbers cost.
_DECODE, _ONE = np.array(Phase.DECODE, np.int8), np.array(1, np.int32)


class SlotTable:
    """Arrays over slots. A slot left while a launched step still names it is free again when that step is complete.

    `computed`: tokens whose KV a launched step has written or will write, so the position of the next row.
    `length`: tokens known (prompt and sampled). `limit`: total length at which the sequence ends.
    `confirmed`, `sealed`: tokens whose KV is known to be written; tokens in sealed units.
    `capacity`: tokens the blocks hold. `last_token`: token at position `computed`, or PENDING while the device alone has it.
    `last_step`: last launched step with rows of this slot. `binding`: grows when the slot's sequence leaves it; `departures`
    counts that over all slots. `names`: request ids of slots that decode. `numbers`: 0, 1, 2, ...; not to be written to.
    `recent`[slot, position % identity_tokens]: output tokens not yet flushed to the sequence; `recent_tokens` the same, flat.
    `block_table`[slot]: the sequence's physical blocks in order, 0 beyond its end. `window_tables`: the same of each window
    pool, 0 before the window as well.
    """

    def __init__(self, slots: int, max_blocks: int, unit_tokens: int, windows: int = 0) -> None:
        def column() -> IntArray:
            return np.zeros(slots, dtype=np.int32)

        self.phase: NDArray[np.int8] = np.zeros(slots, dtype=np.int8)
        self.computed, self.length, self.limit, self.capacity = column(), column(), column(), column()
        self.confirmed, self.sealed, self.cached, self.last_token = column(), column(), column(), column()
        self.last_step: NDArray[np.int64] = np.full(slots, -1, dtype=np.int64)
        self.binding: NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        self.recent: IntArray = np.zeros((slots, unit_tokens), dtype=np.int32)
        self._ready: NDArray[np.intp] | None = None
        self.block_table: IntArray = np.zeros((slots, max_blocks), dtype=np.int32)
        self.window_tables: list[IntArray] = [np.zeros((slots, max_blocks), dtype=np.int32) for _ in range(windows)]
        self.names: NDArray[Any] = np.full(slots, "", dtype=object)
        self.numbers: NDArray[np.intp] = np.arange(slots + 1)
        self.numbers.flags.writeable = False
        self.departures = 0
        self.unit_tokens = unit_tokens
        self._free = list(range(slots))
        self._draining: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def draining(self) -> int:
        """Slots that become free when launched steps are complete."""
        return sum(map(len, self._draining.values())) if self._draining else 0

    def take(self) -> int:
        """The lowest free slot."""
        return heapq.heappop(self._free)

    def leave(self, slot: int, completed_step: int) -> None:
        """The slot's sequence goes away; rows of it in launched steps are dead from here on."""
        self.phase[slot] = Phase.EMPTY
        self._ready = None
        self.binding[slot] += 1
        self.departures += 1
        self.block_table[slot] = 0
        for table in self.window_tables:
            table[slot] = 0
        if self.last_step[slot] > completed_step:
            self._draining.setdefault(int(self.last_step[slot]), []).append(slot)
        else:
            heapq.heappush(self._free, slot)

    def complete_step(self, step_id: int) -> None:
        if not self._draining:
            return
        for step in [step for step in self._draining if step <= step_id]:
            for slot in self._draining.pop(step):
                heapq.heappush(self._free, slot)

    def ready_to_decode(self) -> NDArray[np.intp]:
        """Slots whose next row is a decode row, in slot order; not those whose last token is already being sampled. The same
        array as before as long as these are the same."""
        if self._ready is None:
            self._ready = self.find_ready()
        return self._ready

    def find_ready(self) -> NDArray[np.intp]:
        return ((self.phase == _DECODE) & (self.limit - self.computed > _ONE)).nonzero()[0]

    def begin_to_decode(self, slot: int, request_id: str) -> None:
        """All rows of the prompt are launched."""
        self.phase[slot] = Phase.DECODE
        self.names[slot] = request_id
        self._ready = None

    def look_again(self) -> None:
        """Some slot's last row is being launched: it is not ready any more."""
        self._ready = None

    @property
    def recent_tokens(self) -> IntArray:
        return self.recent.reshape(-1)

    def unflushed(self, slot: int, start: int) -> IntArray:
        """The slot's tokens from position `start` to its length."""
        row, first = self.recent[slot], start % self.unit_tokens
        end = first + int(self.length[slot]) - start
        return row[first:end] if end <= self.unit_tokens else np.concatenate((row[first:], row[: end - self.unit_tokens]))

    def empty_slots(self) -> list[int]:
        """Free and draining slots, for checks."""
        return sorted(self._free + [slot for slots in self._draining.values() for slot in slots])


def places(table: IntArray, slots: NDArray[np.intp], positions: IntArray, block_tokens: int) -> NDArray[np.int64]:
    """Where rows at these positions of the sequences in these slots go, by a pool's table: block * `block_tokens` + offset."""
    return table[slots, positions // block_tokens].astype(np.int64) * block_tokens + positions % block_tokens
