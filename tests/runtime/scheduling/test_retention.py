from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenspeed.runtime.scheduling import retention
from tokenspeed.runtime.scheduling.blocks import Reuse, Unit
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv
from tokenspeed.runtime.scheduling.order import Clock, EvictionOrder, standing
from tokenspeed.runtime.scheduling.retention import Owner, Retention
from tokenspeed.runtime.scheduling.sequence_blocks import Hits

from .kv_helpers import compute, find, turn


def manager(blocks: int = 8, by_reuse: bool = True, supersede: bool = True, host_blocks: int = 0) -> KvManager:
    kv = KvManager(blocks, 4, 4, "kv", host_blocks=host_blocks)
    kv.retention.by_reuse, kv.retention.supersede = by_reuse, supersede
    return kv


def prompt(number: int, units: int = 2) -> list[int]:
    return [100 * number + token for token in range(4 * units)]


def evict(kv: KvManager, count: int) -> None:
    """Take `count` blocks that have to be evicted, and give them back."""
    blocks = kv.open(Hits([], 0))
    kv.grow(blocks, len(kv.pool.free) + count)
    kv.release(blocks, -1)
    check_kv(kv)


def left(kv: KvManager, *prompts: list[int]) -> list[int]:
    return [len(find(kv, tokens).units) for tokens in prompts]


def unit_of(reuse: Reuse, since: float = 0.0, hint: float = 0.0) -> Unit:
    unit = Unit(bytes([reuse]), b"", b"", (0,))
    unit.reuse, unit.since, unit.hint = reuse, since, hint
    return unit


def test_the_order_is_by_kind_then_by_age():
    order = EvictionOrder[Unit](Clock())
    units = [unit_of(reuse, hint=10.0) for reuse in (Reuse.SHARED, Reuse.TOOL, Reuse.GONE, Reuse.USER, Reuse.IDLE, Reuse.TOOL)]
    for unit in units:
        order.add(unit, unit)
    front = unit_of(Reuse.IDLE)
    order.add(front, front, first=True)
    assert list(order) == [units[place] if place >= 0 else front for place in (2, -1, 4, 3, 1, 5, 0)]
    assert order.lowest() is Reuse.GONE and order.first() is units[2] and len(order) == 7
    assert order.take(units[3]) is units[3] and units[3] not in order
    assert [order.pop() for _ in range(6)] == [units[place] if place >= 0 else front for place in (2, -1, 4, 1, 5, 0)]
    assert order.first() is None and order.lowest() is None
    with pytest.raises(KeyError):
        order.pop()


def test_expectations_fall_step_by_step():
    clock = Clock()
    order = EvictionOrder[Unit](clock)
    tool, hinted, shared = unit_of(Reuse.TOOL), unit_of(Reuse.USER, hint=500.0), unit_of(Reuse.SHARED)
    for unit in (tool, hinted, shared):
        order.add(unit, unit)
    for now, wanted in (
        (59.0, [hinted, tool, shared]),
        (60.0, [hinted, tool, shared]),  # the tool's unit is as one that waits for a person now
        (300.0, [tool, hinted, shared]),
        (500.0, [tool, hinted, shared]),
        (900.0, [tool, hinted, shared]),
    ):
        clock.now = now
        order.lowest()
        assert list(order) == wanted, now
    assert order.lowest() is Reuse.IDLE
    late = unit_of(Reuse.TOOL)
    order.add(late, late)  # what is added late has fallen already
    assert list(order)[-1] is late


@pytest.mark.parametrize("leaves", [lambda order, unit: order.take(unit), lambda order, _: order.pop()])
def test_what_fell_behind_another_is_seen_when_that_one_goes(leaves: Callable[[EvictionOrder[Unit], Unit], Unit]):
    """At the same moment as well."""
    clock = Clock()
    order = EvictionOrder[Unit](clock)
    longer, shorter = unit_of(Reuse.HINTED, hint=1000.0), unit_of(Reuse.HINTED, hint=100.0)
    for unit in (longer, shorter):
        order.add(unit, unit)
    clock.now = 200.0
    assert order.lowest() is Reuse.HINTED
    assert leaves(order, longer) is longer
    assert order.lowest() is Reuse.IDLE


