"""A plan placed on a device: arrays in one stretch of its memory, page-locked mirrors of what the host writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from numpy.typing import NDArray

from ...plans.device_kernels import DevicePlan
from ...plans.device_scratch import scratch_needed
from ...plans.errors import MemoryPlanError, PlanError, TargetMismatch
from ...plans.kv_caches import cache_names, state_arrays
from ...plans.program import DTYPE_BYTES, Buffer, Program, StepInput
from ...plans.schema import Manifest
from ...plans.units import format_bytes
from ..dummy_weights import DUMMY
from ..executor_interface import Report
from ..functions.context import Context
from ..host_arrays import NUMPY_TYPES, HostArray, from_bytes
from ..operands import Addressed, Array, Surroundings
from ..weights import Make, PlanSource, Upload, Wanted, load_weights
from .arrays import DeviceArena, DeviceArray, rounded
from .device import Device
from .driver import Driver
from .dummy_weights import dummy_weights
from .graphs import CapturedBuckets
from .kernels import DeviceKernels
from .results import Results, results_bytes
from .runtime import DeviceRuntime
from .uploading import upload_all


class Mirror:
    """Arrays side by side on the device, and page-locked on the host in the same layout."""

    def __init__(self, device: Device, arena: DeviceArena, items: Sequence[StepInput | Buffer], purpose: str) -> None:
        self._device = device
        self.arrays: dict[str, DeviceArray] = {}
        self.host: dict[str, HostArray] = {}
        shapes = [tuple(extent for extent in item.shape if isinstance(extent, int)) for item in items]
        sizes = [prod(shape) * DTYPE_BYTES[item.dtype] for item, shape in zip(items, shapes, strict=True)]
        self._bytes = device.allocate_host(sum(map(rounded, sizes)), purpose)
        self._start, at = 0, 0
        for item, shape, size in zip(items, shapes, sizes, strict=True):
            array = arena.take(shape, item.dtype)
            self._start = self._start or array.address
            data: NDArray[Any] = self._bytes[at : at + size].view(NUMPY_TYPES[item.dtype]).reshape(shape)
            self.arrays[item.name], self.host[item.name] = array, HostArray(data, item.dtype)
            at += rounded(size)

    def upload(self) -> None:
        """Begin to copy all of it to the device."""
        self._device.upload(self._start, self._bytes)

    def upload_row(self, row: int) -> None:
        """Begin to copy one row of each array."""
        for name, array in self.arrays.items():
            step = array.nbytes // array.shape[0]
            self._device.upload(array.address + row * step, self.host[name].data[row : row + 1])


class DevicePlacement:
    """A `Placement`. Make one with `place_on_device`."""

    def __init__(
        self,
        device: Device,
        inputs: Mirror,
        slots: Mirror,
        results: Results,
        surroundings: Surroundings,
        scratch_bytes: int,
    ) -> None:
        self.surroundings, self.scratch_bytes = surroundings, scratch_bytes
        self._device, self._inputs, self._slots = device, inputs, slots
        self._uploaded = device.create_event()
        self._results = results

    @property
    def step_inputs(self) -> Mapping[str, HostArray]:
        return self._inputs.host

    @property
    def slots(self) -> Mapping[str, HostArray]:
        return self._slots.host

    @property
    def threads(self) -> int:
        return 1

    def running(self) -> Device:
        return self._device

    def before_filling(self) -> None:
        self._device.wait(self._uploaded)

    def inputs_filled(self) -> None:
        self._inputs.upload()
        self._device.record(self._uploaded)

    def slot_filled(self, slot: int) -> None:
        self._slots.upload_row(slot)
        self._device.record(self._uploaded)

    def read(self, arrays: Mapping[str, Addressed]) -> Callable[[], Mapping[str, HostArray]]:
        return self._results.read({name: array for name, array in arrays.items() if isinstance(array, DeviceArray)})

    def close(self) -> None:
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
) -> DevicePlacement:
    """Allocate on the first device, load weights and kernels; `driver` is the vendor's own unless given.

    Raises a TokenspeedError saying what does not fit.
    """
    wanted = plan.manifest.device
    assert wanted is not None  # the manifest of a plan for a device has one
    device = Device(driver or Driver.open(wanted.vendor), 0)
    try:
        _check_device(device, plan.manifest, wanted)
        return _placed(device, plan, wanted, programs, weights, report, needed, exact_weights)
    except BaseException:
        device.close()
        raise


def _placed(
    device: Device,
    plan: PlanSource,
    wanted: DevicePlan,
    programs: Sequence[Program],
    weights: str | None,
    report: Report,
    needed: set[str] | None,
    exact_weights: bool,
) -> DevicePlacement:
    manifest = plan.manifest
    arena = DeviceArena(device, arena_bytes(manifest), "weights, caches and buffers")
    inputs = Mirror(device, arena, manifest.step_inputs, "step inputs")
    slots = Mirror(device, arena, manifest.slot_buffers, "slot buffers")
    activations = arena.take((manifest.memory.arena,), "u8")
    state: dict[str, Addressed] = {**slots.arrays, **_caches(manifest, arena, needed)}
    scratch = _scratch(wanted, programs, manifest)
    kernels = DeviceKernels(device, wanted, plan.entry, device.allocate(scratch, "scratch of kernels") if scratch else 0)
    report("memory")
    constants = {item.name: arena.put(from_bytes(plan.entry(item.entry), item.shape, item.dtype)) for item in manifest.constants}
    tensors: Mapping[str, Array]
    if weights == DUMMY:
        tensors = dummy_weights(manifest, needed, device, arena)
    else:
        tensors = load_weights(plan, weights, needed, exact=exact_weights, upload=_uploader(device, arena))
    device.synchronise()
    report("weights")
    runtime = DeviceRuntime(device, kernels, CapturedBuckets(device, wanted))
    around = Surroundings(activations, {**inputs.arrays, **constants, **tensors}, state, Context(), device=runtime)
    results = Results(device, max(map(results_bytes, programs)))
    return DevicePlacement(device, inputs, slots, results, around, scratch)


def _uploader(device: Device, arena: DeviceArena) -> Upload:
    def upload(wanted: list[Wanted], make: Make, done: Callable[[Wanted], None]) -> dict[str, DeviceArray]:
        arrays = {name: arena.take(weight.shape, weight.dtype) for weight, name, _ in wanted}
        jobs = [(arrays[name], partial(make, weight, name, layer)) for weight, name, layer in wanted]
        upload_all(device, jobs, lambda at: done(wanted[at]))
        return arrays

    return upload


def arena_bytes(manifest: Manifest) -> int:
    """Device memory that the plan lays out itself: all of it but scratch and what the driver takes."""
    memory = manifest.memory
    return memory.inputs + memory.slots + memory.arena + memory.kv + memory.states + memory.constants + memory.weights


def _caches(manifest: Manifest, arena: DeviceArena, needed: set[str] | None) -> dict[str, DeviceArray]:
    """KV caches and recurrent states."""
    kv = manifest.kv
    wanted = {
        name: ((kv.blocks, kv.block_tokens, group.heads, group.head_dim), group.dtype)
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
    needed = arena_bytes(manifest) + manifest.memory.workspace
    if needed > free:
        raise MemoryPlanError(
            f"The plan needs {format_bytes(needed - free)} more device memory than is free.",
            where="memory",
            expected=f"at most {format_bytes(free)} (of {format_bytes(total)})",
            got=format_bytes(needed),
            fix=f"end what else uses the device ({device.driver.vendor.help} lists it), or compile for less (--memory)",
        )
