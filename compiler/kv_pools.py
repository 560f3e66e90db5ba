"""How many blocks each pool of keys and values has: what fits, or a refusal that says by how much it does not.

A window pool has what `max_sequences` running sequences can need at most, their last windows and the rows of the steps in flight;
pool 0 has the rest. Where that would leave pool 0 less than as many sequences of the expected length, the pools are cut so that
both hold the same number of those. Where all layers have windows, pool 0's blocks take no memory, and windows have all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NoReturn

from ..passes.window_pools import tail_units
from ..plans.errors import MemoryPlanError, UsageError
from ..plans.integrity import IDENTITY_TOKENS
from ..plans.schema import MemoryPlan, Schedule
from ..plans.units import format_bytes
from .memory import BLOCK_TOKENS

_STEPS_IN_FLIGHT = 2


@dataclass(frozen=True)
class Room:
    """A stage's memory but for its caches, and the bytes of a block of each pool, pool 0 first."""

    fixed: MemoryPlan
    block_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Demand:
    """What pools are made for: limits, the longest context, the windows that have a pool, groups of ranks with sequences of their
    own, and stages, each of which may have a step in flight."""

    limits: Schedule
    max_context: int
    windows: tuple[int, ...] = ()
    groups: int = 1
    stages: int = 1

    @property
    def least(self) -> int:
        """Blocks of one sequence of the longest context in pool 0."""
        return _blocks(self.max_context)

    @property
    def in_flight(self) -> int:
        """Blocks of the rows that launched steps write."""
        return _blocks(max(_STEPS_IN_FLIGHT, self.stages) * self.limits.max_rows)

    @property
    def tails(self) -> tuple[int, ...]:
        """Blocks of a decoding sequence in each window pool."""
        return tuple(tail_units(window, IDENTITY_TOKENS) * (IDENTITY_TOKENS // BLOCK_TOKENS) for window in self.windows)

    @property
    def floors(self) -> tuple[int, ...]:
        """The least that a window pool may have: one sequence in prefill."""
        return tuple(min(self.least, tail + self.in_flight) for tail in self.tails)

    @property
    def session(self) -> tuple[int, ...]:
        """Blocks of a sequence of the expected length in each pool."""
        traffic = self.limits.traffic
        expected = _blocks(min(self.max_context, int(traffic["prompt_tokens"] + traffic["output_tokens"])))
        return (expected, *(min(expected, tail) for tail in self.tails))

    @property
    def concurrency(self) -> float:
        """Sequences that a group is expected to run at once."""
        return self.limits.traffic["concurrency"] / self.groups


def pool_blocks(rooms: Sequence[Room], demand: Demand, memory: int | None) -> tuple[int, ...]:
    """Blocks of each pool: what fits every stage's `memory`, or what a group's share of the traffic asks for when there is no
    limit.

    Raises MemoryPlanError when not even one sequence of the longest context fits.
    """
    if memory is None:
        traffic = demand.limits.traffic
        live = demand.concurrency * (traffic["prompt_tokens"] + traffic["output_tokens"])
        windows = _window_blocks(demand, min(ceil(2 * demand.concurrency), demand.limits.max_sequences))
        return (max(demand.least, _blocks(int(2 * live))), *windows)
    for room in rooms:
        _check(room, demand, memory)
    free = [(memory - room.fixed.total, room.block_bytes) for room in rooms]
    sequences = min((_sequences(count, sizes, demand) for count, sizes in free), default=0.0)
    keeping = [(count, sizes) for count, sizes in free if sizes[0]]
    windows = _window_blocks(demand, min(sequences, demand.limits.max_sequences) if keeping else sequences)
    if any(count - _bytes(windows, sizes) < demand.least * sizes[0] for count, sizes in free):
        windows = demand.floors
    rest = [(count - _bytes(windows, sizes)) // sizes[0] for count, sizes in keeping]
    return (min(rest, default=demand.least * demand.limits.max_sequences), *windows)


def host_blocks(host_kv: int, rooms: Sequence[Room], blocks: Sequence[int], shares_prefixes: bool) -> tuple[int, ...]:
    """Blocks of each pool's tier in a rank's host memory, for `host_kv` bytes at most: as many times those on the device.

    Raises UsageError where there is nothing to keep, or not one block of a pool fits.
    """
    if not host_kv:
        return (0,) * len(blocks)
    caches = any(any(room.block_bytes) for room in rooms)
    if not shares_prefixes or not caches:
        why = "recurrent states are kept by sequence, cached blocks do not hold them" if caches else "the model has no KV cache"
        raise UsageError(f"nothing could be reused from host memory: {why}", where="--host-kv", expected="0", got=str(host_kv))
    whole = max(sum(count * size for count, size in zip(blocks, room.block_bytes, strict=True)) for room in rooms)
    found = tuple(host_kv * count // whole for count in blocks)
    if not all(found):
        needed = -(-whole // min(blocks))
        expected = f"0, or at least {format_bytes(needed)}"
        raise UsageError("not one KV block fits", where="--host-kv", expected=expected, got=format_bytes(host_kv))
    return found


def _sequences(free: int, sizes: Sequence[int], demand: Demand) -> float:
    """How many sequences of the expected length fit all pools, one of the longest context in pool 0 at least."""
    free -= demand.in_flight * sum(sizes[1:])
    whole = sum(blocks * size for blocks, size in zip(demand.session, sizes, strict=True))
    tails = whole - demand.session[0] * sizes[0]
    fit = free / whole if whole else float(demand.limits.max_sequences)
    return min(fit, (free - demand.least * sizes[0]) / tails) if tails else fit


def _window_blocks(demand: Demand, sequences: float) -> tuple[int, ...]:
    """Blocks of each window pool for so many sequences."""
    each = zip(demand.session[1:], demand.floors, strict=True)
    return tuple(max(floor, demand.in_flight + int(tail * sequences)) for tail, floor in each)


def _check(room: Room, demand: Demand, memory: int) -> None:
    one = demand.least * room.block_bytes[0] + _bytes(demand.floors, room.block_bytes)
    needed = room.fixed.total + one
    if needed <= memory:
        return
    _refuse(room.fixed, one, needed, memory)


def _refuse(fixed: MemoryPlan, one: int, needed: int, memory: int) -> NoReturn:
    parts = {name: getattr(fixed, name) for name in fixed.__struct_fields__}
    raise MemoryPlanError(
        f"the plan does not fit: {format_bytes(needed - memory)} too much",
        where="--memory",
        expected=f"at least {format_bytes(needed)}: "
        + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        + f", KV of one full context {format_bytes(one)}",
        got=format_bytes(memory),
        fix="give more --memory, or a smaller --max-context, --max-sequences or --prefill-chunk",
    )


def _bytes(windows: Sequence[int], sizes: Sequence[int]) -> int:
    """Of window pools; `sizes` are of all."""
    return sum(blocks * size for blocks, size in zip(windows, sizes[1:], strict=True))


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