def test_without_switches_it_is_least_recently_used():
    kv = manager(by_reuse=False, supersede=False)
    turn(kv, "one", prompt(1))
    kv.end_turn("one", "tool_call")
    turn(kv, "two", prompt(2))
    turn(kv, "two", [*prompt(2, 1), 7, 7, 7, 7])
    kv.close_session("two")
    evict(kv, 2)
    assert left(kv, prompt(1), prompt(2)) == [0, 2] and len(kv.retention) == 0


def test_a_tool_at_work_keeps_longer_than_a_person_and_both_longer_than_none():
    kv = manager()
    turn(kv, "tool", prompt(1))
    kv.end_turn("tool", "tool_call")
    turn(kv, "user", prompt(2))
    kv.end_turn("user", "end_of_turn")
    turn(kv, "", prompt(3))
    turn(kv, "", prompt(4), hint=300.0)
    evict(kv, 2)
    assert left(kv, prompt(1), prompt(2), prompt(3), prompt(4)) == [2, 2, 0, 2]
    evict(kv, 2)
    assert left(kv, prompt(1), prompt(2), prompt(4)) == [2, 2, 0]
    evict(kv, 1)
    assert left(kv, prompt(1), prompt(2)) == [2, 1]


def test_hints_decay():
    kv = manager(4)
    turn(kv, "", prompt(1), hint=300.0)
    kv.clock.now = 300.0
    turn(kv, "", prompt(2))
    kv.clock.now = 301.0
    turn(kv, "", prompt(3))  # the hint has no effect any more, but its end was found only now: the more recent of the idle
    assert left(kv, prompt(2), prompt(3)) == [0, 2]


def test_what_a_turn_replaces_goes_first():
    kv = manager()
    first = [*prompt(1, 2), *prompt(2, 2)]
    turn(kv, "two", prompt(5, 1))
    turn(kv, "one", first)
    turn(kv, "one", [*prompt(1, 2), *prompt(3, 1)])
    evict(kv, 2)
    assert left(kv, first, prompt(5, 1), [*prompt(1, 2), *prompt(3, 1)]) == [2, 1, 3]


def test_another_conversation_of_a_session_replaces_nothing():
    kv = manager(by_reuse=False)
    turn(kv, "one", prompt(1, 4))
    turn(kv, "one", [*prompt(1, 1), *prompt(3, 1)])
    assert all(block.unit.reuse is Reuse.IDLE for block in kv.pool.cached)


def test_what_is_shared_is_not_replaced_and_stays_longest():
    kv = manager()
    turn(kv, "one", prompt(1, 3))
    turn(kv, "two", prompt(1, 3))
    turn(kv, "two", prompt(1, 2))
    kv.close_session("one")
    kv.close_session("two")
    turn(kv, "three", prompt(4, 2))
    kv.end_turn("three", "tool_call")
    evict(kv, 2)
    assert left(kv, prompt(1, 3), prompt(4, 2)) == [3, 0]


def test_a_closed_session_goes_first():
    kv = manager()
    turn(kv, "one", prompt(1))
    turn(kv, "", prompt(2))
    kv.close_session("one")
    kv.close_session("unknown")
    evict(kv, 2)
    assert left(kv, prompt(1), prompt(2)) == [0, 2]


def test_a_hint_moves_units_that_are_not_the_next():
    kv = manager()
    for name, number in (("one", 1), ("two", 2), ("three", 3)):
        turn(kv, name, prompt(number))
    kv.end_turn("two", "tool_call")
    kv.close_session("three")
    evict(kv, 2)
    assert left(kv, prompt(1), prompt(2), prompt(3)) == [2, 2, 0]
    turn(kv, "four", prompt(4, 1))
    evict(kv, 3)
    assert left(kv, prompt(1), prompt(2), prompt(4, 1)) == [0, 2, 0]


