"""Memory of device kernels beside their operands: scratch, which launches share since they follow each other, and exchanges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from .device_kernels import DEVICE, DeviceKernel, DevicePlan, Exchange, Scratch, evaluate
from .program import Program, symbols_of

_STRETCH = 2 << 20
"""Bytes; drivers map memory of other processes in such stretches, so that nothing else is in one."""


def exchange_bytes(exchanges: Iterable[Exchange]) -> int:
    """Device memory that exchanges take."""
    return sum(-(-item.bytes // _STRETCH) * _STRETCH for item in exchanges)


def scratch_needed(plan: DevicePlan, programs: Iterable[Program]) -> int:
    """Bytes of scratch that the largest launch of any bucket wants."""
    functions = {function.name: function for function in plan.functions}
    kernels = {kernel.name: kernel for kernel in plan.kernels}
    most = 0
    for program in programs:
        shapes = {item.name: item.shape for item in (*program.buffers, *program.views)}
        launched = {
            (call.function.removeprefix(DEVICE), tuple(symbols_of((*call.outputs, *call.inputs), shapes, symbols).items()))
            for call in program.calls
            for symbols in ({"rows": bucket.rows, "logit_rows": bucket.logit_rows} for bucket in program.buckets)
        }
        for name, counts in launched:
            symbols = dict(counts)
            variant = functions[name].variant_for(symbols) if name in functions else None
            if variant is not None and variant.kernel is not None:
                kernel = kernels[variant.kernel]
                blocks = prod(blocks_of(kernel, symbols))
                both = (kernel.global_scratch, kernel.profile_scratch)
                most = max(most, sum(scratch_bytes(item, blocks) for item in both))
    return most


def scratch_bytes(scratch: Scratch, blocks: int) -> int:
    """What a launch of so many blocks wants, with room to begin at its alignment."""
    return scratch.bytes * blocks + scratch.alignment if scratch.bytes else 0


def blocks_of(kernel: DeviceKernel, symbols: Mapping[str, int]) -> tuple[int, int, int]:
    """Blocks of a launch along x, y and z."""
    x, y, z = (evaluate(size, symbols) for size in kernel.grid)
    return x * kernel.cluster, y, z
