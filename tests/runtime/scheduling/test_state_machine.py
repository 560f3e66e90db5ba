"""Random traffic against the shadow executor, with and without steps in flight, and through pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tokenspeed.runtime.scheduling.disk_tier import StoredUnit
from tokenspeed.runtime.scheduling.errors import PromptTooLong, QueueFull
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, disk_states, host_states
from tokenspeed.runtime.scheduling.pipeline import Pipeline
from tokenspeed.runtime.scheduling.request import Outcome, Request, SchedulerLimits, SchedulerStats
from tokenspeed.runtime.scheduling.scheduler import Scheduler

from .shadow import VOCABULARY, ShadowDevice, make_request, reference

PREFIXES = ((), (1,) * 4, (1,) * 8, (1, 1, 1, 1, 2, 2, 2, 2, 3), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3, 4, 5))


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, aborts, schedules, executes, completes and fails in any legal order; checks everything after each."""

    @initialize(
        blocks=st.integers(3, 24),
        geometry=st.sampled_from([(4, 4), (2, 4), (1, 4), (1, 1)]),
        max_rows=st.integers(1, 20),
        max_decode_rows=st.integers(1, 6),
        max_sequences=st.integers(1, 5),
        prefill_chunk=st.integers(1, 12),
        overlap=st.booleans(),
        stages=st.sampled_from([1, 1, 2, 3, 5]),
        host_units=st.sampled_from([0, 1, 2, 4, 12, 40]),
        places=st.sampled_from([0, 1, 3, 40]),
        copied_units=st.sampled_from([1, 1, 2, 5, 100]),
        windows=st.sampled_from([(), (), (1,), (3,), (9,), (4, 6)]),
        window_units=st.integers(0, 20),
    )
    def start(
        self,
        blocks: int,
        geometry: tuple[int, int],
        max_rows: int,
        max_decode_rows: int,
        max_sequences: int,
        prefill_chunk: int,
        overlap: bool,
        stages: int,
        host_units: int,
        places: int,
        copied_units: int,
        windows: tuple[int, ...],
        window_units: int,
    ) -> None:
        block_tokens, identity_tokens = geometry
        self.limits = SchedulerLimits(max_rows, min(max_decode_rows, max_rows), max_sequences, prefill_chunk, 6, 40)
        unit = identity_tokens // block_tokens
        pipeline = None if stages == 1 else Pipeline(stages, lambda rows, context: 5.0 + rows + context / 8)
        least = [2 + -(-(window - 1) // identity_tokens) - (-2 * prefill_chunk // identity_tokens) for window in windows]
        pools = [(window, (units + window_units) * unit) for window, units in zip(windows, least, strict=True)]
        size = blocks * 4 // block_tokens
        self.geometry = size, block_tokens, identity_tokens, "machine", True, host_units * unit
        self.pools, self.pipeline, self.copied = pools, pipeline, copied_units * unit
        self.places = places if host_units and not windows else 0
        self.ended_processes: list[SchedulerStats] = []
        self.begin_process(())
        self.pipelined = pipeline is not None
        self.depth = stages if pipeline is not None else 2 if overlap else 1
        self.live: dict[str, Request] = {}
        self.outputs: dict[str, list[int]] = {}
        self.generated = 0
        self.submitted = 0
        self.now = 0.0
        self.ended: list[tuple[str, list[int]]] = []

    def begin_process(self, left: Sequence[StoredUnit]) -> None:
        """With what an earlier one left on disk."""
        self.kv = KvManager(*self.geometry, windows=self.pools)
        if self.places:
            self.kv.add_disk(self.places, 1.0, left)
        self.scheduler = Scheduler(self.limits, self.kv, self.pipeline)
        self.scheduler._state.copied_blocks = lambda work: self.copied
        self.scheduler._planner._load_blocks = lambda decodes: self.copied
        self.device = ShadowDevice(self.kv, self.limits)

    @rule(
        prefix=st.sampled_from(PREFIXES),
        suffix=st.lists(st.integers(0, 2), max_size=6),
        max_tokens=st.integers(1, 14),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "tenant"]),
        stop_tokens=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=3),
        min_tokens=st.sampled_from([0, 0, 3]),
        session=st.sampled_from(["", "one", "two"]),
        hint=st.sampled_from([None, None, 300.0]),
    )
    def submit(
        self,
        prefix: tuple[int, ...],
        suffix: list[int],
        max_tokens: int,
        priority: int,
        salt: str,
        stop_tokens: frozenset[int],
        min_tokens: int,
        session: str,
        hint: float | None,
    ) -> None:
        tokens = [*prefix, *suffix] or [1]
        name = f"r{self.submitted}"
        self.submitted += 1
        request = make_request(
            name, tokens, max_tokens, priority=priority, salt=salt, stop_tokens=stop_tokens, min_tokens=min_tokens
        )
        request = replace(request, session_id=session, retention_seconds=hint)
        try:
            self.scheduler.submit(request)
        except PromptTooLong as error:
            assert len(tokens) > min(self.limits.max_context - 1, self.kv.tokens) == error.limit
            return
        except QueueFull:
            assert self.scheduler.stats().waiting >= self.limits.max_waiting
            return
        self.live[name], self.outputs[name] = request, []
        self.device.enter(request)

    @precondition(lambda self: self.device.jobs)
    @rule(which=st.integers(0, 99), well=st.sampled_from([True, True, True, False]))
    def end_job(self, which: int, well: bool) -> None:
        number = sorted(self.device.jobs)[which % len(self.device.jobs)]
        self.device.end_job(number, well)
        self.scheduler.disk_done(number, well)

    @precondition(lambda self: not self.device.launched and self.kv.disk is not None)
    @rule(chance=st.integers(0, 5))
    def restart(self, chance: int) -> None:
        """The process ends, whatever is under way; what is on disk stays there."""
        if chance:
            return
        before, states = self.device, disk_states(self.kv)
        left = [unit for place, unit in before.disk_names.items() if states[place] in ("stored", "fetching")]
        self.ended_processes.append(self.scheduler.stats())
        self.begin_process(left)
        self.device.disk, self.device.disk_names, self.device.disk_salt = before.disk, before.disk_names, before.disk_salt
        assert self.scheduler.stats().restored_tokens == len(left) * self.kv.identity_tokens
        self.live, self.outputs, self.generated = {}, {}, 0

    @precondition(lambda self: self.ended)
    @rule(which=st.integers(0, 99), kept=st.integers(50, 100), suffix=st.lists(st.integers(0, 2), max_size=3))
    def next_turn(self, which: int, kept: int, suffix: list[int]) -> None:
        """A session goes on with what it had, or with most of it."""
        session, tokens = self.ended[which % len(self.ended)]
        go_on = (*tokens[: len(tokens) * kept // 100], *suffix)[:36]
        self.submit(go_on, [], 4, 1, "", frozenset(), 0, session, None)

    @rule(seconds=st.sampled_from([0.0, 1.0, 50.0, 300.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.tick(self.now)

    @rule(session=st.sampled_from(["one", "two"]), end=st.sampled_from(["tool_call", "end_of_turn", "close"]))
    def hint(self, session: str, end: str) -> None:
        if end == "close":
            self.scheduler.close_session(session)
        else:
            self.scheduler.end_turn(session, "tool_call" if end == "tool_call" else "end_of_turn")

    @rule(steps=st.integers(1, 12))
    def serve(self, steps: int) -> None:
        """Some steps one after the other, with the checks between them."""
        for _ in range(steps):
            if len(self.device.launched) < self.depth:
                self.schedule()
            if len(self.device.launched) == self.depth or (self.device.launched and not self.scheduler.has_work):
                self.complete(False)
            elif self.device.jobs and not self.device.launched:
                self.end_job(0, True)
            self.sound()

    @rule(which=st.integers(0, 99))
    def abort(self, which: int) -> None:
        assert self.scheduler.abort("unknown") is None
        if not self.live:
            return
        name = sorted(self.live)[which % len(self.live)]
        outcome = self.scheduler.abort(name)
        assert outcome is not None and outcome.finish_reason == "abort" and outcome.token is None
        del self.live[name]
        assert self.scheduler.abort(name) is None

    @precondition(lambda self: len(self.device.launched) < self.depth)
    @rule()
    def schedule(self) -> None:
        batch = self.scheduler.schedule()
        self.device.begin_jobs(self.scheduler.disk_jobs())
        if batch is not None:
            if self.pipelined:
                named = {name for launched in self.device.launched for name in launched.request_ids}
                assert not named & {*batch.request_ids}, "a sequence is in two steps"
                assert (batch.token_ids >= 0).all(), "a token is unknown"
            self.device.launch(batch)
        elif self.live:
            wake = self.scheduler.next_wake
            if not self.device.launched and wake is not None and wake > self.now:
                self.tick(wake - self.now)  # a session's place is kept until then
                self.schedule()
            assert self.device.launched or self.device.jobs, "work is left, nothing is in flight, and nothing runs"

    @precondition(lambda self: self.device.launched)
    @rule()
    def execute(self) -> None:
        self.device.execute_oldest()

    @precondition(lambda self: self.device.launched)
    @rule(by_name=st.booleans())
    def complete(self, by_name: bool) -> None:
        batch, sampled = self.device.finish_oldest()
        tokens = dict(zip(batch.logit_request_ids, sampled, strict=True)) if by_name else sampled
        for outcome in self.scheduler.complete(batch.step_id, tokens):
            self._take(outcome)

    @precondition(lambda self: self.device.launched)
    @rule(chance=st.integers(0, 4))
    def fail(self, chance: int) -> None:
        if chance:
            return
        batch = self.device.fail_oldest()
        failed = self.scheduler.fail(batch.step_id)
        self.device.failed.update(outcome.request_id for outcome in failed)
        for outcome in failed:
            assert outcome.finish_reason == "error" and outcome.token is None
            del self.live[outcome.request_id]
        assert not set(batch.request_ids) & set(self.live)

    def _take(self, outcome: Outcome) -> None:
        name, token = outcome.request_id, outcome.token
        assert token is not None
        assert name not in self.device.spoilt_readers, "a request goes on that read what was not there"
        self.generated += 1
        self.outputs[name].append(token)
        expected, reason = reference(self.live[name], self.limits, self.kv.tokens)
        assert self.outputs[name] == expected[: len(self.outputs[name])]
        ended = len(self.outputs[name]) == len(expected)
        assert outcome.finish_reason == (reason if ended else None)
        assert outcome.stop_token == (token if ended and reason == "stop" else None)
        if ended:
            request = self.live.pop(name)
            self.ended.append((request.session_id, [*request.tokens.tolist(), *self.outputs[name]]))

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        self.device.check_blocks_held()
        stats = self.scheduler.stats()
        assert stats.running + stats.waiting == len(self.live)
        assert stats.generation_tokens == self.generated
        assert stats.recomputed_tokens == self.device.recomputed
        assert (stats.prefix_queries, stats.prefix_hits) == (self.device.queried, self.device.hit)
        assert stats.offloaded_tokens == self.device.saved and stats.reloaded_tokens <= self.device.loaded
        assert stats.host_hits <= stats.prefix_hits
        told = stats.stored_tokens, stats.fetched_tokens, stats.refused_tokens
        assert told == (self.device.stored, self.device.fetched, self.device.refused)

    def teardown(self) -> None:
        """Everything that is left runs to its end, and no block stays behind."""
        if not hasattr(self, "scheduler"):
            return
        while self.scheduler.has_work:
            if len(self.device.launched) < self.depth:
                self.schedule()
            if self.device.launched:
                self.complete(False)
            elif self.device.jobs:
                self.end_job(0, True)
            self.sound()
        assert not self.live
        self._pause()
        assert self.kv.available == self.kv.blocks
        assert all(window.unreserved == window.pool.available == window.pool.blocks for window in self.kv.windows)
        assert set(block_states(self.kv).values()) <= {"free", "cached"}
        assert set(host_states(self.kv).values()) <= {"free", "offloaded"}
        assert self.scheduler.stats().reloaded_tokens == self.device.loaded

    def _pause(self) -> None:
        """Nobody wants anything: what can be saved is, and that has an end."""
        most = sum(len(pool.cached) for pool in (self.kv.pool, *(window.pool for window in self.kv.windows)))
        for _ in range(4 * most + len(self.device.jobs) + 4):
            self.schedule()
            if self.device.launched:
                self.complete(False)
            elif self.device.jobs:
                self.end_job(0, True)
            else:
                return
            self.sound()
        raise AssertionError("blocks are copied to and fro")


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
)
