"""What the first rank tells the others: each call arrives as it was made."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import fields
from typing import cast

import numpy as np
import pytest
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime import rank_watch
from tokenspeed.runtime.collectives import Collectives
from tokenspeed.runtime.executor_interface import Started, StepResult
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.mesh import Rank
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.rank_watch import RanksLost, RankWatch
from tokenspeed.runtime.ranked_executor import RankedExecutor, follow, step_batch, step_message
from tokenspeed.runtime.scheduling.step import IntArray, StepBatch

from .fake_executor import EchoExecutor

BATCH = fixed_batch([Rows(1, 4, [7]), Rows(0, 0, [1, 2, 3])], 2, 64)


class Line:
    """Collectives of two ranks in one process."""

    def __init__(self) -> None:
        self.messages: queue.Queue[bytes] = queue.Queue()

    def send(self, message: bytes) -> None:
        self.messages.put(message)

    def receive(self) -> bytes:
        return self.messages.get_nowait()


@pytest.fixture
def watch() -> Iterator[RankWatch]:
    """Of a second rank that has not come."""
    made = RankWatch(2, 60.0, print)
    yield made
    made.close()


def test_a_step_arrives_as_it_was_sent() -> None:
    found = step_batch(step_message(BATCH))
    unread = {"request_ids", "logit_request_ids", "admissions"}
    for field in fields(StepBatch):
        if field.name not in unread:
            np.testing.assert_array_equal(getattr(found, field.name), getattr(BATCH, field.name), field.name)
    assert len(found.logit_request_ids) == len(BATCH.logit_request_ids)


class Recording(EchoExecutor):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self.calls.append((slot, sampling, end_tokens, prompt.tolist(), output.tolist()))

    def start(self, batch: StepBatch) -> Started:
        self.calls.append(("step", batch.token_ids.tolist()))
        return lambda: StepResult(np.zeros(len(batch.logit_rows), np.int32), ())


def test_the_others_do_what_the_first_does(watch: RankWatch) -> None:
    line, first, other, begun = Line(), Recording(), Recording(), list[int]()
    ranked = RankedExecutor(first, cast(Collectives, line), watch)
    prompt, output = np.array([5, 6], np.int32), np.array([], np.int32)
    ranked.admit(3, SamplingParameters(max_tokens=4, seed=9), (1, 2), prompt, output)
    ranked.start(BATCH)
    ranked.start(BATCH)
    ranked.close()
    follow(other, cast(Collectives, line), begun.append)
    assert other.calls == first.calls and len(first.calls) == 3
    assert begun == [BATCH.step_id] * 2 and watch.progress.last == BATCH.step_id


def test_an_error_of_a_step_ends_all(watch: RankWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "_LAST_WORDS_SECONDS", 0.0)
    executor = EchoExecutor()
    executor.failures = [RuntimeError("Connection closed by peer")]
    ranked = RankedExecutor(executor, cast(Collectives, Line()), watch)
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
