"""Who runs, who waits, who gives way: every rule of the scheduler's policy, on one screen.

1. A step holds decode rows first, then prefill chunks, up to `max_rows`; one prompt gives at most `prefill_chunk` rows a step.
2. Order is rank = (due, priority, arrival), lower first, for prefill, for admission and for new blocks; `due_time` says when a
   request is due, once and for all when it comes. Tenants share by weight (fairness.py, waiting.py): of those that wait
   the one that had least is next. Who is due `patience_seconds` before that one goes first all the same, so waiting is bounded.
3. When more sequences decode than `max_decode_rows`, those of a priority take turns; one worse waits `turn_steps` more.
   Where all are of one priority, each has one row in a turn, together with those whose contexts are alike: nobody waits for
   longer than twice as many steps as a turn has.
4. A waiting request is admitted when a slot is free and the blocks of all its tokens, less prefix hits, are available with one
   block to spare for each running sequence (its next one): admission does not provoke preemption. All its blocks are
   taken at once, so a prefill never stops half-way for want of blocks. It waits until what it would evict, and is expected to
   be used again, has a copy on the host (copies_first.py).
5. A decode row that needs a block and finds none preempts one of those that rank worse, or itself: of the worst priority the one
   whose work is least for each block that it frees (to compute it again, or to copy it to the host and back). So who ranks best
   is never preempted by others' growth, and work goes on.
6. A waiting request of better priority (not merely earlier) preempts running ones of worse priority that are not due before it,
   in the same order, if that makes enough room; else it preempts nobody. Not while that has cost more than `preemption_budget`
   of the time (losses.py).
7. The preempted keep their rank and output, come back in a later round, and recompute what the cache no longer has.
8. In a pipeline, where several steps are in flight, no sequence has rows in two of them. Each step takes an equal part of what
   there is to do, by predicted time (pipeline.py), and leaves a sequence for each further step that may be launched at once.
9. Sessions are admitted, not requests, as many as their expected footprints fit the pool and its tier (admission.py): a session
   keeps its place between its turns until it is closed, or others wait and it is away for longer than the place is worth, or
   sessions have grown so that not all of them fit any more and it will be away longest. Turns
   of admitted sessions go first, but not before those of parked ones that were due `hold_seconds` earlier.
10. A step with decoding rows takes no longer than their tightest inter-token target, or than leaves prompts `prefill_share` of
   the time, or than one row of a prompt takes beside them (composing.py): so long a prompt may stall decoding.
11. Of requests of one tenant and priority that are due within `cache_aware_order` seconds of the next one, the one whose prompt
   is cached furthest is admitted first; a bounded number of them is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .request import Request
from .sequence import Sequence
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class Policy:
    """Which rules hold, and their numbers; seconds are those of `Scheduler.tick` and of the plan's cost model.

    `aging_seconds`: a step of priority is worth so many seconds of waiting; 0: priorities are strict. `fair_sessions`,
    `fair_tenants`: who had more service is due later, by at most `fair_seconds` and `patience_seconds`. `deadlines`: a deadline
    makes a request due earlier. `session_admission`: sessions are admitted and parked, not requests. `cache_aware_order`:
    seconds of due time within which the longest cached prefix goes first; 0: none. `chunk_by_cost`: prompts have as many rows
    of a step as its decoding rows' inter-token target allows, `inter_token_seconds` where a request has none (None: by the
    plan). `group_by_footprint`: of more decoding sequences than a step takes, those with contexts alike go together.
    `preemption_budget`: share of the time that preemption for better priorities may cost. `least_lost_victim`: who loses least
    work for a block gives way. `swap`: the preempted go to the host tier where that is cheaper. `save_first`: nothing that is
    expected to be used again is evicted before it has a copy on the host, where there is room. `retention`, `supersede`: the KV
    manager's order of eviction.
    """

    aging_seconds: float = 60.0
    fair_sessions: bool = True
    fair_tenants: bool = True
    fair_seconds: float = 30.0
    patience_seconds: float = 3600.0
    turn_steps: int = 16
    deadlines: bool = True
    session_admission: bool = True
    hold_seconds: float = 900.0
    cache_aware_order: float = 1.0
    chunk_by_cost: bool = True
    inter_token_seconds: float | None = None
    prefill_share: float = 0.5
    group_by_footprint: bool = True
    preemption_budget: float = 0.1
    least_lost_victim: bool = True
    swap: bool = True
    save_first: bool = True
    retention: bool = True
    supersede: bool = True


PLAIN = Policy(
    aging_seconds=0,
    turn_steps=0,
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
    save_first=False,
    retention=False,
    supersede=False,
)
"""Strict priorities, first come first served, request by request, least recently used evicted first."""

AGENTIC = Policy()
"""What serves agents: long shared contexts, short turns, many sessions on one machine."""


def due_time(rules: Policy, now: float | None, request: Request, attained: float, prefill: Callable[[], float]) -> float:
    """Rule 2: when a request that comes `now` is due; its session `attained` so many seconds of service lately.

    A step of priority makes it later by `aging_seconds`, service by no more than `fair_seconds`. With a deadline it is due when
    its `prefill()` seconds must begin, but no earlier than the next better priority would be. All within `patience_seconds` of
    `now`. Without a clock, or with strict priorities, all are due at once.
    """
    if now is None or not rules.aging_seconds:
        return 0.0
    later = rules.aging_seconds * request.priority + (min(attained, rules.fair_seconds) if rules.fair_sessions else 0.0)
    if request.deadline is not None and rules.deadlines:
        later = min(later, max(request.deadline - prefill() - now, rules.aging_seconds * (request.priority - 1)))
    return now + min(max(later, -rules.patience_seconds), rules.patience_seconds)


def choose_decodes(
    rules: Policy, ready: NDArray[np.intp], maximum: int, slots: SlotTable, priority: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Rule 3: of one priority, those that have waited longest for a row."""
    if len(ready) <= maximum:
        return ready
    return np.sort(waited_longest(rules, ready, slots, priority)[:maximum])


