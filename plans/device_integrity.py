"""Whether a plan's device kernels may be launched as it says: hostile until proved otherwise. Pure; no device is touched."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod

from .container import ALIGNMENT
from .device_kernels import (
    CeilDivide,
    Computed,
    Constant,
    DeviceFunction,
    DeviceKernel,
    DevicePlan,
    Pointer,
    Product,
    Scratch,
    Size,
    evaluate,
)
from .device_limits import ELF_MACHINES, ENDINGS, LIMITS, MAX_CLUSTER, MAX_GRID, MAX_THREADS, DeviceLimits
from .device_scratch import exchange_bytes
from .findings import MAX_NUMBER, require, require_entry, require_number, require_unique
from .program import DTYPE_BYTES
from .schema import Manifest
from .stages import of_stage

KERNELS_PREFIX = "kernels/"
MAX_PARAMETERS = 256
MAX_KERNELS = 4096
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]{0,254}")
_KINDS = frozenset(ENDINGS)


def check_device(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Raise `PlanError`, naming the field, unless `manifest.device` fits its target, its entries (`sizes`) and itself."""
    device, kind = manifest.device, manifest.target.kind
    require((device is not None) == (kind in _KINDS), "device", f"one exactly when target.kind is of {sorted(_KINDS)}", kind)
    if device is None:
        return
    require(device.vendor == kind, "device.vendor", kind, device.vendor)
    limits = LIMITS.get(device.architecture)
    require(limits is not None, "device.architecture", f"one of {', '.join(LIMITS)}", repr(device.architecture))
    assert limits is not None
    require(limits.vendor == device.vendor, "device.vendor", limits.vendor, device.vendor)
    require(manifest.kernels is None, "kernels", "no library for the host in a plan for an accelerator", "one")
    require(manifest.target.row_padding == "bucket", "target.row_padding", "'bucket' for an accelerator", "'exact'")
    require_number(device.memory_bytes, "device.memory_bytes", manifest.memory.total)
    ascending = all(one < other for one, other in pairwise(device.graph_rows))
    require(ascending, "device.graph_rows", "ascending rows", device.graph_rows)
    for rows in device.graph_rows:
        require_number(rows, "device.graph_rows", 1, manifest.schedule.max_decode_rows)
    for field in ("kernels", "functions"):
        require_number(len(getattr(device, field)), f"device.{field}", 1, MAX_KERNELS)
    for kernel in device.kernels:
        _check_kernel(kernel, device, limits, sizes)
    _check_functions(device)
    _check_references(device, sizes)
    _check_exchanges(manifest, device)
    for part in [of_stage(manifest, stage) for stage in range(len(manifest.stages))] or [manifest]:
        _check_layout(part)


def check_device_call(device: DevicePlan, name: str, operands: tuple[Sequence[str], Sequence[str]], where: str) -> DeviceFunction:
    """The function a call names; `operands` are the element types of its inputs and its outputs."""
    function = next((item for item in device.functions if item.name == name), None)
    require(function is not None, where, "a device function of the plan", repr(name))
    assert function is not None
    for role, declared, given in (("inputs", function.inputs, operands[0]), ("outputs", function.outputs, operands[1])):
        require(declared == tuple(given), f"{where}: {role}", f"elements of {list(declared)}", list(given))
    return function


def check_device_launch(device: DevicePlan, function: DeviceFunction, symbols: Mapping[str, int], where: str) -> None:
    """The kernel that runs for a bucket has a grid the device takes, and numbers as its code relies on."""
    variant = function.variant_for(symbols)
    require(variant is not None, where, f"a variant for {symbols[function.by]} {function.by}", "none")
    assert variant is not None
    if variant.kernel is None:
        return
    kernel = next(item for item in device.kernels if item.name == variant.kernel)
    at = f"{where}, kernel {kernel.name}"
    grid = [evaluate(size, symbols) for size in kernel.grid]
    blocks = (grid[0] * kernel.cluster, *grid[1:])
    for axis, extent, most in zip("xyz", blocks, MAX_GRID, strict=True):
        require_number(extent, f"{at}: grid {axis}", 0, most)
    if device.vendor == "hip":  # HIP counts threads, not blocks, in 32 bits
        threads = blocks[0] * kernel.warps * LIMITS[device.architecture].warp_size
        require_number(threads, f"{at}: threads along x", 0, 2**32 - 1)
    for parameter in kernel.parameters:
        if isinstance(parameter, Computed):
            value = evaluate(parameter.size, symbols)
            require_number(value, f"{at}: computed parameter", -(2**31), 2**31 - 1)
            require(value % parameter.divisor == 0, f"{at}: computed parameter", f"a multiple of {parameter.divisor}", value)
    for scratch in (kernel.global_scratch, kernel.profile_scratch):
        require_number(scratch.bytes * prod(blocks), f"{at}: scratch")


