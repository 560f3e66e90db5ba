"""Every order of events of small models, until no new state turns up: no sampling, no luck."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenspeed.runtime.scheduling.policy import PLAIN

from .exploring import Explored, explore
from .small_world import Configuration, Prompt

SHARED_PREFIXES = (Prompt("a", (1, 1, 1), 3, 1), Prompt("b", (1, 1, 2), 2, 1), Prompt("c", (1, 1), 2, 0))
SHORTER = (Prompt("a", (1, 1, 1), 2, 1), Prompt("b", (1, 1, 2), 2, 1), Prompt("c", (1, 1), 1, 0))
RETURNING = (Prompt("a", (1, 1, 1), 2, 1), Prompt("b", (2, 2, 2), 3, 1), Prompt("c", (1, 1, 3), 2, 0))
LONG = (Prompt("a", (1, 1, 1, 1, 1), 2, 1), Prompt("b", (1, 1, 1, 1, 2), 2, 0), Prompt("c", (1, 1, 3), 2, 1))
AWAY = (
    Prompt("a", (1, 1, 1), 2, 1, "one"),
    Prompt("b", (2, 2, 2, 2, 2), 1, 1, "two"),
    Prompt("c", (1, 1, 3), 1, 0, "one"),
)
STORED = (Prompt("a", (1, 1, 1), 2, 1), Prompt("b", (2, 2, 2), 2, 0))
TURNS = (Prompt("a", (1, 1, 1), 2, 1, "one"), Prompt("b", (2, 2), 1, 1, "two", hint=50.0))
PARKED = (Prompt("a", (1, 1, 1), 2, 0, "one"), Prompt("b", (2, 2, 2), 1, 0, "two"))

BY_REUSE = replace(PLAIN, retention=True, supersede=True)
COPIES_FIRST = replace(BY_REUSE, save_first=True)
BY_SESSION = replace(BY_REUSE, session_admission=True)


def searched(configuration: Configuration, capsys: pytest.CaptureFixture[str]) -> Explored:
    found = explore(configuration)
    with capsys.disabled():
        print(f"\n  {found}")
    assert found.complete
    return found


def test_every_interleaving(capsys: pytest.CaptureFixture[str]):
    found = searched(Configuration(SHARED_PREFIXES), capsys)
    assert found.states > 800 and found.preempted > 100


def test_every_interleaving_with_a_step_in_flight(capsys: pytest.CaptureFixture[str]):
    found = searched(Configuration(SHORTER, in_flight=2), capsys)
    assert found.states > 1400 and found.preempted > 20 and found.hit > 700


def test_every_interleaving_with_a_host_tier(capsys: pytest.CaptureFixture[str]):
    found = searched(Configuration(RETURNING, blocks=3, host_blocks=2), capsys)
    assert found.states > 800 and found.preempted > 100 and found.reloaded > 30


def test_every_interleaving_where_copies_come_first(capsys: pytest.CaptureFixture[str]):
    """Admissions wait for copies; nothing gets stuck, and no step does nothing."""
    waiting = Configuration(AWAY, blocks=3, host_blocks=1, in_flight=2, policy=COPIES_FIRST)
    found = searched(waiting, capsys)
    assert found.states > 500 and found.reloaded > 30 and found.evicted > 100


def test_every_interleaving_with_a_tier_on_disk(capsys: pytest.CaptureFixture[str]):
    """An earlier process left two prefixes there; every job is done at any time, or fails."""
    small = Configuration(STORED, blocks=2, host_blocks=1, places=2, restored=((1, 1), (2, 2)), sequences=1)
    found = searched(small, capsys)
    assert found.states > 600 and found.fetched > 200 and found.refused > 200 and found.reloaded > 100 and found.evicted > 200


def test_every_interleaving_with_a_window(capsys: pytest.CaptureFixture[str]):
    """Sequences of seven tokens of which a row sees two, in units of two."""
    found = searched(Configuration(LONG, blocks=5, windows=((2, 4),), in_flight=2, chunk=2), capsys)
    assert found.states > 1500 and found.behind > 400 and found.hit > 800 and found.evicted > 50 and found.preempted > 500


def test_every_interleaving_of_turns_and_time(capsys: pytest.CaptureFixture[str]):
    """What was expected falls with time, of tools, of persons and of hints, and sessions are closed."""
    found = searched(Configuration(TURNS, blocks=2, policy=BY_REUSE, ticks=(61.0,), hints=("tool_call",)), capsys)
    assert found.states > 1000 and found.fallen > 20 and found.evicted > 200


def test_every_interleaving_of_sessions_that_are_parked(capsys: pytest.CaptureFixture[str]):
    found = searched(Configuration(PARKED, blocks=2, policy=BY_SESSION, ticks=(61.0,), hints=("close",)), capsys)
    assert found.parked > 10 and found.gone > 10