def waited_longest(rules: Policy, ready: NDArray[np.intp], slots: SlotTable, priority: NDArray[np.int64]) -> NDArray[np.intp]:
    """The slots in the order of rule 3. With `turn_steps` 0 a priority waits until there is room for it."""
    last = slots.last_step[ready]
    late = last + rules.turn_steps * priority[ready] if rules.turn_steps else priority[ready]
    return ready[np.lexsort((ready, last, late))]


def alike(unserved: NDArray[np.intp], maximum: int, slots: SlotTable) -> NDArray[np.intp]:
    """Rule 3, where all are of one priority: of those that had no row in this turn, neighbours in size of context, as many as
    leave the steps of the turn even."""
    steps = -(-len(unserved) // maximum)
    by_size = unserved[np.argsort(slots.computed[unserved], kind="stable")]
    return np.sort(by_size[: -(-len(unserved) // steps)])


def headroom(running: int) -> int:
    """Rule 4: blocks an admission leaves available."""
    return running


def by_rank(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Rule 2."""
    return sorted(sequences, key=lambda sequence: sequence.rank)


def victim(needy: Sequence, running: Iterable[Sequence], lost: Callable[[Sequence], float] | None) -> Sequence:
    """Rule 5: who gives way to `needy`. `lost`(sequence) is the work lost for each block that it frees; None: all are alike."""
    worse = [sequence for sequence in running if sequence.rank > needy.rank]
    return first_to_go(worse, lost)[0] if worse else needy


def first_to_go(sequences: Iterable[Sequence], lost: Callable[[Sequence], float] | None) -> list[Sequence]:
    """Worst priority first, of one priority who loses least, or the worst rank where that is all alike."""
    order = sorted(sequences, key=lambda sequence: sequence.rank, reverse=True)
    return order if lost is None else sorted(order, key=lambda sequence: (-sequence.request.priority, lost(sequence)))


def outranked(waiting: Sequence, running: Iterable[Sequence], lost: Callable[[Sequence], float] | None) -> list[Sequence]:
    """Rule 6: who may be preempted for `waiting`, first to go first."""
    priority, due = waiting.request.priority, waiting.due
    worse = (sequence for sequence in running if sequence.request.priority > priority and sequence.due >= due)
    return first_to_go(worse, lost)
