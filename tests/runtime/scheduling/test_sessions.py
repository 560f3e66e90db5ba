"""Sessions are admitted and parked: no thrash, nobody waits for ever, and every answer is what it would be alone."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.scheduling import sessions
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN, Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler

from .shadow import ShadowDevice, make_request, make_scheduler, reference

ROW_SECONDS = 1e-4


@dataclass
class Loop:
    """Sessions that each take turns, with a pause between them, against a machine that takes so long for a row."""

    scheduler: Scheduler
    turns: int
    gap: float
    now: float = 0.0
    coming: list[tuple[float, int, int]] = field(default_factory=list)
    context: dict[int, list[int]] = field(default_factory=dict)
    latest: dict[int, float] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)

    def begin(self, sessions: int, prompt: int) -> None:
        for session in range(sessions):
            self.context[session] = [session % 900 + 1] * prompt
            heapq.heappush(self.coming, (session * 1e-3, session, 0))

    def run(self) -> None:
        scheduler = self.scheduler
        while self.coming or scheduler.has_work:
            self._arrive()
            batch = scheduler.schedule()
            if batch is None:
                later = [time for time in (scheduler.next_wake, self.coming[0][0] if self.coming else None) if time is not None]
                assert later, "work is left but nothing runs"
                self.now = max(self.now, min(later))
                continue
            self.now += 1e-3 + batch.rows * ROW_SECONDS
            scheduler.tick(self.now)
            for outcome in scheduler.complete(batch.step_id, np.full(len(batch.logit_rows), 7, np.int32)):
                session, turn = map(int, outcome.request_id.split("-"))
                self.context[session].append(7)
                if outcome.finish_reason is not None:
                    scheduler.end_turn(str(session), "tool_call")
                    self.waited.append(self.now - self.latest[session])
                    if turn + 1 < self.turns:
                        heapq.heappush(self.coming, (self.now + self.gap * (1 + session % 3), session, turn + 1))
                    else:
                        scheduler.close_session(str(session))

    def _arrive(self) -> None:
        self.scheduler.tick(self.now)
        while self.coming and self.coming[0][0] <= self.now:
            _, session, turn = heapq.heappop(self.coming)
            self.context[session] += [900 + turn] * 24
            self.latest[session] = self.now
            self.scheduler.submit(make_request(f"{session}-{turn}", self.context[session], 8, session=str(session)))

    @property
    def hit_share(self) -> float:
        stats = self.scheduler.stats()
        return stats.prefix_hits / stats.prefix_queries


def closed_loop(policy: Policy, sessions: int, turns: int = 12, gap: float = 0.05) -> Loop:
    """The pool holds about 8 sessions."""
    limits = SchedulerLimits(512, 32, 32, 256, 256, 4096)
    loop = Loop(Scheduler(limits, KvManager(420, 16, 16, "test"), policy=policy), turns, gap)
    loop.begin(sessions, 400)
    loop.run()
    loop.scheduler.check_integrity()
    return loop


def test_four_times_as_many_sessions_as_the_pool_holds_do_not_thrash() -> None:
    few, plain, agentic = closed_loop(AGENTIC, 6), closed_loop(PLAIN, 32), closed_loop(AGENTIC, 32)
    assert few.hit_share == 0.88, "all but the first prompts and what is new in each turn"
    assert plain.hit_share == 0 and agentic.hit_share > 0.55
    assert agentic.now < 0.5 * plain.now, "and all is done sooner"


def small(policy: Policy = AGENTIC, blocks: int = 8) -> Scheduler:
    return make_scheduler(blocks, policy=policy, max_waiting=1000)[0]


def serve(scheduler: Scheduler) -> list[str]:
    """One step; the requests it admits."""
    batch = scheduler.schedule()
    if batch is None:
        return []
    scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
    scheduler.check_integrity()
    return [admission.request_id for admission in batch.admissions]


def turn(scheduler: Scheduler, name: str, tokens: int, outputs: int = 1, priority: int = 0) -> None:
    """A turn of the session that its first letter names."""
    scheduler.submit(make_request(name, [ord(name[0])] * tokens, outputs, session=name[0], priority=priority))


def admitted(names: str, tokens: int, policy: Policy = AGENTIC) -> Scheduler:
    """A scheduler whose sessions `names` have had two turns, a millisecond apart, and are expected back as soon."""
    scheduler = small(policy)
    for number, now in ((1, 0.0), (2, 0.001)):
        scheduler.tick(now)
        for name in names:
            turn(scheduler, f"{name}{number}", tokens)
        while scheduler.has_work:
            serve(scheduler)
    return scheduler


def test_a_session_keeps_its_place_between_its_turns_and_others_wait_for_it() -> None:
    scheduler = admitted("ab", 12)
    turn(scheduler, "c1", 12)
    turn(scheduler, "a3", 12, 4)
    assert serve(scheduler) == ["a3"], "c has no place, though nobody has its blocks at the moment"
    for _ in range(3):
        serve(scheduler)
    assert scheduler.has_work and serve(scheduler) == [] and scheduler.next_wake is not None
    scheduler.tick(scheduler.next_wake)
    assert serve(scheduler) == ["c1"], "no place is worth more than the time in which the pool could be computed"
    assert scheduler.next_wake is None


def test_an_idle_machine_waits_no_longer_than_the_place_it_keeps_is_worth() -> None:
    """Sessions that came back at once are held, by which an idle machine loses no more than to compute their contexts again."""
    scheduler = admitted("ab", 12)
    turn(scheduler, "c1", 12)
    assert serve(scheduler) == [], "their places are kept"
    wake = scheduler.next_wake
    state = scheduler._state  # pyright: ignore[reportPrivateUsage]
    assert wake is not None and state.clock is not None and state.table is not None
    assert wake <= state.clock + sessions.PATIENCE * max(session.recompute for session in state.table if session.admitted)
    scheduler.tick(wake)
    assert serve(scheduler) == ["c1"]


def test_a_closed_session_makes_room_at_once() -> None:
    scheduler = admitted("ab", 12)
    turn(scheduler, "c1", 12)
    turn(scheduler, "d1", 12)
    assert serve(scheduler) == []
    scheduler.close_session("b")
    scheduler.close_session("unknown")
    assert serve(scheduler) == ["c1"]


def test_better_priority_takes_the_place_of_an_idle_session() -> None:
    scheduler = admitted("ab", 12)
    turn(scheduler, "c1", 12, priority=1)
    assert serve(scheduler) == []
    turn(scheduler, "d1", 12, priority=-1)
    assert serve(scheduler) == ["d1"]


def test_who_answers_a_person_gives_up_its_place_before_who_runs_a_tool() -> None:
    scheduler = small(blocks=1000)
    scheduler.tick(0)
    for name in "abc":
        turn(scheduler, f"{name}1", 12)
    while scheduler.has_work:
        serve(scheduler)
    table = scheduler._state.table
    assert table is not None
    for name, end in (("a", "tool_call"), ("b", "end_of_turn"), ("c", "tool_call")):
        scheduler.end_turn(name, end)  # pyright: ignore[reportArgumentType]
    scheduler.end_turn("unknown", "tool_call")
    remaining = {session.name: session.remaining(1.0) for session in table}
    assert remaining == {"a": 9.0, "b": 119.0, "c": 9.0}
    scheduler.tick(4.0)
    turn(scheduler, "a2", 14)
    serve(scheduler)
    scheduler.end_turn("a", "tool_call")
    assert {session.name: session.gap for session in table} == {"a": 4.0, "b": 120.0, "c": 10.0}
    assert {session.name: session.growth for session in table}["a"] == 0.5, "half of what it grew by last"


def test_shared_prefixes_are_counted_once() -> None:
    scheduler = small(blocks=20)
    scheduler.tick(0)
    system = [1] * 32
    for name in "abcdef":
        scheduler.submit(make_request(name, [*system, ord(name), ord(name)], 1, session=name))
        assert serve(scheduler) or serve(scheduler)
        while scheduler.has_work:
            serve(scheduler)
    table = scheduler._state.table
    assert table is not None and table.admitted_tokens == 6 * 3 + 32


def test_parked_sessions_go_before_turns_that_are_due_much_later() -> None:
    """Though the admitted one never stays away for longer than its place is worth."""
    scheduler = admitted("a", 24, Policy(hold_seconds=0.02, fair_sessions=False))
    turn(scheduler, "b1", 24)
    for number in range(1, 100):
        scheduler.tick(0.001 * number)
        turn(scheduler, f"a-{number}", 24, 2)
        served = [name for _ in range(4) for name in serve(scheduler)]
        if "b1" in served:
            assert number == 22
            return
        assert served == [f"a-{number}"]
    raise AssertionError("b starves")


def test_bookkeeping_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MOST_SESSIONS", 20)
    scheduler = small(blocks=64)
    scheduler.tick(0)
    for number in range(100):
        scheduler.submit(make_request(f"r{number}", [1, 2], 1, session=f"s{number}"))
        serve(scheduler)
    table = scheduler._state.table
    assert table is not None and len(table) == 20
    for number in range(20):
        scheduler.submit(make_request(f"q{number}", [1, 2], 1))
        serve(scheduler)
    assert len(table) == 19, "requests without sessions leave nothing behind"


submissions = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "c", "d"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=10),
        st.integers(1, 6),
        st.integers(0, 2),
        st.sampled_from(["", "x"]),
        st.sampled_from([0.0, 0.01, 3.0]),
        st.integers(0, 3),
    ),
    min_size=3,
    max_size=24,
)


@given(submissions, st.booleans(), st.booleans(), st.integers(4, 16))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_answer_is_what_it_would_be_alone(coming: list[tuple], clock: bool, overlap: bool, blocks: int) -> None:
    """Sessions that continue their own contexts, in a pool that is too small for them; nothing is left over, nobody starves."""
    scheduler, kv = make_scheduler(blocks, policy=Policy(aging_seconds=1, hold_seconds=1, patience_seconds=20))
    device, now, depth = ShadowDevice(kv, scheduler.limits), 0.0, 1 + overlap
    asked: dict[str, Request] = {}
    outputs: dict[str, list[int]] = {}
    contexts: dict[str, list[int]] = {}

    def step() -> None:
        batch = scheduler.schedule() if len(device.launched) < depth else None
        if batch is not None:
            device.launch(batch)
        if device.launched and (batch is None or len(device.launched) == depth):
            done, sampled = device.finish_oldest()
            for outcome in scheduler.complete(done.step_id, sampled):
                assert outcome.token is not None
                outputs[outcome.request_id].append(outcome.token)
        device.check_blocks_held()
        scheduler.check_integrity()

    for number, (session, tokens, most, priority, tenant, after, steps) in enumerate(coming):
        now += after
        if clock:
            scheduler.tick(now)
        context = contexts.get(session, []) + tokens
        contexts[session] = context = context if session and len(context) < 4 * blocks - 8 else tokens
        request = make_request(str(number), context, most, priority=priority, session=session, tenant=tenant)
        scheduler.submit(request)
        device.enter(request)
        asked[str(number)], outputs[str(number)] = request, []
        for _ in range(steps):
            step()
        if number % 5 == 4:
            scheduler.close_session(session)
        elif number % 3:
            scheduler.end_turn(session, "tool_call" if number % 2 else "end_of_turn")
    while scheduler.has_work:
        step()
        if not device.launched and scheduler.has_work and clock:
            now = max(now + 0.001, scheduler.next_wake or 0.0)
            scheduler.tick(now)
    assert kv.available == kv.blocks
    for name, request in asked.items():
        assert outputs[name] == reference(request, scheduler.limits, kv.tokens)[0]


def test_sessions_that_have_grown_too_large_together_give_up_places() -> None:
    """Two sessions fit when they came and do not any more: the one that will be away longer has to wait for the other."""
    scheduler = small()
    for now, names, tokens in ((0.0, ("a1", "b1"), 8), (1.0, ("a2", "b2"), 12)):
        scheduler.tick(now)
        for name in names:
            turn(scheduler, name, tokens)
        while scheduler.has_work:
            serve(scheduler)
    scheduler.end_turn("a", "tool_call")
    scheduler.end_turn("b", "end_of_turn")
    scheduler.tick(2.0)
    turn(scheduler, "a3", 20, 4)
    assert serve(scheduler) == ["a3"]
    turn(scheduler, "b3", 13)
    assert scheduler.stats().parked == 1 and serve(scheduler) == [], "it has no place any more, while the other one runs"
    while scheduler.stats().running:
        serve(scheduler)
    scheduler.tick(1000.0)
    assert serve(scheduler) == ["b3"]


def test_one_session_that_is_larger_than_all_there_is_keeps_its_place() -> None:
    scheduler = small(blocks=4)
    scheduler.tick(0.0)
    turn(scheduler, "a1", 12, 4)
    while scheduler.has_work:
        serve(scheduler)
    turn(scheduler, "a2", 13, 3)
    assert serve(scheduler) == ["a2"]
