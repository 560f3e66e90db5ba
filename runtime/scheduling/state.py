"""The scheduler's state and its elementary events: admit, preempt, finish, retire a step."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from ...plans.perf_model import StepWork
from . import policy
from .admission import Admission
from .blocks import Unit
from .cohort import Cohort
from .costs import NOMINAL_ROW_SECONDS, StepCosts
from .fairness import SessionService, TenantShares
from .flight import Flight
from .kv import KvManager
from .losses import LossBudget
from .pipeline import Pipeline
from .policy import AGENTIC, Policy
from .prefix import PrefixChain, token_bytes
from .request import SchedulerLimits
from .sequence import NO_SLOT, Sequence, Status
from .sequence_blocks import Hits
from .service import Service
from .sessions import SessionTable
from .slots import PENDING, Phase, SlotTable
from .step import IntArray
from .windows import entries

LEAST_COPY_SECONDS = 0.005
"""A step may copy to and from the host for so long, however short it is."""


@dataclass(slots=True)
class Counters:
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    host_hits: int = 0
    recomputed_tokens: int = 0
    discarded_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    last_step_rows: int = 0


class SchedulerState:
    """Everything the scheduler knows. `requests` holds all unfinished ones, `running` those with a slot, by slot, `fetching`
    those that wait for units on disk instead of for their turn."""

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KvManager,
        pipeline: Pipeline | None = None,
        rules: Policy = AGENTIC,
        costs: StepCosts | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.limits, self.kv, self.pipeline, self.rules, self.costs = limits, kv, pipeline, rules, costs
        kv.retention.by_reuse, kv.retention.supersede = rules.retention, rules.supersede
        kv.pool.save_first = rules.save_first
        max_blocks = min(kv.blocks_for(limits.max_context), kv.blocks)
        kv.limit_rows(limits.prefill_chunk * (2 if pipeline is None else 1), min(limits.max_context, kv.tokens + 1))
        self.slots = SlotTable(limits.max_sequences, max_blocks, kv.identity_tokens, len(kv.windows))
        self.cohort = Cohort(self.slots, np.empty(0, np.intp), kv.block_tokens)
        self.priority: NDArray[np.int64] = np.zeros(limits.max_sequences, dtype=np.int64)
        self.requests: dict[str, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.loading: dict[int, Sequence] = {}
        self.fetching: dict[str, Sequence] = {}
        self.admitted: list[Sequence] = []
        self.due: NDArray[np.float64] = np.zeros(limits.max_sequences)
        self.inter_token: NDArray[np.float64] = np.zeros(limits.max_sequences)
        usual = inf if costs is None else costs.inter_token_seconds
        self._usual_inter_token = usual if rules.inter_token_seconds is None else rules.inter_token_seconds
        self.service = Service(limits.max_sequences, costs)
        self.sessions = SessionService()
        self.shares = TenantShares(weights) if rules.fair_tenants else None
        self.losses = LossBudget(rules.preemption_budget)
        self.table = SessionTable(kv.kept_tokens, self._recompute_seconds) if rules.session_admission else None
        self.waiting = Admission(rules, self.shares, self.table, self.losses, kv.park_session)
        self.flights: deque[Flight] = deque()
        self.stop_tokens: Counter[int] = Counter()
        self.counters = Counters()
        self.next_step = 0
        self.completed_step = -1
        self.arrivals = self.round = 0
        self.clock: float | None = None

    def is_held(self, slots: NDArray[np.intp] | int) -> NDArray[np.bool_] | np.bool_:
        """Whether sequences sit out because a launched step has rows of them: policy rule 8."""
        launched = self.slots.last_step[slots] > self.completed_step
        return launched if self.pipeline is not None else launched & False

    def enter(self, sequence: Sequence) -> None:
        self.requests[sequence.request_id] = sequence
        self.stop_tokens.update(sequence.request.stop_tokens)
        if self.shares is not None:
            self.shares.enter(sequence.request.tenant)
        if self.table is not None:
            self.table.submit(sequence, self.clock or 0.0)
        self.waiting.push(sequence)

    def next_waiting(self) -> Sequence | None:
        """Who is to be admitted next."""
        return self.waiting.first(self.clock, not self.running, self._shared_tokens)

    def _shared_tokens(self, sequence: Sequence) -> int:
        return len(self.find_hits(sequence).units) * self.kv.identity_tokens

    def _recompute_seconds(self, tokens: int) -> float:
        return self.prefill_seconds(tokens, 0)

    def may_return(self, sequence: Sequence) -> bool:
        """Policy rule 7: not in the round that preempted it, nor before its last token is in."""
        return sequence.preempted_in_round != self.round and sequence.awaited_step <= self.completed_step

    def find_hits(self, sequence: Sequence) -> Hits:
        """Cached prefix of a waiting sequence; its last known token is always computed, for its logits. What is not on the
        device does not count where it is sooner computed than brought back."""
        sequence.hash_units((sequence.length - 1) // self.kv.identity_tokens)
        hits = self.find_cached(sequence.chain, sequence.tokens())
        if hits.absent and (sequence.fetched or not self._is_sooner_back(hits)):
            hits = self._up_to(sequence, hits, lambda unit: bool(unit.indices or unit.host))
        if hits.reload_blocks and not self._is_sooner_back(hits):
            hits = self._up_to(sequence, hits, lambda unit: bool(unit.indices))
        return hits

    def _is_sooner_back(self, hits: Hits) -> bool:
        """Whether what the device does not have is sooner brought back than computed."""
        if not self.rules.swap or self.costs is None:
            return True
        there = next(number for number, unit in enumerate(hits.units) if not unit.indices)
        before, after = there * self.kv.identity_tokens, len(hits.units) * self.kv.identity_tokens
        back = self.costs.copy_seconds(hits.reload_blocks * self.kv.bytes_per_block) + self.kv.fetch_seconds(hits)
        return back <= self.costs.prefill_seconds(after, before)

    def _up_to(self, sequence: Sequence, hits: Hits, is_there: Callable[[Unit], bool]) -> Hits:
        """The hits before the first unit that is not there."""
        count = next((number for number, unit in enumerate(hits.units) if not is_there(unit)), len(hits.units))
        return self.kv.lookup(sequence.chain.first(count), token_bytes(sequence.tokens()[: count * self.kv.identity_tokens]))

    def fetch(self, sequence: Sequence, hits: Hits) -> bool:
        """Let a waiting sequence wait for what is absent of its hits, out of the queue, so that others are admitted meanwhile.
        False: the host has no room for any of it, so that it does not count."""
        sequence.fetched |= any(not (unit.indices or unit.host) for unit in hits.units)
        sequence.fetches = self.kv.fetch(hits)
        if sequence.fetches:
            sequence.status = Status.FETCHING
            self.waiting.dropped(sequence)
            self.fetching[sequence.request_id] = sequence
        return bool(sequence.fetches)

    def fetched(self, job: int) -> None:
        """A job of the tier on disk is done: who waited for it alone is in the queue again, at its old place."""
        for sequence in [*self.fetching.values()]:
            sequence.fetches.discard(job)
            if not sequence.fetches:
                del self.fetching[sequence.request_id]
                sequence.status = Status.WAITING
                self.waiting.push(sequence)

    def probably_cached(self, sequence: Sequence) -> int:
        """About how many units of a waiting sequence's prompt are cached. O(log units)."""
        return self.kv.probable_units(sequence.chain.digests)

    def find_cached(self, chain: PrefixChain, tokens: IntArray) -> Hits:
        """Cached prefix of all tokens but the last, which `chain` covers."""
        units = (len(tokens) - 1) // self.kv.identity_tokens
        return self.kv.lookup(chain.first(units), token_bytes(tokens))

    def shortages(self, sequence: Sequence, hits: Hits) -> list[int]:
        """Blocks missing of each pool to admit a waiting sequence (policy rule 4); none positive when it fits."""
        wanted = self.kv.reservations(sequence.length, hits, sequence.limit)
        windows = (count - free for count, free in zip(wanted, self.kv.unreserved(), strict=True))
        return [self._shortage(sequence, hits), *windows]

    def _shortage(self, sequence: Sequence, hits: Hits) -> int:
        """Of pool 0."""
        needed = self.kv.blocks_for(sequence.length) - len(hits.units) * self.kv.unit_blocks + hits.idle_blocks
        needed += hits.reload_blocks
        return needed + policy.headroom(len(self.running)) - self.kv.available

    def admit(self, sequence: Sequence, hits: Hits) -> None:
        """Waiting -> running: take the slot, the hits and the blocks for all known tokens."""
        slot = sequence.slot = self.slots.take()
        sequence.status = Status.RUNNING
        self.waiting.dropped(sequence)
        reserve = self.kv.reservations(sequence.length, hits, sequence.limit)
        blocks = sequence.blocks = self.kv.open(hits, sequence.owner, reserve)
        indices = blocks.indices()
        indices += self.kv.grow(blocks, self.kv.blocks_for(sequence.length) - len(indices))
        cached = len(hits.units) * self.kv.identity_tokens
        self._bind(sequence, slot, indices, cached)
        for table, (start, seen) in zip(self.slots.window_tables, entries(blocks.windows, self.kv.windows), strict=True):
            table[slot, start : start + len(seen)] = seen
        if self.shares is not None and sequence.start_tag is None:
            sequence.expected_seconds = self.prefill_seconds(sequence.length, cached)
            sequence.start_tag = self.shares.start(sequence.request.tenant, sequence.expected_seconds)
            self.waiting.refresh(sequence.request.tenant)
        sequence.reloaded_tokens = hits.reload_blocks * self.kv.block_tokens
        sequence.fetched = False
        self.slots.cached[slot] = sequence.cached_tokens
        self.running[slot] = self.loading[slot] = sequence
        if self.table is not None:
            self.table.started(sequence)
        self.wake()

    def copied_blocks(self, work: StepWork | None) -> int:
        """How many blocks the link to the host carries, one way, while a step is computed, at least for LEAST_COPY_SECONDS; None
        computes nothing. All where nothing is predicted."""
        seconds = self.costs.copy_seconds(self.kv.bytes_per_block) if self.costs is not None else 0.0
        if self.costs is None or not 0 < seconds < inf:
            return self.kv.blocks
        computing = 0.0 if work is None else self.costs.step_seconds(work)
        return int(max(computing, LEAST_COPY_SECONDS) / seconds)

    def wake(self) -> None:
        """Sequences whose blocks are on the device before the rows of the step being planned may have rows in it."""
        for slot, sequence in [*self.loading.items()]:
            assert sequence.blocks is not None
            if self.kv.is_ready(sequence.blocks):
                self.prefilling[slot] = self.loading.pop(slot)
                self.slots.phase[slot] = Phase.PREFILL
                self.admitted.append(sequence)

    def _bind(self, sequence: Sequence, slot: int, indices: list[int], cached: int) -> None:
        slots = self.slots
        slots.phase[slot] = Phase.LOADING
        slots.computed[slot] = slots.confirmed[slot] = slots.sealed[slot] = cached
        slots.length[slot], slots.limit[slot] = sequence.length, sequence.limit
        slots.capacity[slot] = len(indices) * self.kv.block_tokens
        slots.last_token[slot], slots.last_step[slot] = PENDING, -1
        slots.block_table[slot, : len(indices)] = indices
        self.priority[slot], self.due[slot] = sequence.request.priority, sequence.due
        self.service.begin(slot)
        target = sequence.request.inter_token_seconds
        self.inter_token[slot] = self._usual_inter_token if target is None else target

    def lost_seconds(self, sequence: Sequence) -> float:
        """What preemption of a running sequence costs: to compute it again, or, if that is less, to copy it away and back."""
        computed = int(self.slots.computed[sequence.slot])
        again = self.prefill_seconds(computed, 0) if computed else 0.0
        if not (self.rules.swap and self.kv.has_tier and self.costs is not None):
            return again
        return min(again, 2 * self.costs.copy_seconds(self.kv.blocks_for(computed) * self.kv.bytes_per_block))

    def lost_for_a_block(self, sequence: Sequence) -> float:
        assert sequence.blocks is not None
        return self.lost_seconds(sequence) / max(1, self.kv.reclaimable(sequence.blocks))

    def grow(self, sequence: Sequence) -> None:
        """One more block for a running sequence."""
        assert sequence.blocks is not None
        slot, slots, size = sequence.slot, self.slots, self.kv.block_tokens
        held = int(slots.capacity[slot])
        (slots.block_table[slot, held // size],) = self.kv.grow(sequence.blocks, 1)
        slots.capacity[slot] = held + size
        if slots.window_tables:
            self.cover(sequence, held + size)

    def cover(self, sequence: Sequence, tokens: int) -> None:
        """Blocks of window pools for rows up to so many tokens."""
        assert sequence.blocks is not None
        for table, (start, new) in zip(self.slots.window_tables, self.kv.cover(sequence.blocks, tokens), strict=True):
            table[sequence.slot, start : start + len(new)] = new

    def leave_behind(self, sequence: Sequence, confirmed: int) -> None:
        """The KV of a running sequence's first `confirmed` tokens is written, and its full units are sealed: what no window
        reaches any more is given back."""
        assert sequence.blocks is not None
        prefills = self.slots.phase[sequence.slot] != Phase.DECODE
        firsts = [start for start, _ in entries(sequence.blocks.windows, self.kv.windows)]
        gone = self.kv.leave_behind(sequence.blocks, confirmed, sequence.limit, bool(prefills))
        for table, start, count in zip(self.slots.window_tables, firsts, gone, strict=True):
            table[sequence.slot, start : start + count] = 0

    def preempt(self, sequence: Sequence) -> None:
        """Running -> waiting, at its old place. A token that a launched step samples for it will still be taken."""
        slot = sequence.slot
        self.flush(sequence)
        if self.slots.last_step[slot] >= 0:  # it had rows since it was admitted
            sequence.computed = max(sequence.computed, int(self.slots.computed[slot]))
        sequence.awaited_step = int(self.slots.last_step[slot])
        for flight in self.flights:
            if flight.step_id == sequence.awaited_step:
                flight.preempted[slot] = sequence
        self._leave_slot(sequence, ended=False)
        sequence.status, sequence.preempted_in_round = Status.WAITING, self.round
        self.waiting.push(sequence)
        self.counters.preemptions += 1

    def finish(self, sequence: Sequence) -> None:
        """Waiting or running -> finished."""
        length = sequence.length
        if sequence.status is Status.RUNNING:
            length = int(self.slots.length[sequence.slot])
            self._leave_slot(sequence)
            sequence.status = Status.FINISHED
        else:
            sequence.status = Status.FINISHED
            if self.fetching.pop(sequence.request_id, None) is None:
                self.waiting.dropped(sequence)
        self._settle(sequence)
        if self.table is not None:
            self.table.finished(sequence, length, self.clock or 0.0)
        del self.requests[sequence.request_id]
        self.stop_tokens.subtract(sequence.request.stop_tokens)
        for token in sequence.request.stop_tokens:
            if not self.stop_tokens[token]:
                del self.stop_tokens[token]

    def _settle(self, sequence: Sequence) -> None:
        """A request ended: its tenant is charged what it took."""
        if self.shares is not None:
            tenant = sequence.request.tenant
            self.shares.correct(tenant, sequence.service_seconds - sequence.expected_seconds)
            self.shares.leave(tenant)
            self.waiting.refresh(tenant)

    def prefill_seconds(self, tokens: int, cached: int) -> float:
        """Predicted, of a prompt whose first `cached` tokens are cached."""
        if self.costs is None:
            return (tokens - cached) * NOMINAL_ROW_SECONDS
        return self.costs.prefill_seconds(tokens, cached)

    def flush(self, sequence: Sequence) -> None:
        """Move the newest output tokens from the slot arrays to the sequence."""
        sequence.append(self.slots.unflushed(sequence.slot, sequence.length))

    def retire_step(self, flight: Flight) -> None:
        """The oldest launched step touches nothing any more: what waited for it is free."""
        self.flights.popleft()
        self.completed_step = flight.step_id
        self.kv.complete_step(flight.step_id)
        self.slots.complete_step(flight.step_id)

    def _leave_slot(self, sequence: Sequence, ended: bool = True) -> None:
        assert sequence.blocks is not None
        slot, taken = sequence.slot, self.service.of(sequence.slot)
        sequence.service_seconds += taken
        self.sessions.add(sequence.request.session_id, taken, self.clock or 0.0)
        self.kv.release(sequence.blocks, int(self.slots.last_step[slot]), ended)
        self.slots.leave(slot, self.completed_step)
        del self.running[slot]
        if self.table is not None:
            self.table.stopped(sequence)
        self.prefilling.pop(slot, None)
        self.loading.pop(slot, None)
        if sequence in self.admitted:
            self.admitted.remove(sequence)
        sequence.blocks, sequence.slot = None, NO_SLOT
