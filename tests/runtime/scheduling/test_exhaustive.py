"""Every order of events of small models, until no new state turns up: no sampling, no luck."""

from __future__ import annotations

import pytest

from .small_world import Configuration, explore

SHARED_PREFIXES = (("a", (1, 1, 1), 3, 1), ("b", (1, 1, 2), 2, 1), ("c", (1, 1), 2, 0))
RETURNING = (("a", (1, 1, 1), 2, 1), ("b", (2, 2, 2), 3, 1), ("c", (1, 1, 3), 2, 0))


@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_interleaving(in_flight: int, capsys: pytest.CaptureFixture[str]):
    found = explore(Configuration(SHARED_PREFIXES, in_flight=in_flight))
    with capsys.disabled():
        print(f"\n  {in_flight} in flight: {found}")
    assert found.complete and found.states > 800 and found.preempted > 100


@pytest.mark.parametrize(("in_flight", "host_blocks"), [(1, 2), (2, 1)])
def test_every_interleaving_with_a_host_tier(in_flight: int, host_blocks: int, capsys: pytest.CaptureFixture[str]):
    found = explore(Configuration(RETURNING, blocks=3, host_blocks=host_blocks, in_flight=in_flight))
    with capsys.disabled():
        print(f"\n  host tier, {in_flight} in flight: {found}")
    assert found.complete and found.states > 800 and found.preempted > 100 and found.reloaded > 30