def test_a_session_closed_while_it_runs_goes_first_at_its_end():
    kv = manager()
    turn(kv, "one", prompt(1))
    blocks = compute(kv, prompt(1), owner=retention.Owner("one", True, ()))
    kv.close_session("one")
    kv.release(blocks, -1)
    turn(kv, "", prompt(2))
    evict(kv, 1)
    assert left(kv, prompt(1), prompt(2)) == [1, 2]


def test_the_preempted_are_expected_back():
    kv = manager()
    blocks = compute(kv, prompt(1))
    kv.release(blocks, -1, ended=False)
    assert {block.unit.reuse for block in kv.pool.cached} == {Reuse.TOOL}


def test_sessions_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "MOST_SESSIONS", 3)
    kv = manager(2)
    for number in range(10):
        turn(kv, f"s{number}", prompt(number, 1))
    assert len(kv.retention) == 3
    assert KvManager(8, 4, 8, "kv", host_blocks=4).retention._most_digests == 28
    for number in range(10):
        turn(kv, f"t{number}", prompt(number, 2))
        assert kv.retention._digests <= 12
    assert sum(len(session.digests) for session in kv.retention._sessions.values()) == kv.retention._digests <= 12


def test_what_still_stands_of_an_expectation():
    for reuse, hint, ages in (
        (Reuse.TOOL, 500.0, {59: Reuse.TOOL, 60: Reuse.USER, 299: Reuse.USER, 300: Reuse.HINTED, 500: Reuse.IDLE}),
        (Reuse.USER, 0.0, {299: Reuse.USER, 300: Reuse.IDLE}),
        (Reuse.SHARED, 5000.0, {899: Reuse.SHARED, 900: Reuse.HINTED, 5000: Reuse.IDLE}),
        (Reuse.HINTED, 10.0, {0: Reuse.HINTED, 9: Reuse.HINTED, 10: Reuse.IDLE}),
        (Reuse.IDLE, 10.0, {0: Reuse.IDLE}),
        (Reuse.GONE, 10.0, {0: Reuse.GONE, 10000: Reuse.GONE}),
    ):
        unit = unit_of(reuse, since=1000.0, hint=hint)
        for age, wanted in ages.items():
            assert standing(unit, 1000.0 + age) is wanted, (reuse, age)
    assert Clock().now == 0.0


def test_what_fell_is_found_where_it_fell():
    clock = Clock()
    order = EvictionOrder[Unit](clock)
    unit = unit_of(Reuse.TOOL)
    order.add(unit, unit)
    clock.now = 400.0
    assert order.lowest() is Reuse.IDLE and order.take(unit) is unit and len(order) == 0


def digests(*numbers: int) -> list[bytes]:
    return [bytes([number]) for number in numbers]


def ended_turn(known: Retention, session: str, *numbers: int) -> list[bytes]:
    owner = Owner(session, True, digests(*numbers))
    replaced = [*known.begin(owner)]
    known.end(owner)
    assert known._digests == sum(len(session.digests) for session in known._sessions.values())
    return replaced


def test_which_units_a_turn_replaces():
    known = Retention(Clock(), 100, supersede=True)
    assert ended_turn(known, "one", 0, 1, 2, 3, 4) == []
    assert ended_turn(known, "one", 0, 1, 9) == []  # less than half is another conversation
    assert ended_turn(known, "one", 0, 1, 9, 10) == []
    assert ended_turn(known, "one", 0, 1, 11) == digests(10, 9)  # half is not
    assert ended_turn(known, "one", 0, 1, 11, 12, 13) == []
    assert ended_turn(known, "one", 0, 1, 11) == digests(13, 12)
    assert ended_turn(known, "two", 0, 1) == [] and len(known) == 2
    assert ended_turn(known, "three", 7, 8) == [] and ended_turn(known, "three", 0, 1) == []  # nothing in common
    known = Retention(Clock(), 100, supersede=True)
    ended_turn(known, "one", 0, 1)
    ended_turn(known, "two", 0, 1)
    unnamed = Owner("three", False, digests(1))
    assert [*known.begin(unnamed)] == [] and len(known) == 2
    assert [*known.close("two")] == digests(1, 0) and [*known.end_turn("two", "tool_call")] == []


