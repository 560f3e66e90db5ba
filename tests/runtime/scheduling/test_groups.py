"""Groups of ranks as one scheduler: where a request goes, and that each group keeps to its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.scheduling.errors import DuplicateRequest, QueueFull, SchedulerMisuse
from tokenspeed.runtime.scheduling.groups import Candidate, GroupedScheduler, choose_group
from tokenspeed.runtime.scheduling.step import GroupedStep

from .shadow import ShadowDevice, make_request, make_scheduler, reference

SHARED = list(range(1, 9))


class Groups:
    """Two groups, each with a device of its own."""

    def __init__(self, count: int = 2, *, max_waiting: int = 64, max_sequences: int = 8) -> None:
        made = [make_scheduler(max_waiting=max_waiting, max_sequences=max_sequences) for _ in range(count)]
        self.scheduler = GroupedScheduler([scheduler for scheduler, _ in made], output_tokens=4)
        self.devices = [ShadowDevice(kv, scheduler.limits) for scheduler, kv in made]
        self.outputs: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}

    def submit(self, name: str, tokens: Sequence[int], max_tokens: int = 4, session: str = "") -> int:
        request = make_request(name, tokens, max_tokens, session=session)
        self.scheduler.submit(request)
        group = self.scheduler.group_of(name)
        assert group is not None
        self.devices[group].enter(request)
        self.outputs[name] = []
        return group

    def launch(self) -> GroupedStep | None:
        step = self.scheduler.schedule()
        for device, part in zip(self.devices, step.parts if step else (), strict=step is not None):
            if part is not None:
                device.launch(part)
        return step

    def complete(self, step: GroupedStep) -> None:
        tokens: list[int] = []
        for device, part in zip(self.devices, step.parts, strict=True):
            if part is not None:
                device.execute_oldest()
                tokens += device.finish_oldest()[1]
        for outcome in self.scheduler.complete(step.step_id, np.array(tokens, np.int32)):
            assert outcome.token is not None
            self.outputs[outcome.request_id].append(outcome.token)
            if outcome.finish_reason is not None:
                self.ended[outcome.request_id] = outcome.finish_reason

    def run_to_end(self) -> None:
        """One step ahead, as the engine does."""
        running: GroupedStep | None = None
        while self.scheduler.has_work or running is not None:
            step = self.launch()
            if running is not None:
                self.complete(running)
            running = step
            self.scheduler.check_integrity()


def test_requests_are_spread_and_a_prefix_attracts() -> None:
    groups = Groups()
    assert [groups.submit(f"a{n}", [20 + n] * 8) for n in range(4)] == [0, 1, 0, 1]
    groups.run_to_end()
    assert groups.submit("first", [*SHARED, 9]) == 0
    groups.run_to_end()
    assert groups.submit("other", [7] * 3) == 0
    assert groups.submit("again", [*SHARED, 10]) == 0, "8 cached tokens are more than what the group has to do"
    assert groups.submit("third", [*SHARED, 11]) == 1, "a group with nothing to do computes it sooner"
    groups.run_to_end()
    stats = groups.scheduler.stats()
    assert stats.prefix_hits == 8 and stats.running == stats.waiting == 0 and stats.kv_usage == 0
    for name, output in groups.outputs.items():
        assert len(output) == 4, name


def test_groups_without_rows_have_no_part() -> None:
    groups = Groups()
    groups.submit("a", [1, 2, 3], max_tokens=1)
    groups.submit("b", [4, 5], max_tokens=3)
    step = groups.launch()
    assert step is not None and [part.rows if part else 0 for part in step.parts] == [3, 2] and step.rows == 5
    assert step.logit_request_ids == ("a", "b") and [admission.slot for admission in step.admissions] == [0, 8]
    groups.complete(step)
    step = groups.launch()
    assert step is not None and step.parts[0] is None and step.logit_request_ids == ("b",)
    with pytest.raises(SchedulerMisuse):
        groups.scheduler.complete(step.step_id, np.array([], np.int32))
    with pytest.raises(SchedulerMisuse):
        groups.scheduler.complete(step.step_id + 1, {"b": 1})
    groups.complete(step)
    groups.run_to_end()
    assert groups.ended == {"a": "length", "b": "length"}


def test_ends_by_abort_and_failure_leave_nothing_behind() -> None:
    groups = Groups()
    groups.submit("a", [1, 2, 3])
    groups.submit("b", [4, 5])
    with pytest.raises(DuplicateRequest):
        groups.submit("b", [1])
    step = groups.launch()
    assert step is not None
    aborted = groups.scheduler.abort("a")
    assert aborted is not None and aborted.finish_reason == "abort" and groups.scheduler.abort("a") is None
    assert [outcome.request_id for outcome in groups.scheduler.fail(step.step_id)] == ["b"]
    groups.scheduler.check_integrity()
    assert not groups.scheduler.has_work and groups.scheduler.schedule() is None
    assert groups.submit("c", [1]) == 0, "no work is left anywhere"


def test_only_when_every_queue_is_full_is_a_request_refused() -> None:
    groups = Groups(max_waiting=1)
    assert {groups.submit("a", [1]), groups.submit("b", [1])} == {0, 1}
    with pytest.raises(QueueFull):
        groups.submit("c", [1])
    assert groups.scheduler.group_of("c") is None


def test_a_session_stays_where_it_was_unless_another_group_has_much_less_to_do() -> None:
    groups = Groups()
    assert groups.submit("b1", [9] * 8, session="b") == 0
    assert groups.submit("a1", [1] * 12, session="a") == 1
    groups.run_to_end()
    assert groups.submit("other", [5] * 9) == 0
    assert groups.submit("more", [6] * 6) == 1
    assert groups.submit("a2", [1] * 16, session="a") == 1
    groups.scheduler.close_session("b")
    assert groups.submit("a3", [1] * 40, session="a") == 1
    assert groups.submit("c1", [1] * 17) == 0 and groups.submit("a4", [1] * 40, session="a") == 1, "though it has more to do"
    assert groups.submit("a5", [1] * 17, session="a") == 0, "by more than the whole prompt"
    assert groups.scheduler._homes == {"a": 0}
    groups.run_to_end()


candidates = st.builds(Candidate, st.booleans(), st.booleans(), st.integers(0, 500), st.integers(0, 64))


@given(st.integers(65, 500), st.lists(candidates, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_group_would_have_been_better(prompt: int, found: list[Candidate]) -> None:
    chosen = found[choose_group(prompt, found)]
    for other in found:
        assert other.full or not chosen.full
        if other.full == chosen.full:
            assert chosen.free or not other.free
            if other.free == chosen.free:
                assert chosen.work - chosen.cached <= other.work - other.cached


requests = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=12)


@given(requests, st.data())
@settings(max_examples=25, deadline=None)
def test_random_requests_give_what_each_gives_alone(wanted: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Each group on a device of its own that checks what it reads; one step ahead, with aborts between; loads stay even."""
    groups = Groups(3, max_sequences=2)
    aborted: set[str] = set()
    asked = {
        str(number): make_request(str(number), [kind] * 8 + [number] * length, most)
        for number, (kind, length, most) in enumerate(wanted)
    }
    for name, request in asked.items():
        groups.submit(name, request.tokens.tolist(), request.max_tokens)
        running = groups.launch() if data.draw(st.booleans()) else None
        if data.draw(st.integers(0, 5)) == 0 and groups.scheduler.abort(name) is not None:
            aborted.add(name)
        if running is not None:
            groups.complete(running)
        groups.scheduler.check_integrity()
    groups.run_to_end()
    limits, kv = groups.scheduler.groups[0].limits, groups.devices[0].kv
    for name, request in asked.items():
        if name not in aborted:
            assert (groups.outputs[name], groups.ended[name]) == reference(request, limits, kv.tokens)
