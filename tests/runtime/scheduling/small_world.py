"""A small model whose every order of events can be played: a scheduler, the contents of all its blocks, and who reads what.

Contents are told apart by the whole prefix that they belong to, so that one wrong token shows. What a step in flight copies is
nowhere until the step is run; what a failed step was to copy never is.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, host_states
from tokenspeed.runtime.scheduling.policy import PLAIN, Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.slots import Phase
from tokenspeed.runtime.scheduling.step import StepBatch

STOP, GO = 9, 5
BLOCK_TOKENS = 2
NOTHING = ()

Move = tuple[str, int]


@dataclass(frozen=True)
class Configuration:
    """`prompts` are (name, tokens, most output tokens, priority), submitted in this order. A step copies `copied` units each way
    at most; `in_flight` steps may be launched."""

    prompts: tuple[tuple[str, tuple[int, ...], int, int], ...]
    blocks: int = 4
    host_blocks: int = 0
    copied: int = 1
    in_flight: int = 1
    sequences: int = 2


class World:
    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.requests = tuple(
            Request(name, np.array(tokens, np.int32), most, priority, stop_tokens=frozenset({STOP}))
            for name, tokens, most, priority in configuration.prompts
        )
        self.kv = KvManager(configuration.blocks, BLOCK_TOKENS, BLOCK_TOKENS, "small", host_blocks=configuration.host_blocks)
        limits = SchedulerLimits(4, 2, configuration.sequences, 3, len(self.requests), 8)
        self.scheduler = Scheduler(limits, self.kv, policy=PLAIN)
        self.scheduler._state.copied_blocks = CopyBudget(configuration.copied)
        self.scheduler._planner._load_blocks = CopyBudget(configuration.copied)
        self.flights: list[StepBatch] = []
        self.submitted = 0
        self.tokens = {request.request_id: tuple(request.tokens.tolist()) for request in self.requests}
        self.device: dict[int, tuple[object, ...]] = {}
        self.host: dict[int, tuple[object, ...]] = {}
        self.read_in_vain: frozenset[str] = frozenset()
        self.states, self.hosted = block_states(self.kv), host_states(self.kv)

    def moves(self) -> Iterator[Move]:
        if self.submitted < len(self.requests):
            yield "submit", self.submitted
        if len(self.flights) < self.configuration.in_flight:
            yield "schedule", 0
        if self.flights:
            yield from (("complete", token) for token in (GO, STOP))
            yield "fail", 0
        live = self.scheduler._state.requests
        yield from (("abort", number) for number, request in enumerate(self.requests) if request.request_id in live)

    def play(self, move: Move) -> None:
        kind, value = move
        if kind == "submit":
            self.scheduler.submit(self.requests[value])
            self.submitted += 1
        elif kind == "abort":
            self.scheduler.abort(self.requests[value].request_id)
        elif kind == "schedule":
            batch = self.scheduler.schedule()
            assert batch is not None or self.flights or not self.scheduler.has_work, "stuck"
            if batch is not None:
                self._launch(batch)
        elif kind == "complete":
            batch = self.flights.pop(0)
            self._run(batch)
            for outcome in self.scheduler.complete(batch.step_id, [value] * len(batch.logit_rows)):
                assert outcome.token is not None
                assert outcome.request_id not in self.read_in_vain, "a request goes on that read what was not there"
                self.tokens[outcome.request_id] += (outcome.token,)
        else:
            batch = self.flights.pop(0)
            self.scheduler.fail(batch.step_id)
            self.read_in_vain |= {*batch.request_ids}

    def _launch(self, batch: StepBatch) -> None:
        assert batch.rows or batch.loads, "a step does nothing"
        self.flights.append(batch)
        for copies in batch.saves:
            for block, place in zip(copies.device.tolist(), copies.host.tolist(), strict=True):
                assert self.device[block], "nothing is saved"
                self.host[place] = NOTHING
        for copies in batch.loads:
            for block, place in zip(copies.device.tolist(), copies.host.tolist(), strict=True):
                assert self.host[place], "nothing is loaded"
                self.device[block] = NOTHING

    def _run(self, batch: StepBatch) -> None:
        for copies in batch.loads:
            for block, place in zip(copies.device.tolist(), copies.host.tolist(), strict=True):
                self.device[block] = self.host[place]
        for sequence, name in enumerate(batch.request_ids):
            self._rows(batch, sequence, name)
        for copies in batch.saves:
            for block, place in zip(copies.device.tolist(), copies.host.tolist(), strict=True):
                self.host[place] = self.device[block]

    def _rows(self, batch: StepBatch, sequence: int, name: str) -> None:
        """Write a sequence's rows, then read all its context."""
        tokens, rows = self.tokens[name], slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
        if name not in self.scheduler._state.requests:
            tokens = ()  # it ended while the step was in flight: nobody cares what it writes
        for place, position in zip(batch.slot_mapping[rows].tolist(), batch.positions[rows].tolist(), strict=True):
            block, offset = divmod(place, BLOCK_TOKENS)
            written = self.device.get(block, NOTHING)[:offset]
            self.device[block] = (*written, *[None] * (offset - len(written)), tokens[: position + 1])
        if not tokens:
            return
        context = int(batch.context_lengths[sequence])
        for number, block in enumerate(batch.block_tables[sequence, : self.kv.blocks_for(context)].tolist()):
            start = number * BLOCK_TOKENS
            wanted = tuple(tokens[: position + 1] for position in range(start, min(start + BLOCK_TOKENS, context)))
            if self.device[block] == NOTHING and len(self.read_in_vain):
                self.read_in_vain |= {name}
                return
            assert self.device[block][: len(wanted)] == wanted, f"{name} reads what is not its own"

    def check(self) -> None:
        self.scheduler.check_integrity()
        states, hosted, loaded = block_states(self.kv), host_states(self.kv), set[int]()
        self.states, self.hosted = states, hosted
        for batch in self.flights:
            for copies in batch.loads:
                loaded.update(copies.device.tolist())
                assert all(states[block] == "loading" for block in copies.device.tolist())
                assert all(hosted[place] == "loading" for place in copies.host.tolist())
            for copies in batch.saves:
                assert all(states[block] == "sealed" for block in copies.device.tolist())
                assert all(hosted[place] == "saving" for place in copies.host.tolist())
            for sequence, context in enumerate(batch.context_lengths.tolist()):
                used = batch.block_tables[sequence, : self.kv.blocks_for(context)].tolist()
                assert all(states[block] in ("writable", "sealed") or block in loaded for block in used)
            assert all(states[place // BLOCK_TOKENS] == "writable" for place in batch.slot_mapping.tolist())
        self._check_contents()
        if not self.scheduler.has_work:
            assert self.kv.available == self.kv.blocks
            assert {*hosted.values()} <= {"free", "offloaded"}

    def _check_contents(self) -> None:
        """Every unit that may be shared holds what its digest says, here and on the host."""
        for unit in self.kv.pool.index.values():
            tokens = np.frombuffer(unit.tokens, "<i4").tolist()
            for place, contents in ((unit.indices, self.device), (unit.host, self.host)):
                if place and not (unit.arriving and contents is self.device):
                    found = contents[place[0]]
                    assert [prefix[-1] for prefix in found if isinstance(prefix, tuple)] == tokens, "a unit holds something else"

    def key(self) -> tuple[object, ...]:
        """The state up to step numbers: equal keys behave alike."""
        state, blocked, kv = self.scheduler._state, self.scheduler._planner._blocked, self.kv
        slots, first = state.slots, state.next_step
        arrays = (slots.phase, slots.computed, slots.length, slots.capacity, slots.confirmed, slots.last_token, slots.recent)
        requests = tuple(
            (name, s.status.value, s.slot, s.tokens().tobytes(), s.computed, s.awaited_step > state.completed_step, s.had_rows)
            for name, s in state.requests.items()
        )
        flights = tuple(
            (
                f.step_id - first,
                *(array.tobytes() for array in (f.slots, slots.binding[f.slots] - f.bindings, f.computed)),
                *((slot, s.request_id, s.status.value) for slot, s in sorted(f.preempted.items())),
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
            tuple(sorted(self.states.items())),
            tuple((digest, unit.indices, unit.host, unit.users) for digest, unit in kv.pool.index.items()),
            tuple(block.unit.digest for block in kv.pool.cached),
            tuple(block.index for block in kv.pool.free),
            tuple(s.request_id for s in state.loading.values()),
            self._tier_key(first),
            self.read_in_vain & frozenset(state.requests),
            tuple(self.device.get(block) for block, found in sorted(self.states.items()) if found != "free"),
        )

    def _tier_key(self, first: int) -> tuple[object, ...]:
        tier = self.kv.pool.tier
        if tier is None:
            return ()
        return (
            tuple(sorted(self.hosted.items())),
            tuple(block.index for block in tier.free),
            tuple(block.unit.digest for block in tier.copies),
            tuple(unit.digest for unit in tier.spare),
            tuple(unit.digest for unit in tier.unsaved),
            tuple(unit.digest for unit in tier.fresh),
            tuple(unit.digest for unit in tier.waiting),
            tuple((step - first, [(s.unit.digest, s.into) for s in saves].__repr__()) for step, saves in tier.saving.items()),
            tuple((step - first, repr([s.unit.digest for s in loads])) for step, loads in tier.loading.items()),
            frozenset(unit.digest for unit in tier.put_back),
        )


@dataclass(frozen=True)
class CopyBudget:
    """Blocks that a step may copy, whatever it computes."""

    blocks: int

    def __call__(self, *_work: object, **_more: object) -> int:
        return self.blocks


class Frozen:
    """A world as bytes, with references to what it shares with its copies: requests, steps, limits."""

    def __init__(self, world: World) -> None:
        self._shared: list[object] = []
        written = io.BytesIO()
        pickler = pickle.Pickler(written, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = dict.fromkeys((Request, StepBatch, SchedulerLimits, Policy, Configuration), self._share)
        pickler.dump(world)
        self._bytes = written.getvalue()

    def _share(self, item: object) -> tuple[Callable[[int], object], tuple[int]]:
        self._shared.append(item)
        return _shared, (len(self._shared) - 1,)

    def copy(self) -> World:
        _SHARED[:] = self._shared
        return pickle.loads(self._bytes)


_SHARED: list[object] = []


def _shared(place: int) -> object:
    return _SHARED[place]


@dataclass
class Explored:
    """All states that were found, how many moves led there, and to which depth; `complete` when no further one turns up."""

    states: int = 0
    moves: int = 0
    depth: int = 0
    preempted: int = 0
    reloaded: int = 0
    evicted: int = 0
    complete: bool = False


def explore(configuration: Configuration, most_states: int | None = None) -> Explored:
    """Every order of events, breadth first, until no new state turns up or there are `most_states`."""
    found, frontier, seen = Explored(), [World(configuration)], set[tuple[object, ...]]()
    while frontier:
        following: list[World] = []
        found.depth += 1
        for world in frontier:
            frozen = Frozen(world)
            for move in [*world.moves()]:
                successor = frozen.copy()
                successor.play(move)
                successor.check()
                found.moves += 1
                key = successor.key()
                if key in seen:
                    continue
                seen.add(key)
                following.append(successor)
                stats = successor.scheduler.stats()
                found.preempted += stats.preemptions > 0
                found.reloaded += stats.reloaded_tokens > 0
                found.evicted += stats.evictions > 0
                found.states = len(seen)
                if most_states is not None and len(seen) >= most_states:
                    return found
        frontier = following
    found.complete = True
    return found
