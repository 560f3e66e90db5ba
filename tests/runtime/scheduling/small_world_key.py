"""The state of a small world up to step numbers: worlds with equal keys behave alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from tokenspeed.runtime.scheduling.blocks import Unit
from tokenspeed.runtime.scheduling.host_tier import HostTier
from tokenspeed.runtime.scheduling.order import EvictionOrder, standing
from tokenspeed.runtime.scheduling.pool import BlockPool
from tokenspeed.runtime.scheduling.sequence_blocks import SequenceBlocks
from tokenspeed.runtime.scheduling.sessions import Session
from tokenspeed.runtime.scheduling.slots import Phase
from tokenspeed.runtime.scheduling.windows import WindowBlocks

from .small_world import World

Key = tuple[object, ...]
Times = tuple[float, ...]


def key_of(world: World) -> Key:
    """`world.look()` comes first."""
    state, kv = world.scheduler._state, world.kv
    first, times = state.next_step, _times(world)
    running = sorted(state.running.items())
    return (
        world.submitted,
        world.ticked,
        world.told,
        world.read_in_vain & frozenset(state.requests),
        state.clock,
        _requests(world),
        _flights(world),
        _slots(world),
        tuple((slot, _holder(s.blocks, times)) for slot, s in running if s.blocks is not None),
        tuple((step - first, tuple(_holder(holder, times) for holder in kv._retiring[step])) for step in kv.retiring_steps()),
        tuple(s.request_id for s in state.loading.values()),
        *(_pool(pool, first, times) for pool in (kv.pool, *(window.pool for window in kv.windows))),
        tuple(tuple(found.items()) for found in (*world.states, *world.hosted)),
        tuple(_contents(states, contents) for states, contents in zip(world.states, world.device, strict=True)),
        tuple(_contents(states, contents) for states, contents in zip(world.hosted, world.host, strict=True)),
        tuple((name, tuple(s.digests), s.end, s.closed) for name, s in kv.retention._sessions.items()),
        _sessions(world),
        _disk(world),
    )


def _times(world: World) -> Times:
    """Now and to come; none where nothing is expected of units."""
    rules = world.configuration.policy
    if not (rules.retention or rules.supersede):
        return ()
    return tuple(accumulate(world.configuration.ticks[world.ticked :], initial=world.now))


def _requests(world: World) -> Key:
    state, planner = world.scheduler._state, world.scheduler._planner
    blocked = planner._blocked
    listed = tuple(
        (
            name,
            (s.status.value, s.slot, s.tokens().tobytes(), s.computed, s.awaited_step > state.completed_step, s.had_rows),
            (s.due, s.parked, s.fetched, frozenset(job.unit.digest for job in world.jobs if job.number in s.fetches)),
        )
        for name, s in state.requests.items()
    )
    return listed, blocked and (blocked[0].request_id, blocked[1]), planner._copies_first._safe


def _flights(world: World) -> Key:
    state = world.scheduler._state
    return tuple(
        (
            flight.step_id - state.next_step,
            flight.slots.tobytes(),
            (state.slots.binding[flight.slots] - flight.bindings).tobytes(),
            flight.computed.tobytes(),
            tuple((slot, s.request_id, s.status.value) for slot, s in sorted(flight.preempted.items())),
        )
        for flight in state.flights
    )


def _slots(world: World) -> Key:
    state, slots = world.scheduler._state, world.scheduler._state.slots
    arrays = (slots.phase, slots.computed, slots.length, slots.capacity, slots.confirmed, slots.last_token, slots.recent)
    return (
        *(array[slots.phase != Phase.EMPTY].tobytes() for array in arrays),
        *(table.tobytes() for table in (slots.block_table, *slots.window_tables)),
        tuple(step - state.next_step if step > state.completed_step else 0 for step in slots.last_step.tolist()),
    )


def _holder(holder: SequenceBlocks, times: Times) -> Key:
    return (
        holder.awaits >= 0,
        holder.ended,
        _part(holder, times),
        *((part.first, part.reserved, _part(part, times)) for part in holder.windows),
    )


def _part(part: SequenceBlocks | WindowBlocks, times: Times) -> Key:
    return tuple(_unit(share.unit, times) for share in part.sealed), tuple(block.index for block in part.writable)


def _unit(unit: Unit, times: Times) -> Key:
    """Of `times` only what is then expected of it."""
    expected = (unit.reuse, unit.hint, unit.session, unit.shared, *(standing(unit, time) for time in times)) if times else ()
    return unit.digest, unit.indices, unit.host, unit.users, unit.arriving, unit.leaving, unit.spoilt, expected


def _pool(pool: BlockPool, first: int, times: Times) -> Key:
    return (
        tuple(_unit(unit, times) for unit in pool.index.values()),
        _order(pool.cached),
        tuple(block.index for block in pool.free),
        _tier(pool.tier, first),
    )


def _order(order: EvictionOrder[Any]) -> Key:
    """What is evicted in which order, by kind: what is of which kind changes with time."""
    return tuple(tuple(unit.digest for unit in queue) for queue in order._queues)


def _tier(tier: HostTier | None, first: int) -> Key:
    if tier is None:
        return ()
    return (
        tuple(block.index for block in tier.free),
        _order(tier.copies),
        _order(tier.unsaved),
        *(tuple(unit.digest for unit in units) for units in (tier.spare, tier.fresh, tier.waiting)),
        tuple((step - first, tuple((s.unit.digest, s.into) for s in saves)) for step, saves in tier.saving.items()),
        tuple((step - first, tuple(s.unit.digest for s in loads)) for step, loads in tier.loading.items()),
        frozenset(unit.digest for unit in tier.put_back),
    )


def _disk(world: World) -> Key:
    """Of the last uses of units their order alone."""
    disk, tier, units = world.kv.disk, world.kv.pool.tier, world.kv.pool.index.values()
    if disk is None or tier is None:
        return ()
    order = sorted({unit.used for unit in units})
    return (
        tuple(place.index for place in disk.free),
        _order(disk.stored),
        _order(disk.unstored),
        frozenset((job.fetch, job.unit.place, job.unit.digest, job.host) for job in world.jobs),
        tuple((unit.digest, spare) for unit, spare in tier.lent.items()),
        tuple((unit.digest, unit.place, order.index(unit.used)) for unit in units),
    )


def _contents(states: Mapping[int, object], contents: Mapping[int, tuple[object, ...]]) -> Key:
    return tuple(contents.get(block) for block, found in states.items() if found != "free")


def _sessions(world: World) -> Key:
    """Of the table of sessions, and of who is to be admitted."""
    state = world.scheduler._state
    if state.table is None:
        return ()
    waiting, table = state.waiting, state.table
    blocked = waiting._blocked and (waiting._blocked[0].name, waiting._blocked[1] == table.version, *waiting._blocked[2:])
    sessions: Iterable[Session] = table
    return (
        blocked,
        waiting.wake,
        tuple(table.admitted),
        tuple(
            (
                (session.name, session.admitted, session.closed, session.end, session.tokens, session.shared, session.turns),
                (session.running, session.priority, session.since, session.growth, tuple(session.gaps.items())),
                tuple(session.requests),
            )
            for session in sessions
        ),
    )
