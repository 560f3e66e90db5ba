"""The memory plan: every byte by purpose, and a KV pool that fits what is left, or a refusal that says by how much."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import msgspec

from ..plans.container import ALIGNMENT
from ..plans.kv_caches import block_bytes, state_bytes
from ..plans.program import DTYPE_BYTES, Buffer, Program, StepInput, count_of
from ..plans.schema import Constant, KvGroup, MemoryPlan, StateGroup, Weight
from .function_scratch import function_scratch

BLOCK_TOKENS = 64
COMMUNICATION = 1 << 30
"""What a rank's communication library takes on its device. NCCL alone, with one rank, took 652 MiB of an H200 (torch 2.11, driver
580, 2026-11-29); buffers to other ranks come on top: set, not measured."""
ATTENTION_SCRATCH = 32 << 20
LIBRARY_SCRATCH = 32 << 20


def bytes_per_block(groups: Sequence[KvGroup]) -> int:
    """Bytes of as many tokens as a block has, over all layers, of whatever pool."""
    return sum(block_bytes(group, BLOCK_TOKENS) for group in groups)


def fixed_memory(
    weights: Sequence[Weight],
    constants: Sequence[Constant],
    programs: Sequence[Program],
    inputs: Sequence[StepInput],
    slots: Sequence[Buffer],
    overhead: int,
    states: Sequence[StateGroup] = (),
    device_scratch: int | None = None,
    ranks: int = 1,
    exchanges: int = 0,
) -> MemoryPlan:
    """Everything but the KV pool; `exchanges` are bytes of memory that other ranks write into.
    `device_scratch` is what kernels and library functions of a device want beside their operands;
    there, each array counts rounded up to the alignment of arrays. None: the programs run on the host."""
    round_up = _as_is if device_scratch is None else _aligned
    arena = max(bucket.arena_bytes for program in programs for bucket in program.buckets)
    return MemoryPlan(
        weights=sum(round_up(weight.bytes) * max(1, len(weight.layers)) for weight in weights),
        constants=sum(round_up(_bytes(item.shape, item.dtype)) for item in constants),
        arena=round_up(arena),
        inputs=sum(round_up(_bytes(item.shape, item.dtype)) for item in inputs),
        slots=sum(round_up(_bytes(item.shape, item.dtype)) for item in slots),
        kv=0,
        communication=0 if ranks == 1 or device_scratch is None else COMMUNICATION + exchanges,
        workspace=_workspace(programs, weights) if device_scratch is None else device_scratch,
        overhead=overhead,
        states=sum(state_bytes(group, 1 if device_scratch is None else ALIGNMENT) for group in states),
    )


def _as_is(count: int) -> int:
    return count


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _workspace(programs: Sequence[Program], weights: Sequence[Weight]) -> int:
    """Native kernels rearrange at most what a result holds; functions of libraries keep more."""
    if all(program.is_native for program in programs):
        return _largest_result(programs)
    return ATTENTION_SCRATCH + LIBRARY_SCRATCH + _largest_result(programs) + function_scratch(programs, weights)


def _bytes(shape: Sequence[int | str], dtype: str) -> int:
    return prod(extent for extent in shape if isinstance(extent, int)) * DTYPE_BYTES[dtype]


def _largest_result(programs: Sequence[Program]) -> int:
    """A library call may hold one result of its own before it is copied into the arena."""
    largest = 0
    for program in programs:
        last = program.buckets[-1]
        symbols = {"rows": last.rows, "logit_rows": last.logit_rows}
        for buffer in program.buffers:
            shape = [count_of(extent, symbols) for extent in buffer.shape]
            largest = max(largest, prod(shape) * DTYPE_BYTES[buffer.dtype])
    return largest


def with_kv(fixed: MemoryPlan, count: int) -> MemoryPlan:
    """The plan with so many bytes of caches."""
    return msgspec.structs.replace(fixed, kv=count)
