"""Admissions wait until what they would evict has a copy on the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tokenspeed.runtime.scheduling.blocks import Reuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.policy import AGENTIC, Policy
from tokenspeed.runtime.scheduling.request import TurnEnd
from tokenspeed.runtime.scheduling.scheduler import Scheduler

from .kv_helpers import compute, find, turn
from .shadow import make_request, make_scheduler
from .tier_helpers import Steps, manager, prompt, start

FIRST = replace(AGENTIC, session_admission=False)


def expected(kv: KvManager, name: str, tokens: list[int]) -> None:
    """A session's turn that ended with a tool call."""
    turn(kv, name, tokens)
    kv.end_turn(name, "tool_call")


def managed(blocks: int = 4, host_blocks: int = 4) -> tuple[KvManager, Steps]:
    kv = manager(blocks, host_blocks)
    kv.retention.by_reuse = kv.retention.supersede = kv.pool.save_first = True
    return kv, Steps(kv)


def test_what_has_a_copy_is_evicted_before_what_has_none() -> None:
    kv, steps = managed()
    expected(kv, "a", prompt(1))
    expected(kv, "b", prompt(2))
    assert len(steps.run(saved=1)[0]) == 1
    held = [start(kv, prompt(3)), start(kv, prompt(4)), start(kv, prompt(5))]
    assert len(held) == 3 and not find(kv, prompt(1)).units[0].indices and find(kv, prompt(2)).units[0].indices


def test_what_nobody_expects_to_use_goes_first_though_it_is_lost() -> None:
    kv, steps = managed()
    expected(kv, "a", prompt(1))
    steps.run()
    turn(kv, "", prompt(2))
    held = [start(kv, prompt(3)), start(kv, prompt(4)), start(kv, prompt(5))]
    assert len(held) == 3 and find(kv, prompt(2)).units == [] and find(kv, prompt(1)).units[0].indices


def test_who_is_to_have_a_copy_and_how_much_can_be_taken_without_loss() -> None:
    kv, steps = managed()
    expected(kv, "a", prompt(1, 2))
    assert kv.copied_or_free == 2 and not kv.would_lose(2, []) and kv.would_lose(3, [])
    own = find(kv, prompt(1, 2)).units
    assert not kv.would_lose(2, own) and not kv.would_lose(2, own[:1]) and kv.would_lose(3, own[:1])
    steps.launch(saved=1)
    assert kv.copied_or_free == 3
    steps.complete()
    assert kv.copied_or_free == 3 and kv.would_lose(4, [])
    steps.run()
    assert kv.copied_or_free == 4 and not kv.would_lose(4, [])


def test_nothing_is_waited_for_where_no_copy_can_be_made_or_none_is_worth_it() -> None:
    kv, steps = managed(host_blocks=1)
    expected(kv, "a", prompt(1))
    steps.run()
    turn(kv, "b", prompt(2))
    kv.end_turn("b", "end_of_turn")
    assert find(kv, prompt(2)).units[0].reuse is Reuse.USER and not kv.would_lose(4, []), "the host has something better"
    kv, _ = managed()
    turn(kv, "", prompt(1, 2))
    assert not kv.would_lose(4, [])
    kv, _ = managed(host_blocks=0)
    expected(kv, "a", prompt(1, 2))
    assert not kv.would_lose(4, [])


def test_without_the_rule_kinds_alone_count() -> None:
    """Of a kind, what has a copy is the older."""
    ends: tuple[tuple[TurnEnd, int], ...] = (("end_of_turn", 1), ("tool_call", 2))
    for end, stays in ends:
        kv = manager()
        kv.retention.by_reuse = True
        steps = Steps(kv)
        expected(kv, "a", prompt(1))
        steps.run()
        turn(kv, "b", prompt(2))
        kv.end_turn("b", end)
        held = [start(kv, prompt(number)) for number in (3, 4, 5)]
        there = [number for number in (1, 2) if (units := find(kv, prompt(number)).units) and units[0].indices]
        assert held and there == [stays]


