"""allocate: liveness over the instruction list, then one static arena per bucket.

Buffers whose lives overlap get disjoint places; larger buffers are placed first, each at the lowest offset that is free.
Logits come before all others, so they lie at offset 0, where the sample program looks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import msgspec

from ..plans.program import DTYPE_BYTES, Bucket, Buffer, Call, Program, Repeat, count_of
from .lower import LOGITS
from .schedule import BucketSize

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """First and last instruction that touch a buffer, both included."""

    start: int
    stop: int

    def overlaps(self, other: Life) -> bool:
        return self.start <= other.stop and other.start <= self.stop


def allocate(program: Program, sizes: Sequence[BucketSize]) -> Program:
    """The program with an arena layout for each bucket."""
    alive = lives(program)
    buckets = tuple(_layout(program.buffers, alive, size) for size in sizes)
    return msgspec.structs.replace(program, buckets=buckets)


def lives(program: Program) -> dict[str, Life]:
    """The life of every buffer. What a repeat reads from outside lives until its last round ends; logits live to the end."""
    bases = {view.name: view.base for view in program.views}
    touched: dict[str, list[int]] = {buffer.name: [] for buffer in program.buffers}
    position = 0
    for item in program.body:
        calls = item.body if isinstance(item, Repeat) else (item,)
        start, stop = position, position + len(calls) - 1
        for at, call in enumerate(calls, start):
            for name in (*call.inputs, *call.outputs):
                base = bases.get(name, name)
                if base in touched:
                    touched[base].append(at)
        if isinstance(item, Repeat):
            for base in _carried_or_outer(item.body, bases, touched, start):
                touched[base] += [start, stop]
        position = stop + 1
    if LOGITS in touched:
        touched[LOGITS].append(position)
    return {name: Life(min(at), max(at)) for name, at in touched.items() if at}


def _carried_or_outer(body: Sequence[Call], bases: dict[str, str], touched: dict[str, list[int]], start: int) -> set[str]:
    """Buffers whose value enters the body from outside or from the round before: touched earlier, or read before written."""
    found: set[str] = set()
    written: set[str] = set()
    for call in body:
        for name in call.inputs:
            base = bases.get(name, name)
            if base in touched and (base not in written or min(touched[base]) < start):
                found.add(base)
        written.update(bases.get(name, name) for name in call.outputs)
    return found


def _bytes(buffer: Buffer, size: BucketSize) -> int:
    symbols = {"rows": size.rows, "logit_rows": size.logit_rows}
    elements = prod(count_of(extent, symbols) for extent in buffer.shape)
    return -(-elements * DTYPE_BYTES[buffer.dtype] // ALIGNMENT) * ALIGNMENT


def _layout(buffers: Sequence[Buffer], alive: dict[str, Life], size: BucketSize) -> Bucket:
    needed = {buffer.name: _bytes(buffer, size) for buffer in buffers}
    placed: dict[str, int] = {}
    for name in sorted(needed, key=lambda name: (name != LOGITS, -needed[name], name)):
        beside = [other for other in placed if alive[name].overlaps(alive[other])]
        neighbours = sorted((placed[other], placed[other] + needed[other]) for other in beside)
        offset = 0
        for start, stop in neighbours:
            if offset + needed[name] <= start:
                break
            offset = max(offset, stop)
        placed[name] = offset
    top = max(placed[name] + needed[name] for name in placed)
    return Bucket(size.rows, size.logit_rows, tuple(placed[buffer.name] for buffer in buffers), top)
