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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sequence import Sequence
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class Policy:
    """Which rules hold, and their numbers; seconds are those of `Scheduler.tick` and of the plan's cost model.

    `aging_seconds`: a step of priority is worth so many seconds of waiting; 0: priorities are strict. `fair_sessions`,
    `fair_tenants`: who had more service is due later, by at most `fair_seconds` and `patience_seconds`. `deadlines`: a deadline
    makes a request due earlier. `session_admission`: sessions are admitted and parked, not requests. `cache_aware_order`: seconds
    of due time within which the longest cached prefix goes first; 0: none. `chunk_by_cost`: prompts have as many rows of a step
    as its decoding rows' inter-token target allows, `inter_token_seconds` where a request has none (None: by the plan).
    `group_by_footprint`: of more decoding sequences than a step takes, those alike go together. `preemption_budget`: share of the
    time that preemption for better priorities may cost. `least_lost_victim`: who loses least work for a block gives way. `swap`:
    the preempted go to the host tier where that is cheaper. `retention`, `supersede`: the KV manager's order of eviction.
    """

    aging_seconds: float = 60.0
    fair_sessions: bool = True
    fair_tenants: bool = True
    fair_seconds: float = 30.0
    patience_seconds: float = 3600.0
    deadlines: bool = True
    session_admission: bool = True
    hold_seconds: float = 120.0
    cache_aware_order: float = 1.0
    chunk_by_cost: bool = True
    inter_token_seconds: float | None = None
    prefill_share: float = 0.5
    group_by_footprint: bool = True
    preemption_budget: float = 0.1
    least_lost_victim: bool = True
    swap: bool = True
    retention: bool = True
    supersede: bool = True


PLAIN = Policy(
    aging_seconds=0,
    fair_sessions=False,
    fair_tenants=False,
    deadlines=False,
    session_admission=False,
    cache_aware_order=0,
    chunk_by_cost=False,
    group_by_footprint=False,
    preemption_budget=1,
    least_lost_victim=False,
    swap=False,
    retention=False,
    supersede=False,
)
"""Strict priorities, first come first served, request by request, least recently used evicted first."""

AGENTIC = Policy()
"""What serves agents: long shared contexts, short turns, many sessions on one machine."""


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
