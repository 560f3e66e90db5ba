"""Choose the rows of the next step (the rules are in policy.py): decode rows, then prefill chunks and admissions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...plans.perf_model import StepWork
from . import policy
from .chunk import Chunk
from .composing import StepTime
from .copies_first import CopiesFirst
from .sequence import Sequence, Status
from .sequence_blocks import Hits
from .slots import Phase
from .state import SchedulerState


class StepPlanner:
    """Plans one step at a time over the scheduler's state. Keeps only which waiting head did not fit, and how much was free;
    `_over_budget`: because preempting has cost too much. `_outranks_nobody`: which head found no slot to take, and how many
    slots had been left until then. `_turn`: the step that began the turn in which each decoding sequence has a row."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._blocked: tuple[Sequence, tuple[int, ...]] | None = None
        self._over_budget = False
        self._outranks_nobody: tuple[Sequence | None, int] = None, 0
        self._turn = 0
        self._copies_first = CopiesFirst(state.kv)
        self._lost = state.lost_for_a_block if state.rules.least_lost_victim else None

    def plan(self) -> tuple[NDArray[np.intp], list[Chunk]]:
        """Slots that decode and chunks that prefill; admits and preempts on the way.

        Where preemption emptied the step (its only candidate gave way to others), they are looked at again.
        """
        self._state.round += 1
        while True:
            preemptions = self._state.counters.preemptions
            decodes, chunks = self._plan_once()
            if len(decodes) or chunks or preemptions == self._state.counters.preemptions:
                return decodes, chunks

    def _plan_once(self) -> tuple[NDArray[np.intp], list[Chunk]]:
        state = self._state
        preemptions = state.counters.preemptions
        decodes = self._decodes()
        state.kv.begin_step(self._load_blocks(decodes))
        state.wake()
        if state.prefilling or state.loading or len(state.waiting):
            chunks = self._prefills(self._budget(decodes), decodes)
        else:
            chunks, state.waiting.wake = list[Chunk](), None
        # An admission may have preempted a sequence that was chosen, and even have taken its slot.
        if state.counters.preemptions != preemptions:
            decodes = decodes[state.slots.phase[decodes] == Phase.DECODE]
            chunks = [chunk for chunk in chunks if chunk.sequence.status is Status.RUNNING]
        return decodes, chunks

    def _decodes(self) -> NDArray[np.intp]:
        state, slots = self._state, self._state.slots
        ready = slots.ready_to_decode()
        maximum = state.limits.max_decode_rows
        if state.pipeline is not None:
            ready = ready[~state.is_held(ready)]
            maximum = min(maximum, self._share(ready))
        ready = self._turns(ready, maximum)
        needy, grown, preemptions = self._needy(ready), 0, state.counters.preemptions
        for sequence in policy.by_rank(state.running[slot] for slot in needy) if needy else ():
            if sequence.status is Status.RUNNING and self._find_block(sequence):
                state.grow(sequence)
                grown += 1
        if grown == len(needy) and preemptions == state.counters.preemptions:
            return ready
        return ready[(slots.phase[ready] == Phase.DECODE) & (slots.computed[ready] < slots.capacity[ready])]

    def _needy(self, ready: NDArray[np.intp]) -> list[int]:
        """Of the slots that are ready, those that need a block for their row."""
        slots, cohort = self._state.slots, self._state.cohort
        if ready is cohort.slots:  # the sequences of the last step: those whose blocks it filled
            if not len(cohort.turning):
                return []
            ready = ready[cohort.turning]
        return ready[slots.computed[ready] >= slots.capacity[ready]].tolist()

    def _turns(self, ready: NDArray[np.intp], maximum: int) -> NDArray[np.intp]:
        """Rule 3: which of the ready sequences have a row in this step."""
        state, slots = self._state, self._state.slots
        if len(ready) <= maximum:
            return ready
        priority = state.priority[ready]
        together = state.rules.group_by_footprint and state.pipeline is None
        if not together or priority.min() != priority.max():
            return policy.choose_decodes(state.rules, ready, maximum, slots, state.priority)
        unserved = ready[slots.last_step[ready] < self._turn]
        if not len(unserved):
            self._turn, unserved = state.next_step, ready
        return policy.alike(unserved, maximum, slots)

    def _load_blocks(self, decodes: NDArray[np.intp]) -> int:
        """Blocks that the step may bring back from the host: as many as others' rows hide; all where no other is held up."""
        if not (len(decodes) and self._state.kv.has_tier and (self._state.loading or len(self._state.waiting))):
            return self._state.kv.blocks
        return self._state.copied_blocks(StepWork(len(decodes), float(self._state.slots.computed[decodes].sum())))

    def _share(self, ready: NDArray[np.intp]) -> int:
        """How many of the ready sequences a step of a pipeline takes."""
        state, slots = self._state, self._state.slots
        assert state.pipeline is not None
        order = policy.waited_longest(state.rules, ready, slots, state.priority)
        every = slots.computed[slots.phase == Phase.DECODE].astype(np.int64)
        further = state.pipeline.depth - len(state.flights) - 1
        return state.pipeline.decode_share(further, slots.computed[order].astype(np.int64), every)

    def _budget(self, decodes: NDArray[np.intp]) -> int:
        """Rows that prompts may have in this step."""
        state, slots, limits = self._state, self._state.slots, self._state.limits
        most, pipeline = limits.max_rows - len(decodes), state.pipeline
        if pipeline is None or not (state.prefilling or len(state.waiting)):
            return most
        running = self._prefilling()
        launched, chunks = sum(flight.chunk_rows for flight in state.flights), sum(flight.chunks for flight in state.flights)
        wanted = sum(min(sequence.length - int(slots.computed[sequence.slot]), limits.prefill_chunk) for sequence in running)
        first = state.next_waiting()
        if first is not None:  # the others are taken to be as long
            wanted += min(first.length, limits.prefill_chunk) * len(state.waiting)
        every = slots.computed[slots.phase == Phase.DECODE]
        usual = len(every) / pipeline.depth, float(every.sum()) / pipeline.depth
        own = len(decodes), float(slots.computed[decodes].sum())
        prompts = len(running) + len(state.waiting) + chunks
        return pipeline.prefill_rows(most, own, usual, wanted, wanted + launched, prompts)

    def _time(self, decodes: NDArray[np.intp]) -> StepTime | None:
        """What bounds the rows of prompts by time (rule 10); None where nothing does."""
        state, slots = self._state, self._state.slots
        costs, rules = state.costs, state.rules
        if costs is None or not rules.chunk_by_cost or state.pipeline is not None or not len(decodes):
            return None
        target = float(state.inter_token[decodes].min())
        work = StepWork(len(decodes), float(slots.computed[decodes].sum()))
        return StepTime(costs, work, target, rules.prefill_share)

    def _prefilling(self) -> list[Sequence]:
        """Running prefills that may have rows in this step."""
        state = self._state
        return [sequence for slot, sequence in state.prefilling.items() if not state.is_held(slot)]

    def _find_block(self, sequence: Sequence) -> bool:
        """Make a block available, by preemption if need be. False: the sequence sits this step out, or was itself preempted."""
        state = self._state
        while not state.kv.available:
            if state.kv.retiring:
                return False
            victim = policy.victim(sequence, state.running.values(), self._lost)
            state.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _prefills(self, budget: int, decodes: NDArray[np.intp]) -> list[Chunk]:
        """Running prefills and the waiting queue merged by rank; the first of the queue that does not fit closes it. Where a
        prompt has fewer rows than it could have for want of time beside `decodes`, the step is full."""
        state, chunks = self._state, list[Chunk]()
        time: StepTime | None = None
        running = policy.by_rank(self._prefilling())[::-1]
        admitting = True
        while budget > 0:
            waiting = state.next_waiting() if admitting else None
            if waiting is not None and (not running or waiting.rank < running[-1].rank):
                sequence = self._best_cached(waiting)
                admitting = self._try_to_admit(sequence)
                if not admitting and sequence is not waiting:
                    sequence, admitting = waiting, self._try_to_admit(waiting)
                if not admitting:
                    continue
            elif running:
                sequence = running.pop()
            else:
                break
            if sequence.status is Status.RUNNING and state.slots.phase[sequence.slot] == Phase.PREFILL:
                start = int(state.slots.computed[sequence.slot])
                most = min(sequence.length - start, state.limits.prefill_chunk, budget)
                time = time if chunks else self._time(decodes)
                rows = most if time is None else time.rows_within(start, most)
                if rows:
                    chunks.append(Chunk(sequence, start, rows))
                    budget -= rows
                if time is not None:
                    if rows < most:
                        break
                    time.add(start, rows)
        return chunks

    def _best_cached(self, first: Sequence) -> Sequence:
        """Rule 11: of the requests that are due about when the first is, the one whose prompt is cached furthest."""
        state, window = self._state, self._state.rules.cache_aware_order
        if not window or state.clock is None or not state.slots.free or self._is_blocked(first):
            return first
        alike = state.waiting.alike(first, window)
        if len(alike) < 2:
            return first
        return max(alike, key=lambda sequence: (state.probably_cached(sequence), -sequence.due, -sequence.arrival))

    def _try_to_admit(self, sequence: Sequence) -> bool:
        """False: it does not fit now. True: it has a slot, or has left the queue for what is brought back from disk for it."""
        state = self._state
        if not state.may_return(sequence) or self._is_blocked(sequence):
            return False
        if not state.slots.free and not self._may_take_a_slot(sequence):
            return False
        hits = state.find_hits(sequence)
        if hits.absent:
            if state.fetch(sequence, hits):
                return True
            hits = state.find_hits(sequence)
        if (not state.slots.free or max(state.shortages(sequence, hits)) > 0) and self._make_room(sequence, hits):
            hits = state.find_hits(sequence)
        shortages = state.shortages(sequence, hits)
        if not state.slots.free or max(shortages) > 0:
            return False
        if self._copies_first.waits(state.round, state.kv.available + shortages[0] - hits.idle_blocks, hits.units):
            return False
        state.admit(sequence, hits)
        return True

    def _is_blocked(self, sequence: Sequence) -> bool:
        """Whether this head was found not to fit and no block has become available since: saves the lookup each step."""
        state = self._state
        if self._blocked is None or self._blocked[0] is not sequence or not state.running:
            return False
        stuck = all(now <= then for now, then in zip(self._slack(), self._blocked[1], strict=True))
        return stuck and not (self._over_budget and state.losses.allows(state.clock))

    def _slack(self) -> tuple[int, ...]:
        """Of each pool."""
        kv = self._state.kv
        return kv.available - policy.headroom(len(self._state.running)), *kv.unreserved()

    def _may_take_a_slot(self, sequence: Sequence) -> bool:
        """All slots are taken: is there a sequence to preempt? Not while a slot is about to come free anyway."""
        state = self._state
        found = sequence, state.slots.departures
        if state.slots.draining or found == self._outranks_nobody:
            return False
        if not ((state.priority > sequence.request.priority) & (state.due >= sequence.due)).any():
            self._outranks_nobody = found
            return False
        return state.losses.allows(state.clock)

    def _make_room(self, sequence: Sequence, hits: Hits) -> bool:
        """Preempt for a waiting sequence of better priority (rule 6), counting what launched steps will give back.

        True when somebody was preempted; where launched steps still hold the room, it is there in a later step.
        """
        state, keep, chosen = self._state, set(hits.units), []
        slots = state.slots.free + state.slots.draining
        returning = [state.kv.retiring_blocks(keep), *state.kv.retiring_reserved()]
        missing = [count - soon for count, soon in zip(state.shortages(sequence, hits), returning, strict=True)]
        if not state.losses.allows(state.clock):
            self._blocked, self._over_budget = (sequence, self._slack()), True
            return False
        for victim in policy.outranked(sequence, state.running.values(), self._lost):
            if slots > 0 and max(missing) <= 0:
                break
            assert victim.blocks is not None
            chosen.append(victim)
            slots += 1
            given = [state.kv.reclaimable(victim.blocks, keep) + 1, *state.kv.reserved(victim.blocks)]
            missing = [count - gift for count, gift in zip(missing, given, strict=True)]
        if slots <= 0 or max(missing) > 0:
            self._blocked, self._over_budget = (sequence, self._slack()), False
            return False
        for victim in chosen:
            state.losses.lose(state.clock, state.lost_seconds(victim))
            state.preempt(victim)
        return bool(chosen)