def check_binary(kernel: DeviceKernel, vendor: str, data: bytes | memoryview) -> None:
    """Raise `PlanError` unless `data` is what `kernel.entry` names and an ELF image for the vendor's machine."""
    expected = kernel.entry.removeprefix(KERNELS_PREFIX).removesuffix(ENDINGS[vendor])
    require(hashlib.sha256(data).hexdigest() == expected, kernel.entry, "bytes with the digest it is named by", "others")
    head = bytes(data[:20])
    require(len(head) == 20 and head[:6] == b"\x7fELF\x02\x01", kernel.entry, "a 64-bit little-endian ELF image", head[:6].hex())
    (machine,) = struct.unpack_from("<H", head, 18)
    require(machine == ELF_MACHINES[vendor], f"{kernel.entry}: machine", ELF_MACHINES[vendor], machine)


def _check_kernel(kernel: DeviceKernel, device: DevicePlan, limits: DeviceLimits, sizes: Mapping[str, int]) -> None:
    where = f"device.kernels, {kernel.name}"
    require_entry(kernel.entry, sizes, f"{where}: entry")
    named = re.fullmatch(rf"{KERNELS_PREFIX}[0-9a-f]{{64}}{re.escape(ENDINGS[device.vendor])}", kernel.entry)
    require(named is not None, f"{where}: entry", f"kernels/<SHA-256>{ENDINGS[device.vendor]}", repr(kernel.entry))
    require(_SYMBOL.fullmatch(kernel.symbol) is not None, f"{where}: symbol", "a symbol's name", repr(kernel.symbol))
    require_number(kernel.warps, f"{where}: warps", 1, MAX_THREADS // limits.warp_size)
    require_number(kernel.cluster, f"{where}: cluster", 1, MAX_CLUSTER if limits.clusters else 1)
    require_number(kernel.shared_bytes, f"{where}: shared_bytes", 0, limits.shared_bytes)
    require_number(len(kernel.parameters), f"{where}: parameters", 0, MAX_PARAMETERS)
    for index, parameter in enumerate(kernel.parameters):
        _check_parameter(parameter, f"{where}: parameter {index}")
    for size in kernel.grid:
        _check_size(size, f"{where}: grid")
    scratches = (kernel.global_scratch, kernel.profile_scratch)
    for scratch in scratches:
        _check_scratch(scratch, f"{where}: scratch")
    dependent = kernel.dependent_launch
    require(not dependent or limits.clusters, f"{where}: dependent_launch", "false on this architecture", "true")
    # two kernels that overlap would share the one scratch
    free = not dependent or not any(scratch.bytes for scratch in scratches)
    require(free, f"{where}: dependent_launch", "false of a kernel with scratch", "true")
    for field in ("registers", "spills"):
        require_number(getattr(kernel.receipt, field), f"{where}: receipt.{field}")


def _check_parameter(parameter: Pointer | Constant | Computed, where: str) -> None:
    if isinstance(parameter, Pointer):
        require_number(parameter.operand, f"{where}: operand")
        _check_power(parameter.alignment, f"{where}: alignment")
    elif isinstance(parameter, Computed):
        _check_size(parameter.size, where)
        require_number(parameter.divisor, f"{where}: divisor", 1)
    elif parameter.type == "f32":
        require(math.isfinite(parameter.value) and abs(parameter.value) < 2.0**128, where, "a finite float32", parameter.value)
    else:
        bits = 31 if parameter.type == "i32" else 63
        whole = isinstance(parameter.value, int) and -(1 << bits) <= parameter.value < 1 << bits
        require(whole, where, f"an integer of type {parameter.type}", parameter.value)


def _check_size(size: Size, where: str) -> None:
    if isinstance(size, Product):
        require_number(len(size.factors), f"{where}: factors", 1, 8)
        for factor in size.factors:
            _check_size(factor, where)
    elif isinstance(size, CeilDivide):
        require_number(size.by, f"{where}: by", 1)
    elif isinstance(size, int):
        require_number(size, where, 1)


def _check_scratch(scratch: Scratch, where: str) -> None:
    require_number(scratch.bytes, f"{where}: bytes")
    _check_power(scratch.alignment, f"{where}: alignment")


def _check_power(value: int, where: str) -> None:
    require(0 < value <= MAX_NUMBER and value & (value - 1) == 0, where, "a power of two", value)


def _check_functions(device: DevicePlan) -> None:
    kernels = {kernel.name: kernel for kernel in device.kernels}
    for function in device.functions:
        where = f"device.functions, {function.name}"
        require(_NAME.fullmatch(function.name) is not None, where, "the name of a function", repr(function.name))
        require(bool(function.variants), f"{where}: variants", "at least one", "none")
        for variants in (function.variants, function.decode):
            ascending = all(one.most < other.most for one, other in pairwise(variants))
            require(ascending, f"{where}: variants", "ascending rows", [item.most for item in variants])
        for variant in (*function.variants, *function.decode):
            require_number(variant.most, f"{where}: variants", 1)
            if variant.kernel is not None:
                require(variant.kernel in kernels, f"{where}: variants", "a kernel of device.kernels", repr(variant.kernel))
                _check_operand_types(function, kernels[variant.kernel], where)


def _check_operand_types(function: DeviceFunction, kernel: DeviceKernel, where: str) -> None:
    """Every pointer is to an operand of its type, and some output is pointed to."""
    types = (*function.inputs, *function.outputs)
    pointers = [parameter for parameter in kernel.parameters if isinstance(parameter, Pointer)]
    for pointer in pointers:
        at = f"{where}, kernel {kernel.name}: operand {pointer.operand}"
        require(pointer.operand < len(types), at, f"an operand below {len(types)}", pointer.operand)
        require(pointer.dtype == types[pointer.operand], at, types[pointer.operand], pointer.dtype)
    written = any(pointer.operand >= len(function.inputs) for pointer in pointers)
    require(written, f"{where}, kernel {kernel.name}", "a pointer to an output", "none")


def _check_references(device: DevicePlan, sizes: Mapping[str, int]) -> None:
    """Names are unique, and every kernel and every binary is used."""
    require_unique((function.name for function in device.functions), "device.functions")
    names = require_unique((kernel.name for kernel in device.kernels), "device.kernels")
    unused = names - {item.kernel for function in device.functions for item in (*function.variants, *function.decode)}
    require(not unused, "device.kernels", "kernels that a function names", sorted(unused)[:8])
    loose = {name for name in sizes if name.startswith(KERNELS_PREFIX)} - {kernel.entry for kernel in device.kernels}
    require(not loose, "entries", "no binary that no kernel names", sorted(loose)[:8])


def _check_exchanges(manifest: Manifest, device: DevicePlan) -> None:
    """Each is of an axis of several ranks, and all are within what is planned for communication."""
    axes = {axis.name for axis in manifest.mesh if axis.size > 1}
    for exchange in device.exchanges:
        where = f"device.exchanges, {exchange.name}"
        require(exchange.axis in axes, f"{where}: axis", f"a mesh axis of several ranks: {sorted(axes)}", repr(exchange.axis))
        require_number(exchange.bytes, f"{where}: bytes", 1)
    total = exchange_bytes(device.exchanges)
    require(total <= manifest.memory.communication, "device.exchanges", f"{manifest.memory.communication} bytes at most", total)


def _check_layout(manifest: Manifest) -> None:
    """Device memory is one stretch in which each array begins at a multiple of the alignment, so sizes count rounded up."""
    weights = [weight.bytes for weight in manifest.weights for _ in range(len(weight.layers) or 1)]
    held = {"weights": weights, "arena": [manifest.memory.arena]}
    for field, items in (
        ("constants", manifest.constants),
        ("inputs", manifest.step_inputs),
        ("slots", manifest.slot_buffers),
    ):
        shapes = [tuple(extent for extent in item.shape if isinstance(extent, int)) for item in items]
        held[field] = [prod(shape) * DTYPE_BYTES[item.dtype] for shape, item in zip(shapes, items, strict=True)]
    for field, sizes in held.items():
        rounded = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        planned = getattr(manifest.memory, field)
        require(planned == rounded, f"memory.{field}", f"{rounded}, each array rounded up to {ALIGNMENT} bytes", planned)
    for group in manifest.kv.groups:
        row = manifest.kv.block_tokens * group.heads * group.head_dim
        require(row % ALIGNMENT == 0, f"kv.groups, {group.name}", f"blocks of a multiple of {ALIGNMENT} elements", row)
    for weight in manifest.weights:
        wanted = "none" if weight.dtype in DTYPE_BYTES else "planes"
        require(weight.prepack == wanted, f"weights, {weight.name}: prepack", f"'{wanted}' for an accelerator", weight.prepack)
