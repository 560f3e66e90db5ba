"""Every order of events of a small model, until no new state turns up: no sampling, no luck."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.slots import Phase
from tokenspeed.runtime.scheduling.step import StepBatch

STOP, GO = 9, 5


def small_request(name: str, tokens: list[int], max_tokens: int, priority: int) -> Request:
    return Request(name, np.array(tokens, dtype=np.int32), max_tokens, priority, stop_tokens=frozenset({STOP}))


class World:
    """A scheduler over four blocks of two tokens, two slots, and the steps in flight with what they read and write."""

    def __init__(self, max_tokens: tuple[int, int, int]) -> None:
        prompts = (("a", [1, 1, 1], 1), ("b", [1, 1, 2], 1), ("c", [1, 1], 0))
        self.requests = tuple(
            small_request(name, tokens, maximum, priority)
            for (name, tokens, priority), maximum in zip(prompts, max_tokens, strict=True)
        )
        self.kv = KvManager(4, 2, 2, "small")
        self.scheduler = Scheduler(SchedulerLimits(4, 2, 2, 3, 3, 8), self.kv)
        self.flights: list[StepBatch] = []
        self.submitted = 0

    def moves(self, depth: int) -> Iterator[tuple[str, int]]:
        if self.submitted < len(self.requests):
            yield "submit", self.submitted
        if len(self.flights) < depth:
            yield "schedule", 0
        if self.flights:
            yield from (("complete", token) for token in (GO, STOP))
            yield "fail", 0
        live = self.scheduler._state.requests
        yield from (("abort", number) for number, request in enumerate(self.requests) if request.request_id in live)

    def copied(self) -> World:
        """A copy that shares what never changes."""
        return copy.deepcopy(self, {id(fixed): fixed for fixed in (*self.requests, *self.flights)})

    def play(self, move: str, value: int) -> None:
        if move == "submit":
            self.scheduler.submit(self.requests[value])
            self.submitted += 1
        elif move == "abort":
            self.scheduler.abort(self.requests[value].request_id)
        elif move == "schedule":
            batch = self.scheduler.schedule()
            assert batch is not None or self.flights or not self.scheduler.has_work, "stuck"
            self.flights += [] if batch is None else [batch]
        elif move == "complete":
            batch = self.flights.pop(0)
            self.scheduler.complete(batch.step_id, [value] * len(batch.logit_rows))
        else:
            self.scheduler.fail(self.flights.pop(0).step_id)

    def check(self) -> None:
        self.scheduler.check_integrity()
        states = block_states(self.kv)
        for batch in self.flights:
            for sequence, context in enumerate(batch.context_lengths.tolist()):
                used = batch.block_tables[sequence, : self.kv.blocks_for(context)].tolist()
                assert all(states[block] in ("writable", "sealed") for block in used)
            assert all(states[place // 2] == "writable" for place in batch.slot_mapping.tolist())
        if not self.scheduler.has_work:
            assert self.kv.available == self.kv.blocks

    def key(self) -> tuple[object, ...]:
        """The state up to step numbers: equal keys behave alike."""
        state, blocked = self.scheduler._state, self.scheduler._planner._blocked
        slots, first = state.slots, state.next_step
        arrays = (slots.phase, slots.computed, slots.length, slots.capacity, slots.confirmed, slots.last_token, slots.recent)
        requests = tuple(
            (name, s.status.name, s.slot, s.tokens().tobytes(), s.computed, s.awaited_step > state.completed_step)
            for name, s in state.requests.items()
        )
        flights = tuple(
            (
                f.step_id - first,
                *(array.tobytes() for array in (f.slots, slots.binding[f.slots] - f.bindings, f.computed)),
                *((slot, s.request_id, s.status.name) for slot, s in sorted(f.preempted.items())),
            )
            for f in state.flights
        )
        return (
            self.submitted,
            requests,
            flights,
            blocked and (blocked[0].request_id, blocked[1]),
            tuple(array[slots.phase != Phase.EMPTY].tobytes() for array in arrays),
            slots.block_table.tobytes(),
            tuple(step - first if step > state.completed_step else 0 for step in slots.last_step.tolist()),
            tuple(sorted(block_states(self.kv).items())),
            tuple((digest, unit.indices) for digest, unit in self.kv.pool.index.items()),
            tuple(block.unit.digest for block in self.kv.pool.cached),
            tuple(block.index for block in self.kv.pool.free),
        )


@pytest.mark.parametrize(("in_flight", "max_tokens"), [(1, (4, 3, 2)), (2, (3, 2, 2))])
def test_every_interleaving(in_flight: int, max_tokens: tuple[int, int, int], capsys: pytest.CaptureFixture[str]):
    frontier, seen = [World(max_tokens)], set()
    depth = moves = preempted = 0
    while frontier:
        following, depth = [], depth + 1
        for world in frontier:
            for move in world.moves(in_flight):
                successor = world.copied()
                successor.play(*move)
                successor.check()
                moves += 1
                key = successor.key()
                if key not in seen:
                    seen.add(key)
                    following.append(successor)
                    preempted += successor.scheduler.stats().preemptions > 0
        frontier = following
    with capsys.disabled():
        print(f"\n  {in_flight} in flight: all {len(seen)} states, {moves} moves, depth {depth}, {preempted} after a preemption")
    assert len(seen) > 1000 and preempted > 100
