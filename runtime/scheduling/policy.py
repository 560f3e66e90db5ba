"""Who runs, who waits, who gives way: every rule of the scheduler's policy, on one screen.

1. A step holds decode rows first, then prefill chunks, up to `max_rows`; one prompt gives at most `prefill_chunk` rows a step.
2. Order is rank = (priority, arrival), lower first, for prefill, for admission and for new blocks. Nobody overtakes a
   waiting request of better rank, so no request of a class starves behind later ones of it.
3. When more sequences decode than `max_decode_rows`, those of a priority take turns.
4. A waiting request is admitted when a slot is free and the blocks of all its tokens, less prefix hits, are available with one
   block to spare for each running sequence (its next one): admission does not provoke preemption. All its blocks are
   taken at once, so a prefill never stops half-way for want of blocks.
5. A decode row that needs a block and finds none preempts the running sequence of worst rank, itself included.
6. A waiting request of better priority (not merely earlier) preempts running ones of worse priority, worst first, if that
   makes enough room; else it preempts nobody.
7. The preempted keep their rank and output, come back in a later round, and recompute what the cache no longer has.
8. In a pipeline, where several steps are in flight, no sequence has rows in two of them. Each step takes an equal part of what
   there is to do, by predicted time (pipeline.py), and leaves a sequence for each further step that may be launched at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .sequence import Sequence
from .slots import SlotTable


def choose_decodes(ready: NDArray[np.intp], maximum: int, slots: SlotTable, priority: NDArray[np.int64]) -> NDArray[np.intp]:
    """Rule 3: of one priority, those that have waited longest for a row."""
    if len(ready) <= maximum:
        return ready
    return np.sort(waited_longest(ready, slots, priority)[:maximum])


def waited_longest(ready: NDArray[np.intp], slots: SlotTable, priority: NDArray[np.int64]) -> NDArray[np.intp]:
    """The slots by priority, of one priority those first that have waited longest for a row."""
    return ready[np.lexsort((ready, slots.last_step[ready], priority[ready]))]


def headroom(running: int) -> int:
    """Rule 4: blocks an admission leaves available."""
    return running


def by_rank(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Rule 2."""
    return sorted(sequences, key=lambda sequence: sequence.rank)


def victim(running: Iterable[Sequence]) -> Sequence:
    """Rule 5."""
    return max(running, key=lambda sequence: sequence.rank)


def outranked(waiting: Sequence, running: Iterable[Sequence]) -> list[Sequence]:
    """Rule 6: who may be preempted for `waiting`, first to go first."""
    priority = waiting.request.priority
    return by_rank(sequence for sequence in running if sequence.request.priority > priority)[::-1]