def test_without_supersede_nothing_is_replaced_and_without_both_nothing_is_known():
    known = Retention(Clock(), 100, by_reuse=True)
    assert ended_turn(known, "one", 0, 1, 2) == [] and ended_turn(known, "one", 0, 1) == [] and len(known) == 1
    assert [*known.close("one")] == []
    assert [*known.end_turn("one", "tool_call")] == [(b"\x01", Reuse.TOOL), (b"\x00", Reuse.TOOL)]
    plain = Retention(Clock(), 100)
    assert ended_turn(plain, "one", 0) == [] and len(plain) == 0 and not plain.by_reuse and not plain.supersede


def expected(
    known: Retention, owner: Owner, *, ended: bool = True, shared: bool = False, hint: float = 0.0
) -> tuple[Reuse, float]:
    unit = unit_of(Reuse.IDLE, hint=hint)
    unit.shared = shared
    known.expect(unit, owner, ended)
    assert unit.since == known._clock.now
    return unit.reuse, unit.hint


def test_what_is_expected_of_what_a_sequence_gives_back():
    clock = Clock()
    clock.now = 5.0
    known = Retention(clock, 100, by_reuse=True, supersede=True)
    one, nobody, hinting = Owner("one", True, digests(1), 300.0), Owner("r", False, ()), Owner("r", False, (), 60.0)
    assert expected(known, one) == (Reuse.USER, 300.0)  # a session that was forgotten
    ended_turn(known, "one", 1)
    assert expected(known, one) == (Reuse.USER, 300.0)
    list(known.end_turn("one", "tool_call"))
    assert expected(known, one, hint=900.0) == (Reuse.TOOL, 300.0)
    list(known.end_turn("one", "end_of_turn"))
    assert expected(known, one) == (Reuse.USER, 300.0)
    assert expected(known, one, ended=False) == (Reuse.TOOL, 300.0)
    assert expected(known, one, shared=True, hint=900.0) == (Reuse.SHARED, 900.0)
    assert expected(known, nobody) == (Reuse.IDLE, 0.0) and expected(known, hinting) == (Reuse.HINTED, 60.0)
    list(known.close("one"))
    assert expected(known, one)[0] is Reuse.GONE and expected(known, one, ended=False)[0] is Reuse.TOOL
    assert expected(known, one, shared=True)[0] is Reuse.SHARED
    known.supersede = False
    assert expected(known, one)[0] is Reuse.USER
    known.by_reuse = False
    unit = unit_of(Reuse.TOOL)
    known.expect(unit, one, True)
    assert unit.reuse is Reuse.IDLE
    known.by_reuse = known.supersede = True
    list(known.begin(one))  # another turn: how the last one ended says nothing any more
    assert expected(known, one)[0] is Reuse.USER


def test_sessions_that_never_end_a_turn_are_forgotten_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "MOST_SESSIONS", 3)
    known = Retention(Clock(), 100, by_reuse=True)
    for number in range(9):
        list(known.begin(Owner(f"s{number}", True, ())))
        assert len(known) <= 3


def test_long_chains_are_forgotten_at_the_end_of_a_turn():
    known = Retention(Clock(), 5, by_reuse=True)
    ended_turn(known, "zero", 0, 1)
    ended_turn(known, "one", 0, 1, 2)
    assert len(known) == 2
    ended_turn(known, "one", 0, 1, 2, 3)
    assert len(known) == 1
    ended_turn(known, "two", 0, 1, 2, 3)
    assert [*known._sessions] == ["two"]
    ended_turn(known, "two", *range(9))  # one is remembered, however long
    assert len(known) == 1


