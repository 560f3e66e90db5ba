"""The blocks of one sequence, and what of a prompt is known already."""

from __future__ import annotations

from typing import NamedTuple

from .blocks import Handle, SealedBlock, Unit, WritableBlock
from .retention import Owner
from .windows import WindowBlocks

NOBODY = Owner("", False, ())
"""Of blocks whose request nothing is known about."""


class SequenceBlocks(Handle):
    """The blocks of one running sequence, in order: sealed units first, then blocks it may write; and those of window pools.

    `awaits` is the last place in the queue of loads that the sequence waits for (-1: none); `owner` is whose they are;
    `ended` says why they were released.
    """

    __slots__ = ("awaits", "ended", "owner", "sealed", "windows", "writable")

    def __init__(self, sealed: list[SealedBlock], owner: Owner) -> None:
        super().__init__()
        self.sealed, self.owner, self.awaits, self.ended = sealed, owner, -1, False
        self.writable: list[WritableBlock] = []
        self.windows: tuple[WindowBlocks, ...] = ()

    def indices(self) -> list[int]:
        """Physical blocks in the order of the sequence's tokens."""
        self.require()
        sealed = [index for block in self.sealed for index in block.unit.indices]
        return sealed + [block.index for block in self.writable]


class Hits(NamedTuple):
    """The longest cached prefix: its units in order, and how many of the available blocks it takes: those of units without a
    user (evictable until taken), and `reload_blocks` new ones for units that the device does not have. `absent` units of these
    cannot be loaded before a job of the tier on disk is done. `windows`: the units of each window pool that the next row sees."""

    units: list[Unit]
    idle_blocks: int
    reload_blocks: int = 0
    windows: tuple[list[Unit], ...] = ()
    absent: int = 0
