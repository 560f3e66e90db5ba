"""Every order of events of a small world, breadth first."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

from tokenspeed.runtime.scheduling.blocks import Reuse
from tokenspeed.runtime.scheduling.disk_tier import DiskJob
from tokenspeed.runtime.scheduling.policy import Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.step import StepBatch

from .small_world import Configuration, World
from .small_world_key import key_of


class Frozen:
    """A world as bytes, with references to what it shares with its copies: requests, steps, limits."""

    def __init__(self, world: World) -> None:
        self._shared: list[object] = []
        written = io.BytesIO()
        pickler = pickle.Pickler(written, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = dict.fromkeys((Request, StepBatch, SchedulerLimits, Policy, Configuration, DiskJob), self._share)
        pickler.dump(world)
        self._bytes = written.getvalue()

    def _share(self, item: object) -> tuple[Callable[[int], object], tuple[int]]:
        self._shared.append(item)
        return _shared, (len(self._shared) - 1,)

    def copy(self) -> World:
        _SHARED[:] = self._shared
        return pickle.loads(self._bytes)


_SHARED: list[object] = []


def _shared(place: int) -> object:
    return _SHARED[place]


@dataclass
class Explored:
    """All states that were found, how many moves led there, and to which depth; `complete` when no further one turns up.

    In how many of them something had been preempted, brought back from the host, evicted, read from disk in vain or not, or found
    in the cache; in how many a
    sequence has left blocks behind its window; in how many cached units have fallen in what is expected of them, some are wanted
    by nobody, and sessions are parked.
    """

    states: int = 0
    moves: int = 0
    depth: int = 0
    preempted: int = 0
    reloaded: int = 0
    evicted: int = 0
    fetched: int = 0
    refused: int = 0
    hit: int = 0
    behind: int = 0
    fallen: int = 0
    gone: int = 0
    parked: int = 0
    complete: bool = False

    def count(self, world: World) -> None:
        stats, kv = world.scheduler.stats(), world.kv
        self.preempted += stats.preemptions > 0
        self.reloaded += stats.reloaded_tokens > 0
        self.evicted += any(pool.evictions > 0 for pool in (kv.pool, *(window.pool for window in kv.windows)))
        self.fetched += stats.fetched_tokens > 0
        self.refused += stats.refused_tokens > 0
        self.hit += stats.prefix_hits > 0
        self.behind += any(part.first > 0 for holder in kv.open_sequences() for part in holder.windows)
        cached = kv.pool.cached
        self.fallen += any(block.unit.reuse is not cached._queue_of[block.unit] for block in cached)
        self.gone += any(block.unit.reuse is Reuse.GONE for block in cached)
        self.parked += stats.parked > 0


def explore(configuration: Configuration, most_states: int | None = None) -> Explored:
    """Until no new state turns up or there are `most_states`. A state that is found again was checked the first time."""
    found, frontier, seen = Explored(), [World(configuration)], set[object]()
    while frontier:
        following: list[World] = []
        found.depth += 1
        for world in frontier:
            moves = [*world.moves()]
            frozen = Frozen(world) if len(moves) > 1 else None
            for number, move in enumerate(moves, 1):
                successor = world if frozen is None or number == len(moves) else frozen.copy()
                successor.play(move)
                successor.look()
                found.moves += 1
                key = key_of(successor)
                if key in seen:
                    continue
                successor.check()
                seen.add(key)
                following.append(successor)
                found.count(successor)
                found.states = len(seen)
                if most_states is not None and len(seen) >= most_states:
                    return found
        frontier = following
    found.complete = True
    return found