def test_with_the_rule_what_has_a_copy_goes_first_though_it_is_expected_sooner() -> None:
    kv, steps = managed()
    expected(kv, "a", prompt(1))
    steps.run()
    turn(kv, "b", prompt(2))
    held = [start(kv, prompt(number)) for number in (3, 4, 5)]
    assert held and not find(kv, prompt(1)).units[0].indices and find(kv, prompt(2)).units[0].indices


def test_a_step_copies_no_more_than_it_may_of_all_kinds_together() -> None:
    kv, steps = managed(blocks=8, host_blocks=8)
    turn(kv, "", prompt(1))
    expected(kv, "a", prompt(2, 3))
    assert len(steps.run(saved=2)[0]) == 2


def order(kv: KvManager, saved: bool) -> list[tuple[int, int]]:
    """Prompts of `prompt` and their units, as the device evicts those with a copy, or those without."""
    assert kv.pool.tier
    first = [np.frombuffer(unit.tokens, "<i4")[0] for unit in (kv.pool.tier.saved if saved else kv.pool.tier.unsaved)]
    return [(token // 100, token % 100 // kv.identity_tokens) for token in first]


def test_what_was_copied_is_behind_what_was_before_tails_before_heads() -> None:
    kv = manager(blocks=8, host_blocks=8)
    steps = Steps(kv)
    turn(kv, "", prompt(1))
    steps.run()
    turn(kv, "", prompt(2, 2))
    turn(kv, "", prompt(3))
    steps.run()
    assert order(kv, saved=True) == [(1, 0), (2, 1), (2, 0), (3, 0)]


def test_who_used_a_unit_while_it_was_copied_leaves_it_behind_the_others() -> None:
    kv = manager(blocks=8, host_blocks=8)
    steps = Steps(kv)
    turn(kv, "", prompt(1))
    turn(kv, "", prompt(2))
    steps.launch()
    kv.release(start(kv, prompt(1)), -1)
    steps.complete()
    assert order(kv, saved=True) == [(2, 0), (1, 0)]


def test_who_ended_while_his_units_were_copied_leaves_the_tail_first() -> None:
    kv = manager(blocks=8, host_blocks=8)
    steps = Steps(kv)
    blocks = compute(kv, prompt(1, 3))
    steps.launch()
    kv.release(blocks, -1)
    steps.complete()
    assert order(kv, saved=True) == [(1, 2), (1, 1), (1, 0)]


def test_what_could_not_be_copied_is_where_it_was() -> None:
    kv = manager(blocks=8, host_blocks=8)
    steps = Steps(kv)
    for number in (1, 2, 3):
        turn(kv, "", prompt(number))
    steps.launch(saved=2)
    steps.fail()
    assert order(kv, saved=False) == [(1, 0), (2, 0), (3, 0)]


def test_a_step_makes_one_copy_at_least_for_who_waits() -> None:
    kv, steps = managed()
    expected(kv, "a", prompt(1, 4))
    assert steps.run(saved=0) == ([], [])
    kv.await_copies(1, [])
    assert kv.awaits_copies and len(steps.run(saved=0)[0]) == 1 and not kv.awaits_copies


def test_a_copy_of_what_is_less_wanted_gives_way_though_the_device_has_it_for_longer() -> None:
    kv, steps = managed(blocks=8, host_blocks=1)
    turn(kv, "", prompt(1))
    steps.run()
    held = start(kv, prompt(5, 6))
    expected(kv, "a", prompt(2))
    assert len(held.indices()) == 6 and len(steps.run()[0]) == 1 and find(kv, prompt(2)).units[0].host


def test_expectations_that_were_not_met_count_as_what_they_have_become() -> None:
    kv, _ = managed()
    expected(kv, "a", prompt(1, 2))
    assert kv.pool.tier and kv.pool.tier.unsaved.kinds() == [(Reuse.TOOL, 2)]
    kv.clock.now = 100.0
    assert kv.pool.tier.unsaved.kinds() == [(Reuse.USER, 2)]


def test_units_of_several_blocks() -> None:
    kv = manager(blocks=16, host_blocks=4, unit_blocks=2)
    kv.retention.by_reuse = kv.retention.supersede = kv.pool.save_first = True
    steps = Steps(kv)
    turn(kv, "", prompt(1, 4))
    assert len(steps.run()[0]) == 4
    held = start(kv, prompt(1, 4))
    expected(kv, "a", prompt(2, 4))
    assert kv.copied_or_free == 8 and not kv.would_lose(8, []) and kv.would_lose(9, [])
    assert steps.run() == ([], []), "the host is full, and much of the device can be taken"
    kv.await_copies(8, [])
    assert steps.run() == ([], []), "so much can be taken"
    kv.await_copies(7, [share.unit for share in held.sealed])
    assert steps.run() == ([], []), "what is in use is not among it"
    kv.await_copies(7, find(kv, prompt(2, 4)).units[:1])
    assert len(steps.run()[0]) == 4
    kv.release(held, -1)
    steps.run()
    expected(kv, "b", prompt(3, 2))
    assert kv.pool.tier and len(kv.pool.tier.saved) == 2 and kv.copied_or_free == 10


def test_units_of_several_blocks_that_have_a_copy_can_be_taken() -> None:
    kv = manager(blocks=16, host_blocks=8, unit_blocks=2)
    kv.retention.by_reuse = kv.pool.save_first = True
    steps = Steps(kv)
    expected(kv, "a", prompt(1, 4))
    steps.run()
    expected(kv, "b", prompt(2, 2))
    assert kv.copied_or_free == 14 and not kv.would_lose(14, []) and kv.would_lose(15, [])


def test_without_a_tier_all_can_be_taken() -> None:
    kv = manager(host_blocks=0)
    expected(kv, "a", prompt(1))
    assert kv.copied_or_free == 4 and not kv.would_lose(4, [])


def ended(policy: Policy = FIRST, host_blocks: int = 8) -> Scheduler:
    """A scheduler whose session "a" has ended a turn that fills most of the pool, with a tool call, and nothing is copied yet."""
    scheduler, kv = make_scheduler(8, host_blocks=host_blocks, policy=policy)
    scheduler.tick(0.0)
    kv.launch = lambda step_id, save_blocks: ((), ())  # no step makes copies so far
    scheduler.submit(make_request("a1", [1] * 25, 1, session="a"))
    while scheduler.has_work:
        serve(scheduler)
    scheduler.end_turn("a", "tool_call")
    del kv.launch
    return scheduler


def serve(scheduler: Scheduler) -> tuple[int, int]:
    """Rows of the next step, and blocks that it saves."""
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
    scheduler.check_integrity()
    return batch.rows, sum(len(copies.device) for copies in batch.saves)


def test_an_admission_waits_for_a_step_that_only_makes_copies() -> None:
    scheduler = ended()
    scheduler.submit(make_request("b1", [2] * 20, 1, session="b"))
    assert serve(scheduler) == (0, 6) and serve(scheduler) == (16, 0) and serve(scheduler)[0] == 4
    scheduler.submit(make_request("a2", [1] * 25 + [5, 3], 1, session="a"))
    while scheduler.has_work:
        serve(scheduler)
    stats = scheduler.stats()
    assert stats.prefix_hits == 24 and stats.host_hits == 12, "nothing of the first session was lost"


def test_an_admission_that_fits_what_is_free_does_not_wait() -> None:
    scheduler = ended()
    scheduler.submit(make_request("b1", [2] * 4, 1, session="b"))
    assert serve(scheduler)[0] == 4


def test_without_the_rule_what_has_no_copy_is_lost() -> None:
    scheduler = ended(replace(FIRST, save_first=False))
    scheduler.submit(make_request("b1", [2] * 20, 1, session="b"))
    assert serve(scheduler)[0] == 16
    again = make_request("a2", [1] * 26, 1, session="a")
    assert scheduler.cached_tokens(again, scheduler.chain(again)) < 24


def test_an_admission_waits_only_as_long_as_copies_are_made() -> None:
    """On a host of one block there can be one copy; a second would cost the first, which is needed sooner."""
    scheduler = ended(host_blocks=1)
    scheduler.submit(make_request("b1", [2] * 28, 1, session="b"))
    assert serve(scheduler) == (0, 1) and [serve(scheduler)[0] for _ in range(2)] == [16, 12]