def test_who_has_used_a_unit():
    known, unit = Retention(Clock(), 100), unit_of(Reuse.IDLE)
    one, two = Owner("one", True, ()), Owner("two", True, ())
    known.used(unit, one)
    known.used(unit, one)
    assert unit.session == "one" and not unit.shared
    known.used(unit, two)
    assert unit.session == "one" and unit.shared


def test_a_parked_session_is_expected_no_more():
    kv = manager(16)
    for name, number in (("one", 1), ("two", 2)):
        turn(kv, name, prompt(number))
        kv.end_turn(name, "tool_call")
    units = find(kv, prompt(1)).units
    turn(kv, "", prompt(3))
    kv.clock.now = 5.0
    kv.park_session("one")
    kv.park_session("unknown")
    assert [(unit.reuse, unit.since) for unit in units] == [(Reuse.IDLE, 5.0)] * 2
    assert [block.unit for block in kv.pool.cached][2:4] == units[::-1], "after the idle, before what is expected"
    turn(kv, "", prompt(4))
    kv.clock.now = 6.0
    kv.park_session("one")  # again: they keep their place
    assert {unit.since for unit in units} == {5.0}
    assert [block.unit for block in kv.pool.cached][2:4] == units[::-1]
    units[0].reuse = Reuse.GONE
    kv.park_session("one")
    assert units[0].reuse is Reuse.GONE
    check_kv(kv)


def test_parking_spares_what_others_use_and_what_is_used_now():
    kv = manager(16)
    turn(kv, "one", prompt(1, 4))
    evict(kv, 1)  # its last unit
    units = find(kv, prompt(1, 4)).units
    assert len(units) == 3
    blocks = compute(kv, prompt(1, 1), owner=retention.Owner("one", False, ()))
    turn(kv, "two", prompt(1, 2))
    units[0].shared = False  # in use
    kv.park_session("one")
    assert [unit.reuse for unit in units] == [Reuse.SHARED, Reuse.SHARED, Reuse.IDLE]
    kv.close_session("one")
    assert [unit.reuse for unit in units] == [Reuse.SHARED, Reuse.SHARED, Reuse.GONE] and blocks.live


def test_another_sessions_units_are_not_parked():
    kv = manager(16)
    tokens = prompt(1, 1)
    turn(kv, "one", tokens)
    unit = find(kv, tokens).units[0]
    unit.session = "two"
    kv.park_session("one")
    assert unit.reuse is Reuse.USER


def test_which_units_are_parked():
    known = Retention(Clock(), 100, by_reuse=True)
    ended_turn(known, "one", 0, 1, 2)
    assert [*known.digests("one")] == digests(2, 1, 0) and [*known.digests("two")] == []
    known.by_reuse = False
    assert [*known.digests("one")] == []


def test_units_that_a_hint_moves_keep_the_order_of_saving():
    kv = manager(host_blocks=4)
    for name, number in (("one", 1), ("two", 2)):
        turn(kv, name, prompt(number))
        kv.end_turn(name, "tool_call")
    assert kv.pool.tier is not None
    assert [*kv.pool.tier.unsaved] == [block.unit for block in kv.pool.cached]


def test_a_hint_that_says_nothing_new_changes_nothing():
    kv = manager()
    for name, number in (("one", 1), ("two", 2)):
        turn(kv, name, prompt(number))
        kv.end_turn(name, "tool_call")
    order = [block.unit for block in kv.pool.cached]
    kv.clock.now = 5.0
    kv.end_turn("one", "tool_call")
    assert [block.unit for block in kv.pool.cached] == order and {unit.since for unit in order} == {0.0}
    for name in ("one", "two", "one"):
        kv.close_session(name)
    assert [block.unit for block in kv.pool.cached] == order and {unit.reuse for unit in order} == {Reuse.GONE}


@pytest.mark.parametrize("length", range(7))
def test_what_two_chains_have_in_common(length: int):
    for common in range(length + 1):
        for other in range(common, 8):
            chains = [*range(length)], [*range(common), *range(50, 50 + other - common)]
            assert retention._common(*(digests(*chain) for chain in chains)) == common
