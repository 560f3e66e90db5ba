"""A plan placed on a device: arrays in one stretch of its memory, loaded and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from ...plans.device_kernels import DevicePlan
from ...plans.device_library import library_functions
from ...plans.device_scratch import exchange_bytes, scratch_needed
from ...plans.errors import MemoryPlanError, PlanError, TargetMismatch
from ...plans.kv_caches import cache_names, state_arrays
from ...plans.program import Program
from ...plans.schema import Manifest
from ...plans.units import format_bytes
from ..block_tier import BlockTier, NoTier
from ..dummy_weights import DUMMY
from ..executor_interface import Report
from ..functions.context import Context
from ..host_arrays import HostArray, from_bytes
from ..mesh import Rank
from ..operands import Addressed, Surroundings
from ..weights import Make, PlanSource, Wanted, load_weights, wanted_weights
from .arrays import DeviceArena, DeviceArray
from .block_tier import device_block_tier
from .device import Device
from .driver import Driver
from .dummy_weights import dummy_weights
from .exchanges import Share, open_exchanges
from .graphs import CapturedBuckets
from .kernels import DeviceKernels
from .mirrored import SlotRows, StepInputs
from .results import Results, results_bytes
from .runtime import DeviceRuntime
from .uploading import WeightsOnTheirWay, upload_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .library import DeviceLibrary


class DevicePlacement:
    """A `Placement`. Make one with `place_on_device`."""

    def __init__(
        self,
        device: Device,
        inputs: StepInputs,
        slots: SlotRows,
        results: Results,
        surroundings: Surroundings,
        scratch_bytes: int,
        loading: WeightsOnTheirWay,
        report: Report,
    ) -> None:
        self.surroundings, self.scratch_bytes = surroundings, scratch_bytes
        self.tier: BlockTier = NoTier()
        self._device, self._inputs, self._slots, self._runtime = device, inputs, slots, surroundings.device
        self._results, self._loading, self._report = results, loading, report

    def open_tier(self, manifest: Manifest, *, alone: bool) -> None:
        """Have the plan's tier of KV blocks; its memory comes while weights do. `alone`: there are no other ranks."""
        caches = {name: array for name, array in self.surroundings.state.items() if isinstance(array, DeviceArray)}
        try:
            self.tier = device_block_tier(self._device, manifest, caches, alone=alone)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> Mapping[str, HostArray]:
        return self._slots.host

    @property
    def threads(self) -> int:
        return 1

    def running(self) -> AbstractContextManager[object]:
        return self._device if self._runtime is None else self._runtime.running()

    def wait_for_weights(self) -> None:
        self._loading.wait()
        self._report("weights")
        if not isinstance(self.tier, NoTier):
            # the driver makes launches wait for each piece of memory that it locks: requests that came now would be served slowly
            self.tier.wait()
            self._report("host tier")

    def next_inputs(self) -> Mapping[str, HostArray]:
        return self._inputs.next()

    def inputs_filled(self) -> None:
        self._inputs.upload()

    def before_filling_slot(self, slot: int) -> None:
        self._slots.wait(slot)

    def slot_filled(self, slot: int, names: Iterable[str]) -> None:
        self._slots.upload(slot, names)

    def read(self, arrays: Mapping[str, Addressed]) -> Callable[[], Mapping[str, HostArray]]:
        return self._results.read({name: array for name, array in arrays.items() if isinstance(array, DeviceArray)})

    def close(self) -> None:
        self._loading.settle()
        self.tier.close()
        if self._runtime is not None and self._runtime.library is not None:
            self._runtime.library.close()
        self._device.close()


def place_on_device(
    plan: PlanSource,
    programs: Sequence[Program],
    weights: str | None,
    report: Report,
    needed: set[str] | None,
    *,
    exact_weights: bool = False,
    driver: Driver | None = None,
    rank: Rank,
    groups: Mapping[str, ProcessGroup] | None,
    share: Share | None = None,
    with_tier: bool = False,
) -> DevicePlacement:
    """Allocate on the first device, load weights and kernels; `driver` is the vendor's own unless given, `rank` which of the
    plan's ranks this is, `groups` are its by mesh axis, `share` tells the others along one. `with_tier`: with the plan's tier of
    KV blocks in host memory, which only scheduled steps use.

    Raises a TokenspeedError saying what does not fit.
    """
    wanted = plan.manifest.device
    assert wanted is not None  # the manifest of a plan for a device has one
    if library_functions(programs):
        import torch  # noqa: F401  before the driver is opened: torch may bring the vendor's library that both must use
    device = Device(driver or Driver.open(wanted.vendor), 0)
    try:
        _check_device(device, plan.manifest, wanted)
        found = _placed(device, plan, wanted, programs, weights, report, needed, exact_weights, rank, groups or {}, share)
    except BaseException:
        device.close()
        raise
    if with_tier:
        found.open_tier(plan.manifest, alone=rank.count == 1)
    return found


