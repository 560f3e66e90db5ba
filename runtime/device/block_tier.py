"""The tier of KV blocks in page-locked host memory: copies in streams of their own, beside what the device computes.

One call into the driver copies a run of consecutive blocks of many caches: caches of one geometry lie equally far apart, here
and on the host, so that a run is a rectangle with a row for each cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...plans.errors import TokenspeedError
from ...plans.schema import Manifest
from ..block_tier import (
    NO_COPIES,
    BlockTier,
    CacheUses,
    NoTier,
    Run,
    StepCopies,
    TierSize,
    cache_block_bytes,
    caches_of,
    groups_by_pool,
    reads,
)
from ..functions.context import Launch
from ..scheduling.step import BlockCopies, StepBatch
from .arrays import DeviceArray
from .device import MOST_PITCH, Device, Rows
from .page_locked import PageLockedPieces

PIECE_BYTES = 256 << 20
"""How much of the host's memory is locked at a time; runs of blocks end with it."""

MOST_CALLS = 1024
"""Calls into the driver that a step's loads may take for coming layer by layer."""

_IN_FLIGHT = 2


@dataclass(frozen=True)
class Stretch:
    """Caches of one geometry in device memory, `pitch` bytes from one's start to the next's. A piece of n blocks on the host has
    them `offset` x n bytes from its start, n blocks of each cache after the other. `layers` has each cache's."""

    address: int
    pitch: int
    block_bytes: int
    offset: int
    layers: tuple[int, ...]
    names: tuple[str, ...]


class Part(NamedTuple):
    """Caches `first` to `end` (not included) of a stretch of a pool."""

    pool: int
    stretch: Stretch
    first: int
    end: int


@dataclass(frozen=True)
class Pool:
    """A pool's caches on the device, and its blocks in host memory."""

    size: TierSize
    stretches: tuple[Stretch, ...]
    pieces: PageLockedPieces


