"""The sequences that decode, as a step's arrays: the next step of the same ones is a token further, and all else as it was."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .slots import SlotTable, places
from .step import IntArray

_ONE, _ONE_PLACE = np.array(1, np.int32), np.array(1, np.int64)

Array = TypeVar("Array", bound=NDArray[Any])


class Cohort:
    """One row of each of the sequences in `slots`, in this order: what a step says of them, and `advance` to the next.

    Steps share arrays that are equal, so nobody may write to them. `positions` of the rows, `context` = `positions` + 1,
    `mapping`: their places in pool 0. `turning`: indices of sequences whose block is full with this step, so that the next row
    needs another: places and tables are looked up anew for these alone. Sequences turn once in as many steps as a block has
    tokens, one after the other in the same order.
    """

    def __init__(self, table: SlotTable, slots: NDArray[np.intp], block_tokens: int) -> None:
        count = len(slots)
        self._table, self._block_tokens, self._size = table, block_tokens, np.array(block_tokens, np.int32)
        self.slots = slots
        self.row_slots: IntArray = fixed(slots.astype(np.int32))
        self.starts: IntArray = fixed(table.numbers[: count + 1].astype(np.int32))
        self.samples = table.numbers[:count]
        self.names: tuple[str, ...] = tuple(table.names[slots].tolist())
        self.bindings = table.binding[slots]
        self.positions: IntArray = fixed(table.computed[slots])
        self.context: IntArray = fixed(self.positions + _ONE)
        self.mapping: NDArray[np.int64] = fixed(places(table.block_table, slots, self.positions, block_tokens))
        self.longest = int(self.context.max()) if count else 0
        self._tables: IntArray | None = None
        self.rows_left = int((table.limit[slots] - self.context).min()) if count else 0
        steps_left = -self.context % self._size
        self._order: NDArray[np.intp] = steps_left.argsort(kind="stable")
        self._turns: list[int] = steps_left[self._order].tolist()
        self._step = self._next = 0
        self.turning = self._who_turns()

    @property
    def ends(self) -> bool:
        """Whether one of them has its last row in this step: the token that it samples is as many as are wanted."""
        return self.rows_left <= 1 and len(self.slots) > 0

    def advance(self) -> None:
        """On to the next step, after blocks were added to what is `turning`."""
        if not len(self.slots):
            return
        turned = self.turning
        self.positions, self.context = self.context, fixed(self.context + _ONE)
        mapping = self.mapping + _ONE_PLACE
        self.longest += 1
        if len(turned):
            self._take_new_blocks(turned, mapping)
        self.mapping = fixed(mapping)
        self.rows_left -= 1
        self._step += 1
        if self._step == self._block_tokens:
            self._step = self._next = 0
        self.turning = self._who_turns()

    @property
    def tables(self) -> IntArray:
        """Their block tables, as far as the longest goes."""
        if self._tables is None or self._tables.shape[1] != self._columns:
            self._tables = self._table.block_table[self.slots, : self._columns]
        return fixed(self._tables)

    @property
    def _columns(self) -> int:
        return -(-self.longest // self._block_tokens)

    def _take_new_blocks(self, turned: NDArray[np.intp], mapping: NDArray[np.int64]) -> None:
        """The rows of these few sequences are the first of a block."""
        size, table, tables = self._block_tokens, self._table.block_table, None
        if self._tables is not None and self._tables.shape[1] == self._columns:
            self._tables = tables = self._tables.copy()
        slots, positions = self.slots[turned].tolist(), self.positions[turned].tolist()
        for number, slot, position in zip(turned.tolist(), slots, positions, strict=True):
            block = int(table[slot, position // size])
            mapping[number] = block * size
            if tables is not None:
                tables[number, position // size] = block

    def _who_turns(self) -> NDArray[np.intp]:
        first, turns = self._next, self._turns
        while self._next < len(turns) and turns[self._next] == self._step:
            self._next += 1
        return self._order[first : self._next]


def fixed(array: Array) -> Array:
    """This array, not to be written to any more."""
    array.flags.writeable = False
    return array
