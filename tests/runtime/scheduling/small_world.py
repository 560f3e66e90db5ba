"""A small model whose every order of events can be played: a scheduler, the contents of all its blocks, and who reads what.

Events are requests, aborts, steps that complete with and without a stop token or fail, time that passes, and what is told of
sessions. Contents are told apart by the whole prefix that they belong to, so that one wrong token shows. What a step in flight
copies is nowhere until the step is run; what a failed step was to copy never is. Jobs of the tier on disk are done in any order,
or fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tokenspeed.runtime.scheduling.disk_tier import DiskJob, StoredUnit
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, host_states, pool_of
from tokenspeed.runtime.scheduling.policy import PLAIN, Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import BlockCopies, IntArray, StepBatch

from .kv_helpers import chain_of

STOP, GO = 9, 5
BLOCK_TOKENS = 2
NOTHING = ()

Move = tuple[str, int | str]
Contents = dict[int, tuple[object, ...]]


class Prompt(NamedTuple):
    """`most` output tokens at most; `hint` is seconds for which its client wants the prefix kept."""

    name: str
    tokens: tuple[int, ...]
    most: int
    priority: int = 0
    session: str = ""
    hint: float | None = None


class Configuration(NamedTuple):
    """`prompts` are submitted in this order. A step copies `copied` blocks each way at most, of each pool; `in_flight` steps may
    be launched. `windows` are tokens that a row sees and blocks, by pool. There are `places` on disk, where an earlier process
    left `restored`, prefixes of one unit.

    Time passes by `ticks` seconds, one after the other; `hints` ("tool_call", "end_of_turn", "close") are told of every session,
    each once.
    """

    prompts: tuple[Prompt, ...]
    blocks: int = 4
    host_blocks: int = 0
    places: int = 0
    restored: tuple[tuple[int, ...], ...] = ()
    copied: int = 1
    in_flight: int = 1
    sequences: int = 2
    windows: tuple[tuple[int, int], ...] = ()
    policy: Policy = PLAIN
    ticks: tuple[float, ...] = ()
    hints: tuple[str, ...] = ()
    chunk: int = 3


class World:
    """`device` and `host` are what blocks hold, by pool; `states` and `hosted` what the manager says of them."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.requests = tuple(
            Request(
                prompt.name,
                np.array(prompt.tokens, np.int32),
                prompt.most,
                prompt.priority,
                stop_tokens=frozenset({STOP}),
                session_id=prompt.session,
                retention_seconds=prompt.hint,
            )
            for prompt in configuration.prompts
        )
        windows, size = configuration.windows, BLOCK_TOKENS
        self.kv = KvManager(configuration.blocks, size, size, "small", host_blocks=configuration.host_blocks, windows=windows)
        self.disk: Contents = {}
        self.jobs: list[DiskJob] = []
        if configuration.places:
            self._restore(configuration)
        limits = SchedulerLimits(4, 2, configuration.sequences, configuration.chunk, len(self.requests), 8)
        self.scheduler = Scheduler(limits, self.kv, policy=configuration.policy)
        self.scheduler._state.copied_blocks = CopyBudget(configuration.copied)
        self.scheduler._planner._load_blocks = CopyBudget(configuration.copied)
        self.flights: list[StepBatch] = []
        self.submitted = self.ticked = 0
        self.now = 0.0
        if configuration.ticks:
            self.scheduler.tick(self.now)
        self.told: frozenset[Move] = frozenset()
        self.tokens = {request.request_id: tuple(request.tokens.tolist()) for request in self.requests}
        self.pools = range(1 + len(windows))
        self.device: list[Contents] = [{} for _ in self.pools]
        self.host: list[Contents] = [{} for _ in self.pools]
        self.read_in_vain: frozenset[str] = frozenset()
        self.look()

    def _restore(self, configuration: Configuration) -> None:
        units: list[StoredUnit] = []
        for place, tokens in enumerate(configuration.restored):
            chain, encoded = chain_of(self.kv, list(tokens))
            units.append(StoredUnit(place, chain.digests[1], chain.digests[0], encoded))
            self.disk[place] = tuple(tokens[: position + 1] for position in range(BLOCK_TOKENS))
        self.kv.add_disk(configuration.places, 1.0, units)

    def look(self) -> None:
        """What the manager says of all blocks now. Raises IntegrityError where that makes no sense."""
        self.states = [dict(sorted(block_states(self.kv, pool).items())) for pool in self.pools]
        self.hosted = [dict(sorted(host_states(self.kv, pool).items())) for pool in self.pools]

    def moves(self) -> Iterator[Move]:
        if self.submitted < len(self.requests):
            yield "submit", self.submitted
        if len(self.flights) < self.configuration.in_flight:
            yield "schedule", 0
        if self.flights:
            yield from (("complete", token) for token in ((GO, STOP) if len(self.flights[0].logit_rows) else (GO,)))
            yield "fail", 0
        for number in range(len(self.jobs)):
            yield "job done", number
            yield "job failed", number
        live = self.scheduler._state.requests
        yield from (("abort", number) for number, request in enumerate(self.requests) if request.request_id in live)
        if self.ticked < len(self.configuration.ticks):
            yield "tick", self.ticked
        sessions = dict.fromkeys(request.session_id for request in self.requests[: self.submitted] if request.session_id)
        told = ((hint, session) for session in sessions for hint in self.configuration.hints)
        yield from (move for move in told if move not in self.told)

    def play(self, move: Move) -> None:
        kind, value = move
        if isinstance(value, str):
            self.told |= {move}
            if kind == "close":
                self.scheduler.close_session(value)
            else:
                self.scheduler.end_turn(value, "tool_call" if kind == "tool_call" else "end_of_turn")
        elif kind == "submit":
            self.scheduler.submit(self.requests[value])
            self.submitted += 1
        elif kind == "abort":
            self.scheduler.abort(self.requests[value].request_id)
        elif kind == "tick":
            self._tick(self.now + self.configuration.ticks[value])
            self.ticked += 1
        elif kind == "schedule":
            self._schedule()
        elif kind.startswith("job"):
            self._end(self.jobs.pop(value), kind == "job done")
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

    def _tick(self, now: float) -> None:
        self.now = now
        self.scheduler.tick(now)

    def _schedule(self) -> None:
        batch = self.scheduler.schedule()
        self._take_jobs()
        if batch is None and not self.flights and not self.jobs and self.scheduler.has_work:
            wake = self.scheduler.next_wake
            assert wake is not None and wake > self.now, "stuck"
            self._tick(wake)
            batch = self.scheduler.schedule()
            assert batch is not None, "stuck at its own time"
        if batch is not None:
            self._launch(batch)

    def _take_jobs(self) -> None:
        host = self.host[0]
        for job in self.scheduler.disk_jobs():
            (block,), place = job.host, job.unit.place
            assert self.disk[place] if job.fetch else host[block], "nothing is copied"
            if job.fetch:
                host[block] = NOTHING
            else:
                self.disk[place] = NOTHING
            self.jobs.append(job)

    def _end(self, job: DiskJob, well: bool) -> None:
        (block,), place = job.host, job.unit.place
        if well and job.fetch:
            self.host[0][block] = self.disk[place]
        elif well:
            self.disk[place] = self.host[0][block]
        self.scheduler.disk_done(job.number, well)

    def _launch(self, batch: StepBatch) -> None:
        assert batch.rows or batch.loads or batch.saves, "a step does nothing"
        self.flights.append(batch)
        for pool, block, place in _pairs(batch.saves):
            assert self.device[pool][block], "nothing is saved"
            self.host[pool][place] = NOTHING
        for pool, block, place in _pairs(batch.loads):
            assert self.host[pool][place], "nothing is loaded"
            self.device[pool][block] = NOTHING

    def _run(self, batch: StepBatch) -> None:
        for pool, block, place in _pairs(batch.loads):
            self.device[pool][block] = self.host[pool][place]
        for sequence, name in enumerate(batch.request_ids):
            rows = slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
            tokens = self.tokens[name] if name in self.scheduler._state.requests else ()
            for pool in self.pools:
                self._rows(pool, batch, sequence, rows, tokens)
        for pool, block, place in _pairs(batch.saves):
            self.host[pool][place] = self.device[pool][block]

    def _rows(self, pool: int, batch: StepBatch, sequence: int, rows: slice, tokens: tuple[int, ...]) -> None:
        """Write a sequence's rows, then read all that they see. Without `tokens` it ended while the step was in flight: nobody
        cares what it writes."""
        device, places, positions = self.device[pool], part_of(batch, pool)[1][rows].tolist(), batch.positions[rows].tolist()
        for place, position in zip(places, positions, strict=True):
            block, offset = divmod(place, BLOCK_TOKENS)
            written = device.get(block, NOTHING)[:offset]
            device[block] = (*written, *[None] * (offset - len(written)), tokens[: position + 1])
        name = batch.request_ids[sequence]
        if not tokens or name in self.read_in_vain:
            return
        for position in self._seen(pool, positions):
            block, offset = self._place(batch, pool, sequence, position)
            if device.get(block, NOTHING) == NOTHING and self.read_in_vain:
                self.read_in_vain |= {name}
                return
            assert device[block][offset] == tokens[: position + 1], f"{name} reads what is not its own"

    def _seen(self, pool: int, positions: list[int]) -> range:
        """Positions that rows see together."""
        window = self.configuration.windows[pool - 1][0] if pool else 1 + positions[0]
        return range(max(0, positions[0] - window + 1), positions[-1] + 1)

    def _place(self, batch: StepBatch, pool: int, sequence: int, position: int) -> tuple[int, int]:
        """Block and offset where a sequence has a position."""
        number, offset = divmod(position, BLOCK_TOKENS)
        return int(part_of(batch, pool)[0][sequence, number]), offset

    def check(self) -> None:
        """Everything that must hold in every state; `look` comes first."""
        self.scheduler.check_integrity()
        for job in self.jobs:
            assert all(self.hosted[0][block] == ("fetching" if job.fetch else "storing") for block in job.host)
        for pool in self.pools:
            self._check_flights(pool)
            self._check_contents(pool)
        if not self.scheduler.has_work:
            assert self.kv.available == self.kv.blocks
            assert all(window.unreserved == window.pool.available == window.pool.blocks for window in self.kv.windows)
            at_rest = {"free", "offloaded", "storing", "fetching"}
            assert {state for hosted in self.hosted for state in hosted.values()} <= at_rest

    def _check_flights(self, pool: int) -> None:
        """What launched steps read is there for them, and what they write is their own."""
        states, hosted, loaded = self.states[pool], self.hosted[pool], set[int]()
        for batch in self.flights:
            for of, block, place in _pairs(batch.loads):
                if of == pool:
                    loaded.add(block)
                    assert states[block] == "loading" and hosted[place] == "loading"
            for of, block, place in _pairs(batch.saves):
                assert of != pool or (states[block] == "sealed" and hosted[place] == "saving")
            for sequence in range(len(batch.request_ids)):
                rows = slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
                seen = self._seen(pool, batch.positions[rows].tolist())
                used = {self._place(batch, pool, sequence, position)[0] for position in seen}
                assert all(states[block] in ("writable", "sealed") or block in loaded for block in used)
            places = part_of(batch, pool)[1].tolist() if batch.rows else ()
            assert all(states[place // BLOCK_TOKENS] == "writable" for place in places)

    def _check_contents(self, pool: int) -> None:
        """Every unit that may be shared holds what its digest says, here and on the host."""
        for unit in pool_of(self.kv, pool).index.values():
            tokens = np.frombuffer(unit.tokens, "<i4").tolist()
            on_disk = () if unit.place < 0 else (unit.place,)
            for place, contents in ((unit.indices, self.device[pool]), (unit.host, self.host[pool]), (on_disk, self.disk)):
                if place and not (unit.arriving and contents is self.device[pool]):
                    found = contents[place[0]]
                    assert [prefix[-1] for prefix in found if isinstance(prefix, tuple)] == tokens, "a unit holds something else"


class CopyBudget(NamedTuple):
    """Blocks that a step may copy, whatever it computes."""

    blocks: int

    def __call__(self, *_work: object, **_more: object) -> int:
        return self.blocks


def part_of(batch: StepBatch, pool: int) -> tuple[IntArray, np.ndarray]:
    """Block tables and slot mapping of a step with rows in a pool."""
    part = batch.windows[pool - 1] if pool else batch
    return part.block_tables, part.slot_mapping


def _pairs(copies: Iterable[BlockCopies]) -> Iterator[tuple[int, int, int]]:
    """Pool, block on the device, block on the host."""
    for item in copies:
        for block, place in zip(item.device.tolist(), item.host.tolist(), strict=True):
            yield item.pool, block, place