def _placed(
    device: Device,
    plan: PlanSource,
    wanted: DevicePlan,
    programs: Sequence[Program],
    weights: str | None,
    report: Report,
    needed: set[str] | None,
    exact_weights: bool,
    rank: Rank,
    groups: Mapping[str, ProcessGroup],
    share: Share | None,
) -> DevicePlacement:
    manifest = plan.manifest
    arena = DeviceArena(device, arena_bytes(manifest), "weights, caches and buffers")
    inputs = StepInputs(device, arena, manifest.step_inputs)
    slots = SlotRows(device, arena, manifest.slot_buffers)
    activations = arena.take((manifest.memory.arena,), "u8")
    state: dict[str, Addressed] = {**slots.arrays, **_caches(manifest, arena, needed)}
    scratch = _scratch(wanted, programs, manifest)
    library = _library(device, programs, manifest.memory.workspace - scratch)
    kernels = DeviceKernels(device, wanted, plan.entry, device.allocate(scratch, "scratch of kernels") if scratch else 0)
    exchanges = {} if share is None else open_exchanges(device, wanted.exchanges, rank, share)
    report("memory")
    constants = {item.name: arena.put(from_bytes(plan.entry(item.entry), item.shape, item.dtype)) for item in manifest.constants}
    results = Results(device, max(map(results_bytes, programs)))
    runtime = DeviceRuntime(device, kernels, CapturedBuckets(device, wanted), library, inputs.on_host)
    if weights == DUMMY:
        made = dummy_weights(manifest, needed, device, arena, kernels, rank.coordinates)
        loading = WeightsOnTheirWay(made, lambda: None)
    else:
        loading = _load(plan, weights, needed, exact_weights, device, arena, kernels, rank)
        if library is not None:
            loading.settle()  # functions may look at weights when they are bound
    readable = {**inputs.arrays, **exchanges, **constants, **loading.arrays}
    around = Surroundings(activations, readable, state, Context(groups), device=runtime)
    return DevicePlacement(device, inputs, slots, results, around, scratch, loading, report)


def _library(device: Device, programs: Sequence[Program], most_bytes: int) -> DeviceLibrary | None:
    """What runs the functions that are no kernels of the plan's own; None where there are none, so that torch is not imported."""
    functions = library_functions(programs)
    if not functions:
        return None
    from . import library

    return library.open_library(device, functions, most_bytes)


def _load(
    plan: PlanSource,
    weights: str | None,
    needed: set[str] | None,
    exact: bool,
    device: Device,
    arena: DeviceArena,
    kernels: DeviceKernels,
    rank: Rank,
) -> WeightsOnTheirWay:
    """Where they will lie is known before any is read."""
    arrays = {name: arena.take(weight.shape, weight.dtype) for weight, name, _ in wanted_weights(plan.manifest, needed, exact)}

    def upload(wanted: list[Wanted], make: Make, done: Callable[[Wanted], None]) -> dict[str, DeviceArray]:
        jobs = [(arrays[name], partial(make, weight, name, layer)) for weight, name, layer in wanted]
        upload_all(device, jobs, lambda at: done(wanted[at]), kernels)
        return arrays

    def load() -> None:
        device.make_current()
        load_weights(plan, weights, needed, exact=exact, upload=upload, rank=rank)

    return WeightsOnTheirWay(arrays, load)


def arena_bytes(manifest: Manifest) -> int:
    """Device memory that the plan lays out itself: all of it but scratch and what the driver takes."""
    memory = manifest.memory
    return memory.inputs + memory.slots + memory.arena + memory.kv + memory.states + memory.constants + memory.weights


def _caches(manifest: Manifest, arena: DeviceArena, needed: set[str] | None) -> dict[str, DeviceArray]:
    """KV caches and recurrent states."""
    kv = manifest.kv
    wanted = {
        name: ((kv.pool_blocks[group.pool], kv.block_tokens, group.heads, group.head_dim), group.dtype)
        for group in kv.groups
        for name in cache_names(group)
    }
    wanted |= {name: (shape, dtype) for states in kv.states for name, shape, dtype in state_arrays(states)}
    return {name: arena.take(*kind) for name, kind in wanted.items() if needed is None or name in needed}


def _scratch(device: DevicePlan, programs: Sequence[Program], manifest: Manifest) -> int:
    count = scratch_needed(device, programs)
    if count > manifest.memory.workspace:
        raise PlanError(
            "The plan's kernels need more scratch than it says.",
            where="memory.workspace",
            expected=f"at least {count} bytes",
            got=str(manifest.memory.workspace),
            fix="compile the plan again with tokenspeed-compile",
        )
    return count


def _check_device(device: Device, manifest: Manifest, wanted: DevicePlan) -> None:
    """Refuse a device that the code was not compiled for, or one with too little free memory."""
    if device.architecture != wanted.architecture.removesuffix("a"):
        raise TargetMismatch(
            "The plan is for another device.",
            where="device.architecture",
            expected=wanted.architecture,
            got=f"{device.architecture} ({device.name})",
            fix=f"tokenspeed-compile {manifest.model.name} --target, with one that this device is",
        )
    free, total = device.memory()
    needed = arena_bytes(manifest) + manifest.memory.workspace + exchange_bytes(wanted.exchanges)
    if needed > free:
        raise MemoryPlanError(
            f"The plan needs {format_bytes(needed - free)} more device memory than is free.",
            where="memory",
            expected=f"at most {format_bytes(free)} (of {format_bytes(total)})",
            got=format_bytes(needed),
            fix=f"end what else uses the device ({device.driver.vendor.help} lists it), or compile for less (--memory)",
        )
