"""A plan placed on the host: programs read what the executor writes, so that nothing has to be moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from .block_tier import BlockTier, NoTier
from .executor_interface import Report
from .functions.context import Context
from .host_arrays import HostArray, release_free_memory
from .host_block_tier import host_block_tier
from .mesh import Rank
from .native.runtime import NativeRuntime
from .operands import Addressed, Surroundings
from .static_memory import StaticMemory, allocate
from .weights import PlanSource, load_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Mode = Callable[[], AbstractContextManager[object]]
"""What programs run inside of."""


class HostPlacement:
    """A `Placement`. Make one with `place_on_host`."""

    def __init__(self, memory: StaticMemory, surroundings: Surroundings, mode: Mode, tier: BlockTier) -> None:
        self.memory, self.surroundings, self.running, self.tier = memory, surroundings, mode, tier
        self._native = surroundings.native

    @property
    def slots(self) -> Mapping[str, HostArray]:
        return self.memory.state

    @property
    def threads(self) -> int:
        if self._native is not None:
            return self._native.team.size
        import torch

        return torch.get_num_threads()

    @property
    def scratch_bytes(self) -> int:
        return self.surroundings.context.scratch_bytes + (self._native.team.scratch_bytes if self._native else 0)

    def wait_for_weights(self) -> None:
        pass

    def next_inputs(self) -> Mapping[str, HostArray]:
        return self.memory.inputs

    def inputs_filled(self) -> None:
        pass

    def before_filling_slot(self, slot: int) -> None:
        pass

    def slot_filled(self, slot: int, names: Iterable[str]) -> None:
        pass

    def read(self, arrays: Mapping[str, Addressed]) -> Callable[[], Mapping[str, HostArray]]:
        copies = {
            name: HostArray(array.data.copy(), array.dtype) for name, array in arrays.items() if isinstance(array, HostArray)
        }
        return lambda: copies

    def close(self) -> None:
        if self._native is not None:
            self._native.close()
        self.tier.close()
        del self.memory, self.surroundings


def place_on_host(
    plan: PlanSource,
    weights: str | None,
    report: Report,
    needed: set[str] | None,
    *,
    native_only: bool,
    threads: int | None,
    pin_threads: bool,
    exact_weights: bool,
    rank: Rank,
    groups: Mapping[str, ProcessGroup] | None,
    with_tier: bool = False,
) -> HostPlacement:
    """Allocate and load; `native_only` says that programs call the plan's own kernels alone, so that no library is imported.
    `with_tier`: with the plan's tier of KV blocks, which only scheduled steps use.

    `rank` is which of the plan's ranks this is, `groups` are its by mesh axis.

    Raises a TokenspeedError saying what does not fit.
    """
    mode = nullcontext if native_only else _library_mode(threads)
    with mode():
        memory = allocate(plan, needed)
        report("memory")
        native = _native(plan, threads, pin_threads)
        tensors = load_weights(plan, weights, needed, native=native, exact=exact_weights, rank=rank)
        release_free_memory()  # loading went through arrays as large as the largest weight
        report("weights")
        inputs = {**memory.inputs, **memory.constants, **tensors}
        around = Surroundings(memory.arena, inputs, memory.state, Context(groups), native)
        tier = host_block_tier(plan.manifest, memory.state) if with_tier else NoTier()
        return HostPlacement(memory, around, mode, tier)


def _library_mode(threads: int | None) -> Mode:
    """What library functions run in: torch's inference mode, on as many threads."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.inference_mode


def _native(plan: PlanSource, threads: int | None, pin: bool) -> NativeRuntime | None:
    library = plan.manifest.kernels
    if library is None:
        return None
    (digest,) = (entry.sha256 for entry in plan.manifest.entries if entry.name == library.entry)
    return NativeRuntime(plan.entry(library.entry), digest, threads, sorted(os.sched_getaffinity(0)) if pin else None)
