"""What the first rank tells the others: each call arrives as it was made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from msgspec.structs import replace
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime import rank_watch
from tokenspeed.runtime.collectives import Collectives
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.executor_interface import Started, StepResult
from tokenspeed.runtime.fixed_batch import Rows, WindowPlaces, fixed_batch
from tokenspeed.runtime.mesh import Rank
from tokenspeed.runtime.protocol import Abort, SamplingParameters, Shutdown, StepNews, Submit, TokenEvent, packed
from tokenspeed.runtime.rank_messages import RunMessages, no_tables, step_batch
from tokenspeed.runtime.rank_watch import RanksLost, RankWatch
from tokenspeed.runtime.ranked_executor import RankedExecutor, follow
from tokenspeed.runtime.scheduling.groups import GroupedScheduler
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import BlockCopies, CommonSize, IntArray, StepBatch

from .fake_executor import EchoExecutor
from .test_engine import LIMITS, ListChannel

WINDOW = WindowPlaces(5, (np.array([3], np.int32), np.array([1, 2], np.int32)))
BATCH = fixed_batch([Rows(1, 70, [7]), Rows(0, 0, [1, 2, 3])], 2, 64, windows=[WINDOW])


class Line:
    """Collectives of two ranks in one process, as one of them has them."""

    def __init__(self, axis: str = "tp", first: Line | None = None) -> None:
        self.messages: queue.Queue[bytes] = first.messages if first else queue.Queue()
        self.reports: queue.Queue[bytes] = first.reports if first else queue.Queue()
        self.rank = Rank((MeshAxis(name=axis, size=2),), 1 if first else 0)

    def send(self, message: bytes) -> None:
        self.messages.put(message)

    def receive(self) -> bytes:
        return self.messages.get(timeout=20)

    def report(self, message: bytes) -> None:
        self.reports.put(message)

    def reported(self, rank: int) -> bytes:
        assert rank == 1
        return self.reports.get(timeout=20)


@pytest.fixture
def watch() -> Iterator[RankWatch]:
    """Of a second rank that has not come."""
    made = RankWatch(2, 60.0, print)
    yield made
    made.close()


def test_a_step_arrives_as_it_was_sent() -> None:
    saves, loads = (BlockCopies(np.array([at, 9], np.int32), np.array([3, at], np.int32), pool=at) for at in (0, 1))
    (part,) = RunMessages().of(replace(BATCH, saves=(saves,), loads=(loads, saves))).parts
    assert part is not None
    found = step_batch(BATCH.step_id, part, no_tables())
    unread = {"request_ids", "logit_request_ids", "admissions", "windows", "saves", "loads"}
    for name in StepBatch.__struct_fields__:
        if name not in unread:
            np.testing.assert_array_equal(getattr(found, name), getattr(BATCH, name), name)
    assert len(found.logit_request_ids) == len(BATCH.logit_request_ids)
    copied = [[(item.device.tolist(), item.host.tolist(), item.pool) for item in side] for side in (found.saves, found.loads)]
    assert copied == [[([0, 9], [3, 0], 0)], [([1, 9], [3, 1], 1), ([0, 9], [3, 0], 0)]]
    (window,), (sent,) = found.windows, BATCH.windows
    assert window.block_tables.tolist() == sent.block_tables.tolist() == [[0, 2], [3, 0]]
    assert window.slot_mapping.tolist() == sent.slot_mapping.tolist() == [2 * 64 + 6, *range(3 * 64, 3 * 64 + 3)]


def test_block_tables_are_told_once() -> None:
    """Sequences come and go, their tables grow, slots are taken again; what is told is what changed."""
    random, messages, known = np.random.default_rng(4), RunMessages(), no_tables()
    tables: dict[int, list[int]] = {}
    for _ in range(100):
        slots = sorted(random.choice(6, random.integers(1, 6), replace=False).tolist())
        for slot in slots:
            if slot not in tables or random.random() < 0.1:
                tables[slot] = random.integers(1, 99, random.integers(1, 5)).tolist()
            elif random.random() < 0.2:
                tables[slot].append(int(random.integers(1, 99)))
        batch = decoding([(slot, tables[slot]) for slot in slots])
        first, again = (messages.of(batch).parts[0] for _ in range(2))
        assert first is not None and again is not None
        for part in (first, again):
            np.testing.assert_array_equal(step_batch(0, part, known).block_tables, batch.block_tables)
        assert not again.pools[0].new_tables and not again.pools[0].block_tables


def decoding(sequences: list[tuple[int, list[int]]]) -> StepBatch:
    """A row for each slot, with these blocks."""
    batch = fixed_batch([Rows(slot, 5, [7]) for slot, _ in sequences], 1, 64)
    tables = np.zeros((len(sequences), max(len(blocks) for _, blocks in sequences)), np.int32)
    for row, (_, blocks) in enumerate(sequences):
        tables[row, : len(blocks)] = blocks
    return replace(batch, block_tables=tables)


class Recording(EchoExecutor):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self.calls.append((slot, sampling, end_tokens, prompt.tolist(), output.tolist()))

    def start(self, batch: StepBatch, common: CommonSize | None = None) -> Started:
        self.calls.append(("step", batch.token_ids.tolist(), common))
        return lambda: StepResult(np.zeros(len(batch.logit_rows), np.int32), ())


def test_the_others_do_what_the_first_does(watch: RankWatch) -> None:
    line, first, other, begun = Line(), Recording(), Recording(), list[int]()
    ranked = RankedExecutor(first, cast(Collectives, line), watch, 8)
    prompt, output = np.array([5, 6], np.int32), np.array([], np.int32)
    ranked.admit(3, SamplingParameters(max_tokens=4, seed=9), (1, 2), prompt, output)
    ranked.start(BATCH)
    ranked.start(BATCH)
    ranked.close()
    follow(other, cast(Collectives, Line(first=line)), begun.append)
    assert other.calls == first.calls and len(first.calls) == 3
    assert begun == [BATCH.step_id] * 2 and watch.progress.last == BATCH.step_id


def test_an_error_of_a_step_ends_all(watch: RankWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "_LAST_WORDS_SECONDS", 0.0)
    executor = EchoExecutor()
    executor.failures = [RuntimeError("Connection closed by peer")]
    ranked = RankedExecutor(executor, cast(Collectives, Line()), watch, 8)
    with pytest.raises(RanksLost) as lost:
        ranked.start(BATCH)()
    assert "Connection closed" in lost.value.got and f"step {BATCH.step_id}" in lost.value.what


def test_ranks_are_numbered_by_their_coordinates() -> None:
    mesh = (MeshAxis(name="pp", size=2), MeshAxis(name="tp", size=3))
    assert [Rank(mesh, number).coordinates for number in (0, 2, 3)] == [
        {"pp": 0, "tp": 0},
        {"pp": 0, "tp": 2},
        {"pp": 1, "tp": 0},
    ]
    assert Rank(mesh).count == 6 and Rank(mesh).peers("tp") == [[0, 1, 2], [3, 4, 5]]
    assert Rank(mesh).peers("pp") == [[0, 3], [1, 4], [2, 5]]


def test_a_group_has_one_rank_that_reports() -> None:
    mesh = tuple(MeshAxis(name=name, size=2) for name in ("pp", "dp", "tp"))
    assert Rank(mesh).reporters == (4, 6) and Rank(mesh, 7).group == 1
    assert Rank(mesh[1:]).reporters == (0, 2) and Rank(mesh[2:]).reporters == (0,)


class Groups:
    """An engine over two groups of one rank each; the second one follows in a thread."""

    def __init__(self, watch: RankWatch, *, meet: bool = False) -> None:
        self.executors = EchoExecutor(), EchoExecutor()
        first = Line("dp")
        second = Line("dp", first)
        schedulers = [Scheduler(LIMITS, KvManager(32, 4, 4, "test")) for _ in range(2)]
        self.scheduler = GroupedScheduler(schedulers, output_tokens=4)
        self.ranked = RankedExecutor(self.executors[0], cast(Collectives, first), watch, LIMITS.max_sequences, groups_meet=meet)
        self.follower = threading.Thread(
            target=follow, args=(self.executors[1], cast(Collectives, second), list[int]().append), daemon=True
        )
        self.follower.start()
        self.channel = ListChannel()
        self.loop = EngineLoop(self.scheduler, self.ranked, self.channel, ())

    def serve(self, *commands: Submit | Abort) -> dict[str, list[TokenEvent]]:
        """Events of all requests by name."""
        for command in (*commands, Shutdown()):
            self.channel.commands.put(command)
        assert self.loop.run()
        self.ranked.close()
        self.follower.join(20)
        assert not self.follower.is_alive()
        self.scheduler.check_integrity()
        found: dict[str, list[TokenEvent]] = {}
        while not self.channel.news.empty():
            news = self.channel.news.get()
            for event in news.events if isinstance(news, StepNews) else ():
                found.setdefault(event.request_id, []).append(event)
        return found


def submit(name: str, prompt: tuple[int, ...], most: int, logprobs: int | None = None) -> Submit:
    return Submit(name, packed(prompt), SamplingParameters(max_tokens=most, logprobs=logprobs))


def said(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


@pytest.mark.parametrize("meet", [False, True], ids=["apart", "meeting"])
def test_groups_run_side_by_side_with_uneven_loads(meet: bool, watch: RankWatch) -> None:
    groups = Groups(watch, meet=meet)
    events = groups.serve(submit("a", (5, 6, 7), 9), submit("b", (8, 9), 3, logprobs=1))
    assert said(events["a"]) == [5, 6, 7] * 3 and said(events["b"]) == [8, 9, 8]
    assert [logprob.token for event in events["b"] for logprob in event.logprobs] == [8, 9, 8]
    steps = [[batch.rows for batch in executor.batches] for executor in groups.executors]
    assert steps[0] == [3] + [1] * 8 and steps[1] == ([2, 1, 1] + [0] * 6 if meet else [2, 1, 1])


def test_rows_that_fail_in_one_group_harm_no_other(watch: RankWatch) -> None:
    groups = Groups(watch)
    groups.executors[1].poison = 9
    events = groups.serve(submit("a", (5, 6), 4), submit("bad", (9, 9), 4), submit("c", (3,), 4), submit("d", (4,), 4))
    assert [len(executor.batches[0].request_ids or executor.batches[0].context_lengths) for executor in groups.executors] == [
        2,
        2,
    ]
    assert events["bad"][-1].finish_reason == "error" and "not finite" in events["bad"][-1].error
    for name in "acd":
        assert events[name][-1].finish_reason == "length" and len(said(events[name])) == 4


def test_an_aborted_request_leaves_its_group_to_the_others(watch: RankWatch) -> None:
    groups = Groups(watch)
    events = groups.serve(submit("a", (5,), 4), submit("b", (6,), 50), submit("c", (7,), 4), submit("d", (8,), 4), Abort("b"))
    assert events["b"][-1].finish_reason == "abort"
    assert all(len(said(events[name])) == 4 for name in "acd")