class DeviceBlockTier:
    """A `BlockTier`. `alone`: no other ranks run the same steps, so that a step before the last one is complete here when the
    scheduler says so; otherwise another rank may have told it, and all copies keep to the order of steps.
    """

    def __init__(self, device: Device, pools: Mapping[int, Pool], *, alone: bool) -> None:
        self.device = device
        self._pools, self._alone = pools, alone
        self._blocks = {number: pool.size.blocks for number, pool in pools.items()}
        self._whole = [Part(number, item, 0, len(item.names)) for number, pool in pools.items() for item in pool.stretches]
        self._units = sorted((unit for whole in self._whole for unit in _by_layer(whole)), key=_layer)
        self.unit_of = {name: at for at, unit in enumerate(self._units) for name in unit.stretch.names[unit.first : unit.end]}
        self._saving, self._loading = device.create_stream(), device.create_stream()
        self._computed = device.create_event()
        self._saved = [device.create_event() for _ in range(_IN_FLIGHT)]
        self._loaded = [device.create_event() for _ in range(_IN_FLIGHT)]
        self.waves = [device.create_event() for _ in self._units]
        self._turn = 0
        self._recent: deque[StepBatch] = deque(maxlen=_IN_FLIGHT - 1)
        self._unread: int | None = None  # loads that later steps' launches must wait for
        self._last_saved: int | None = None
        self._last_loaded: int | None = None

    def begin(self, batch: StepBatch, uses: CacheUses) -> StepCopies:
        device = self.device
        if self._unread is not None and batch.rows:
            device.wait_in_stream(self._unread)
            self._unread = None
        if not self._alone and self._last_saved is not None:  # what it saved may be written from now on, and loaded
            device.wait_in_stream(self._last_saved)
        copies: StepCopies = NO_COPIES
        if batch.saves or batch.loads:
            self._turn = (self._turn + 1) % _IN_FLIGHT
            device.record(self._computed)
            loaded = self._load(batch, uses) if batch.loads else None
            saved = self._save(batch) if batch.saves else ()
            copies = _Copies(self, uses, *(loaded or (0, ())), saved)
        self._recent.append(batch)
        return copies

    def wait(self) -> None:
        for pool in self._pools.values():
            pool.pieces.wait()

    def parts(self, block: int) -> list[NDArray[np.uint8]]:
        pool = self._pools[0]
        number, at = divmod(block, pool.size.piece)
        blocks = min(pool.size.piece, pool.size.host_blocks - number * pool.size.piece)
        piece, found = pool.pieces.memory(number), list[NDArray[np.uint8]]()
        for stretch in pool.stretches:
            count, start = len(stretch.names), stretch.offset * blocks
            caches = piece[start : start + count * blocks * stretch.block_bytes].reshape(count, blocks, stretch.block_bytes)
            found.append(caches[:, at])
        return found

    def settle(self) -> None:
        for stream in (self._saving, self._loading):
            with suppress(TokenspeedError):
                self.device.synchronise(stream)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.pieces.close()

    def _save(self, batch: StepBatch) -> tuple[int, ...]:
        """Behind all that was launched before: one of those steps wrote what is saved."""
        event = self._saved[self._turn]
        self.device.wait_in_stream(self._computed, self._saving)
        if not self._alone and self._last_loaded is not None:
            self.device.wait_in_stream(self._last_loaded, self._saving)
        self._copy(self._whole, self._runs(batch.saves), to_device=False)
        self.device.record(event, self._saving)
        self._last_saved = event
        return (event,)

    def _load(self, batch: StepBatch, uses: CacheUses) -> tuple[int, tuple[int, ...]]:
        """Behind the step that runs, if that may touch what is filled; layer by layer, if rows of this step read it. Gives how
        many layers come at a time, 0 if no launch of this step waits, and what comes to pass when all are there."""
        event = self._loaded[self._turn]
        if not self._alone or any(reads(earlier, batch.loads, self._blocks) for earlier in self._recent):
            self.device.wait_in_stream(self._computed, self._loading)
        runs, together = self._runs(batch.loads), 0
        if uses and reads(batch, batch.loads, self._blocks):
            calls, count = len(self._units) * max(map(len, runs.values())), len(self._units)
            together = max(-(-calls // MOST_CALLS), -(-count // len(uses)))
            for wave, start in enumerate(range(0, count, together)):
                self._copy(_joined(self._units[start : start + together]), runs, to_device=True)
                self.device.record(self.waves[wave], self._loading)
        else:
            self._copy(self._whole, runs, to_device=True)
        self.device.record(event, self._loading)
        self._unread = self._last_loaded = event
        return together, (event,)

    def _runs(self, copies: Iterable[BlockCopies]) -> dict[int, list[Run]]:
        """By pool."""
        found: dict[int, list[Run]] = {}
        for item in copies:
            found.setdefault(item.pool, []).extend(self._pools[item.pool].size.runs(item))
        return found

    def _copy(self, parts: Iterable[Part], runs: Mapping[int, Sequence[Run]], *, to_device: bool) -> None:
        stream = self._loading if to_device else self._saving
        for number, stretch, first, end in parts:
            pool, rows = self._pools[number], end - first
            for device, host, count in runs.get(number, ()):
                piece, at = divmod(host, pool.size.piece)
                blocks = min(pool.size.piece, pool.size.host_blocks - piece * pool.size.piece)
                width, row = count * stretch.block_bytes, blocks * stretch.block_bytes
                here = stretch.address + first * stretch.pitch + device * stretch.block_bytes
                there = pool.pieces.address(piece) + stretch.offset * blocks + first * row + at * stretch.block_bytes
                cache, tier = (
                    (Rows(here, stretch.pitch), Rows(there, row)) if rows > 1 else (Rows(here, width), Rows(there, width))
                )
                source, target = (tier, cache) if to_device else (cache, tier)
                self.device.copy_rows(target, source, width, rows, stream, to_device=to_device)


class _Copies:
    """`StepCopies`. `together` layers come at a time, of which launches wait for those that they use; 0: for none."""

    def __init__(
        self, tier: DeviceBlockTier, uses: CacheUses, together: int, loaded: tuple[int, ...], saved: tuple[int, ...]
    ) -> None:
        self._tier, self._uses, self._together, self._events = tier, uses, together, (*loaded, *saved)

    def ordered(self, launches: Iterable[Launch]) -> Iterable[Launch]:
        return self._waiting(launches) if self._together else launches

    def wait(self) -> None:
        for event in self._events:
            self._tier.device.wait(event)

    def _waiting(self, launches: Iterable[Launch]) -> Iterator[Launch]:
        tier, there = self._tier, -1
        for launch in launches:
            wave = max((tier.unit_of[name] // self._together for name in self._uses.get(launch, ())), default=-1)
            if wave > there:
                there = wave
                yield partial(tier.device.wait_in_stream, tier.waves[wave])
            yield launch


def device_block_tier(device: Device, manifest: Manifest, caches: Mapping[str, DeviceArray], *, alone: bool) -> BlockTier:
    """The tier that a plan asks for; its memory is locked in the background. `caches` are all KV caches by name."""
    kv = manifest.kv
    if not any(kv.pool_host_blocks):
        return NoTier()
    pools: dict[int, Pool] = {}
    for number, groups in groups_by_pool(kv).items():
        stretches: list[Stretch] = []
        for group in groups:
            placed = [(layer, name, caches[name].address) for layer, name in caches_of(group)]
            stretches += _stretches(placed, cache_block_bytes(group, kv.block_tokens), _bytes_of(stretches))
        each = _bytes_of(stretches)
        size = TierSize(blocks=kv.pool_blocks[number], host_blocks=kv.pool_host_blocks[number], piece=max(1, PIECE_BYTES // each))
        sizes = [each * min(size.piece, size.host_blocks - start) for start in range(0, size.host_blocks, size.piece)]
        pools[number] = Pool(size, tuple(stretches), PageLockedPieces(device, sizes, "the host tier of KV blocks"))
    tier = DeviceBlockTier(device, pools, alone=alone)
    for pool in pools.values():
        pool.pieces.start()
    return tier


def _stretches(placed: Sequence[tuple[int, str, int]], block_bytes: int, offset: int) -> list[Stretch]:
    """As few as there can be, of caches (layer, name, address) in order; `offset` is that of the first."""
    cut: list[list[tuple[int, str, int]]] = []
    for item in placed:
        last = cut[-1] if cut else []
        pitch = item[2] - last[-1][2] if last else 0
        fits = last and 0 < pitch <= MOST_PITCH and (len(last) == 1 or pitch == last[1][2] - last[0][2])
        if fits:
            last.append(item)
        else:
            cut.append([item])
    found: list[Stretch] = []
    for items in cut:
        layers, names, addresses = zip(*items, strict=True)
        pitch = addresses[1] - addresses[0] if len(items) > 1 else 0
        found.append(Stretch(addresses[0], pitch, block_bytes, offset, layers, names))
        offset += len(items) * block_bytes
    return found


def _bytes_of(stretches: Iterable[Stretch]) -> int:
    """Of one block of all caches."""
    return sum(len(item.names) * item.block_bytes for item in stretches)


def _by_layer(whole: Part) -> Iterator[Part]:
    """The parts that have one layer's caches each."""
    layers = whole.stretch.layers
    cuts = [at for at in range(len(layers)) if at == 0 or layers[at] != layers[at - 1]]
    for first, end in pairwise([*cuts, len(layers)]):
        yield Part(whole.pool, whole.stretch, first, end)


def _layer(part: Part) -> int:
    return part.stretch.layers[part.first]


def _joined(units: Sequence[Part]) -> list[Part]:
    """The same caches in as few parts as can be."""
    found: dict[tuple[int, int], Part] = {}
    for unit in units:
        key = unit.pool, unit.stretch.address
        found[key] = Part(unit.pool, unit.stretch, found[key].first if key in found else unit.first, unit.end)
    return list(found.values())
