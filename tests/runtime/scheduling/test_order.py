"""Who is next: due times, the bound on waiting, sessions and tenants that had more."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.scheduling.costs import NOMINAL_ROW_SECONDS
from tokenspeed.runtime.scheduling.fairness import SessionService, TenantShares
from tokenspeed.runtime.scheduling.policy import PLAIN, Policy
from tokenspeed.runtime.scheduling.request import Request
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.sequence import Status

from .shadow import make_request, make_scheduler

POLICY = Policy(aging_seconds=10, fair_seconds=5, patience_seconds=40, session_admission=False, cache_aware_order=0)


def one_at_a_time(policy: Policy = POLICY, weights: dict[str, float] | None = None) -> Scheduler:
    return make_scheduler(max_sequences=1, max_waiting=1000, policy=policy, weights=weights)[0]


def serve(scheduler: Scheduler) -> str | None:
    """One step; the request it admits."""
    batch = scheduler.schedule()
    if batch is None:
        return None
    scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
    scheduler.check_integrity()
    return batch.admissions[0].request_id if batch.admissions else None


def order(scheduler: Scheduler) -> list[str]:
    served = []
    while scheduler.has_work:
        name = serve(scheduler)
        if name is not None:
            served.append(name)
    return served


class Arrival(NamedTuple):
    after: float
    priority: int
    length: int
    outputs: int
    session: str
    tenant: str
    lead: float | None
    steps: int


arrivals = st.builds(
    Arrival,
    after=st.sampled_from([0.0, 0.5, 3.0, 25.0]),
    priority=st.integers(-1, 3),
    length=st.integers(1, 12),
    outputs=st.integers(1, 3),
    session=st.sampled_from(["", "a", "b"]),
    tenant=st.sampled_from(["", "x", "y"]),
    lead=st.sampled_from([None, None, -100.0, 0.0, 7.0]),
    steps=st.integers(0, 2),
)


@given(st.lists(arrivals, min_size=2, max_size=30), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nobody_is_overtaken_by_who_comes_much_later(coming: list[Arrival], tenants: bool) -> None:
    scheduler, now = one_at_a_time(), 0.0
    came: dict[str, tuple[float, int]] = {}

    def step() -> None:
        served = serve(scheduler)
        if served is None:
            return
        later, priority = came[served]
        waiting = [name for name, sequence in scheduler._state.requests.items() if sequence.status is Status.WAITING]
        for since, worse in (came[name] for name in waiting):
            bound = POLICY.aging_seconds * (worse - priority + 1) + POLICY.fair_seconds
            bound = min(bound, 2 * POLICY.patience_seconds) + POLICY.patience_seconds * tenants
            assert later <= since + bound, f"who came {since} s waits for {served} of {later} s"

    for number, arrival in enumerate(coming):
        now += arrival.after
        scheduler.tick(now)
        scheduler.submit(
            make_request(
                str(number),
                [number] * arrival.length,
                arrival.outputs,
                priority=arrival.priority,
                session=arrival.session,
                tenant=arrival.tenant if tenants else "",
                deadline=None if arrival.lead is None else now + arrival.lead,
            )
        )
        came[str(number)] = now, arrival.priority
        for _ in range(arrival.steps):
            step()
    while scheduler.has_work:
        step()


def test_the_lowest_priority_is_served_while_better_ones_never_end() -> None:
    scheduler = one_at_a_time()
    scheduler.tick(0)
    scheduler.submit(make_request("low", [1], 1, priority=3))
    served, now = [], 0.0
    while "low" not in served:
        for _ in range(2):
            scheduler.submit(make_request(f"high{now}-{len(served)}-{_}", [2], 1))
        served.append(serve(scheduler))
        now += 1.0
        scheduler.tick(now)
    assert len(served) == 62 + 1, "all that came up to three times a step of priority later, at two a second"


def test_a_preempted_request_keeps_its_place() -> None:
    scheduler = one_at_a_time()
    scheduler.tick(0)
    scheduler.submit(make_request("low", [1], 5, priority=2))
    assert serve(scheduler) == "low"
    scheduler.tick(1)
    scheduler.submit(make_request("high", [2], 1))
    scheduler.submit(make_request("low too", [2], 1, priority=2))
    assert order(scheduler) == ["high", "low", "low too"] and scheduler.stats().preemptions == 1


def test_who_is_due_is_not_preempted() -> None:
    scheduler = one_at_a_time()
    scheduler.tick(0)
    scheduler.submit(make_request("low", [1], 9, priority=1))
    serve(scheduler)
    scheduler.tick(11)
    scheduler.submit(make_request("high", [2], 1))
    assert order(scheduler) == ["high"] and scheduler.stats().preemptions == 0


def test_without_a_clock_priority_and_arrival_rule_alone() -> None:
    for policy in (POLICY, PLAIN):
        scheduler = one_at_a_time(policy)
        for number, priority in enumerate((5, 10**9, -(10**9), 5, 0)):
            scheduler.submit(make_request(str(number), [1], 1, priority=priority, session="s", deadline=-1.0))
        assert order(scheduler) == ["2", "4", "0", "3", "1"]


def test_a_deadline_gains_no_more_than_a_step_of_priority() -> None:
    scheduler = one_at_a_time()
    scheduler.tick(100)
    names = (("plain", 0, None), ("soon", 1, 101.0), ("better", -1, None), ("long past", 0, -50.0), ("relaxed", 0, 500.0))
    for name, priority, deadline in names:
        scheduler.submit(make_request(name, [1], 1, priority=priority, deadline=deadline))
    assert order(scheduler) == ["better", "long past", "plain", "relaxed", "soon"]


def test_the_session_that_had_less_goes_first() -> None:
    scheduler = one_at_a_time()
    scheduler.tick(0)
    scheduler.submit(make_request("turn", [1] * 50, 5, session="greedy"))
    order(scheduler)
    scheduler.tick(1)
    for name, session in (("next", "greedy"), ("first", "modest"), ("alone", "")):
        scheduler.submit(make_request(name, [2], 1, session=session))
    assert order(scheduler) == ["first", "alone", "next"]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=6, max_size=60),
    st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tenants_that_wait_are_served_by_weight(coming: list[tuple[int, int]], weights: tuple[float, ...]) -> None:
    """While two tenants both have requests waiting, what they had by weight differs by their largest requests at most."""
    scheduler = one_at_a_time(weights=dict(zip("012", weights, strict=True)))
    left, had = dict.fromkeys("012", 0), dict.fromkeys("012", 0.0)
    for number, (tenant, length) in enumerate(coming):
        scheduler.submit(make_request(f"{tenant}-{number}-{length}", [number] * length, 1, tenant=str(tenant)))
        left[str(tenant)] += 1
    largest = max(length for _, length in coming)
    backlogged = {name for name, count in left.items() if count}
    while scheduler.has_work:
        name = serve(scheduler)
        if name is None:
            continue
        tenant, _, length = name.split("-")
        had[tenant] += int(length) / weights[int(tenant)]
        left[tenant] -= 1
        for one in backlogged:
            for other in backlogged:
                limit = largest / weights[int(one)] + largest / weights[int(other)]
                assert abs(had[one] - had[other]) <= limit + 1e-6
        backlogged = {name for name in backlogged if left[name]}


def test_a_tenant_that_comes_late_finds_its_share() -> None:
    """Its requests do not wait behind all that another one queued before, nor does it get what it did not use."""
    scheduler = one_at_a_time()
    for number in range(20):
        scheduler.submit(make_request(f"x{number}", [1, number], 1, tenant="x"))
    for _ in range(10):
        serve(scheduler)
    for number in range(4):
        scheduler.submit(make_request(f"y{number}", [2, number], 1, tenant="y"))
    assert "".join(name[0] for name in order(scheduler)) == "yxyxyxyxxxxxxx"


def test_service_is_what_was_computed() -> None:
    scheduler = one_at_a_time()
    scheduler.submit(make_request("a", [1] * 10, 5, session="s", tenant="t"))
    order(scheduler)
    state = scheduler._state
    assert state.shares is not None
    expected = (10 + 4) * NOMINAL_ROW_SECONDS
    assert abs(state.sessions.attained("s", 0) - expected) < 1e-9 and abs(state.shares.tag("t") - expected) < 1e-9


def test_accounts_fade_and_are_bounded() -> None:
    service, shares = SessionService(), TenantShares()
    service.add("s", 8.0, 0.0)
    assert service.attained("s", 120.0) == 2.0 and service.attained("unknown", 5.0) == 0
    for number in range(10_000):
        service.add(str(number), 1.0, float(number))
        shares.enter(str(number))
        shares.start(str(number), 1.0)
        shares.leave(str(number))
    assert len(service) <= 4096 and len(shares) <= 4097
    service.forget("9999")
    assert service.attained("9999", 9999.0) == 0


def test_requests_do_not_pile_up_in_the_queue_of_tenants() -> None:
    scheduler = one_at_a_time()
    for number in range(2000):
        tenant = str(number % 3)
        scheduler.submit(Request(str(number), make_request("", [1]).tokens, 1, tenant=tenant))
        if number % 10:
            scheduler.abort(str(number))
    queue = scheduler._state.waiting._ready
    assert len(queue) == 200 and len(queue._all) <= 2 * 200 + 1 and len(queue._turns) <= 64
    assert len(order(scheduler)) == 200


def test_who_has_a_cached_prefix_goes_before_who_is_due_about_as_soon() -> None:
    for window, expected in ((1.0, ["b", "a", "c"]), (0.0, ["a", "b", "c"])):
        scheduler = one_at_a_time(Policy(cache_aware_order=window))
        scheduler.tick(0)
        scheduler.submit(make_request("before", [1] * 16, 1))
        order(scheduler)
        for now, name, token in ((1.0, "a", 2), (1.9, "b", 1), (2.1, "c", 1)):
            scheduler.tick(now)
            scheduler.submit(make_request(name, [token] * 20, 1))
        assert order(scheduler) == expected, "c is due too late to go before a"


def test_sequences_of_like_size_take_turns_together() -> None:
    scheduler, _ = make_scheduler(64, max_rows=64, max_decode_rows=2, prefill_chunk=64)
    for number, length in enumerate((5, 30, 6, 31)):
        scheduler.submit(make_request(str(number), [number] * length, 20))
    seen = []
    for _ in range(7):
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
        seen.append(batch.request_ids[: batch.decode_rows])
    assert seen[-4:] in ([("0", "2"), ("1", "3")] * 2, [("1", "3"), ("0", "2")] * 2)
