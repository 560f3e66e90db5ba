"""Whether a program may run on its manifest's buffers: every operand resolves and every access stays inside its buffer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod

from .container import ALIGNMENT
from .device_integrity import check_device_call, check_device_launch
from .device_kernels import DEVICE, DeviceFunction, DevicePlan
from .device_library import runs_in_library
from .findings import MAX_NUMBER, require, require_number, require_unique
from .kv_caches import cache_names, caches_of_libraries, state_arrays
from .names import read_only_names, weight_instances, writable_names
from .program import DTYPE_BYTES, NATIVE, Bucket, Buffer, Call, Dimension, Program, Repeat, View, count_of, in_pool, symbols_of
from .recurrence_integrity import RECURRENCE, check_recurrence
from .schema import Manifest, ProgramReference
from .stage_integrity import check_crossings
from .stages import SEND, of_rank, stage_of
from .template import instantiate, is_templated

MAX_EXPANDED_OPERANDS = 4_000_000

_FUNCTION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


def check_program(manifest: Manifest, program: Program) -> None:
    """Raise `PlanError`, naming program and item, unless the program is sound for every bucket and every layer, on what the ranks
    that run it have."""
    where = f"program {program.name}"
    reference = next((item for item in manifest.programs if item.name == program.name), None)
    require(reference is not None, where, "a program the manifest lists", program.name)
    assert reference is not None
    require(program.rank == reference.rank, f"{where}: rank", reference.rank, program.rank)
    require_unique([item.name for item in (*program.buffers, *program.views)], f"{where}: buffers and views")
    if reference.role == "step":
        check_crossings(manifest, stage_of(manifest, reference.rank), program, where)
    manifest = of_rank(manifest, reference.rank)
    _check_shapes(program, where)
    _check_buckets(manifest, program, reference, where)
    for bucket in program.buckets:
        _check_arena(program, bucket, f"{where}, bucket of {bucket.rows} rows")
        _check_views(program, bucket, f"{where}, bucket of {bucket.rows} rows")
    _check_operands(manifest, program, where)
    _check_block_orders(manifest, program, where)
    _check_device_calls(manifest, program, where)


def extents(shape: Sequence[Dimension], bucket: Bucket) -> tuple[int, ...]:
    """A shape with `rows` and `logit_rows` replaced by the bucket's."""
    symbols = {"rows": bucket.rows, "logit_rows": bucket.logit_rows}
    return tuple(count_of(extent, symbols) for extent in shape)


def _check_shapes(program: Program, where: str) -> None:
    for item in (*program.buffers, *program.views):
        require(len(item.shape) <= 8, f"{where}, {item.name}: shape", "at most 8 dimensions", len(item.shape))
        static = [extent for extent in item.shape if isinstance(extent, int)]
        require(
            all(1 <= extent <= MAX_NUMBER for extent in static), f"{where}, {item.name}: shape", "positive dimensions", item.shape
        )
    buffers = {buffer.name for buffer in program.buffers}
    for view in program.views:
        _check_view(view, buffers, f"{where}, {view.name}")


def _check_view(view: View, buffers: set[str], where: str) -> None:
    require(view.base in buffers, f"{where}: base", "a buffer of this program", repr(view.base))
    require(len(view.strides) == len(view.shape), f"{where}: strides", f"{len(view.shape)} strides", len(view.strides))
    require_number(view.offset, f"{where}: offset")
    require(view.skipped == 0 or bool(view.shape), f"{where}: skipped", "0 of a view without dimensions", view.skipped)
    for stride in view.strides:
        require_number(stride, f"{where}: strides")


def _check_buckets(manifest: Manifest, program: Program, reference: ProgramReference, where: str) -> None:
    require(bool(program.buckets), f"{where}: buckets", "at least one", "none")
    shapes = {item.name: item.shape for item in manifest.step_inputs}
    keys = [(bucket.rows, bucket.logit_rows) for bucket in program.buckets]
    require(all(one < other for one, other in pairwise(keys)), f"{where}: buckets", "ascending buckets", keys)
    for bucket in program.buckets:
        at = f"{where}, bucket of {bucket.rows} rows"
        require_number(bucket.rows, f"{at}: rows", 1, shapes["token_ids"][0])
        require_number(bucket.logit_rows, f"{at}: logit_rows", 0, shapes["logit_rows"][0])
        require(
            len(bucket.offsets) == len(program.buffers), f"{at}: offsets", f"{len(program.buffers)} offsets", len(bucket.offsets)
        )
        require_number(bucket.arena_bytes, f"{at}: arena_bytes", 0, manifest.memory.arena)
    largest = program.buckets[-1].rows
    require(largest == reference.max_rows, f"{where}: buckets", f"a largest bucket of {reference.max_rows} rows", largest)


def _check_arena(program: Program, bucket: Bucket, where: str) -> None:
    for buffer, offset in zip(program.buffers, bucket.offsets, strict=True):
        at = f"{where}, {buffer.name}: offset"
        require(offset >= 0 and offset % ALIGNMENT == 0, at, f"a multiple of {ALIGNMENT}", offset)
        end = offset + _elements(buffer, bucket) * DTYPE_BYTES[buffer.dtype]
        require(end <= bucket.arena_bytes, at, f"an end within the arena's {bucket.arena_bytes} bytes", f"{offset}, end {end}")


def _check_views(program: Program, bucket: Bucket, where: str) -> None:
    sizes = {buffer.name: _elements(buffer, bucket) for buffer in program.buffers}
    for view in program.views:
        shape = extents(view.shape, bucket)
        if 0 in shape:
            continue
        start = view.start({"rows": bucket.rows, "logit_rows": bucket.logit_rows})
        last = start + sum((extent - 1) * stride for extent, stride in zip(shape, view.strides, strict=True))
        require(
            last < sizes[view.base],
            f"{where}, {view.name}",
            f"elements below {sizes[view.base]} of {view.base}",
            f"element {last}",
        )


def _elements(buffer: Buffer, bucket: Bucket) -> int:
    return prod(extents(buffer.shape, bucket))


def _check_operands(manifest: Manifest, program: Program, where: str) -> None:
    """Every name of every call resolves, for every layer it is run for, and nothing writes what must not change."""
    count = sum(_operand_count(item) for item in program.body)
    require(count <= MAX_EXPANDED_OPERANDS, f"{where}: body", f"at most {MAX_EXPANDED_OPERANDS} operands", count)
    writable = {item.name for item in (*program.buffers, *program.views)} | set(writable_names(manifest))
    readable = writable | set(read_only_names(manifest))
    kernels = set(manifest.kernels.kernels) if manifest.kernels else set()
    pools = {cache: group.pool for group in manifest.kv.groups for cache in cache_names(group)} if manifest.kv.windows else {}
    for position, (call, indices) in enumerate(_calls(manifest, program, where)):
        at = f"{where}, instruction {position} ({call.function})"
        require(_FUNCTION.fullmatch(call.function) is not None, at, "the name of a function", repr(call.function))
        if call.function.startswith(NATIVE):
            named = call.function.removeprefix(NATIVE)
            require(named in kernels, at, "a kernel of the plan's library", repr(named))
        require(bool(call.outputs) or call.function == SEND, f"{at}: outputs", "at least one", "none")
        if call.function == RECURRENCE:
            check_recurrence(manifest, call, indices, at)
        _check_resolves(call.inputs, readable, indices, f"{at}: inputs", "a name that resolves")
        _check_resolves(call.outputs, writable, indices, f"{at}: outputs", "a view, buffer, slot buffer or KV cache")
        _check_pools(pools, call, indices, at)


def _check_pools(pools: Mapping[str, int], call: Call, indices: range | None, where: str) -> None:
    """What tells a call where tokens lie is of the pool that its caches are of, which may be smaller than another."""
    told = {name for name in call.inputs if name.partition(".")[0] in {"block_tables", "slot_mapping"}}
    if not told or not pools:
        return
    for name in (*call.inputs, *call.outputs):
        for index in indices or (0,):
            pool = pools.get(instantiate(name, index) if indices is not None and is_templated(name) else name)
            if pool is not None:
                expected = {in_pool("block_tables", pool), in_pool("slot_mapping", pool)}
                require(told <= expected, f"{where}: inputs", f"{sorted(expected)} of {name}'s pool", sorted(told))


def _check_block_orders(manifest: Manifest, program: Program, where: str) -> None:
    """Functions of libraries get no head-major cache: they would read it as if it were token-major."""
    head_major = {name for group in manifest.kv.groups if group.block_order == "head_major" for name in cache_names(group)}
    if not head_major:
        return
    for cache, function in caches_of_libraries(program):
        require(
            cache not in head_major,
            f"{where}, {function}",
            f"token_major blocks (kv.groups: block_order) of {cache}",
            "head_major",
        )


def _check_device_calls(manifest: Manifest, program: Program, where: str) -> None:
    """A plan for an accelerator calls its device functions, with operands of their types, in buckets they can run, and functions
    of the allow-list that run on devices; any other plan calls no device function."""
    device = manifest.device
    if device is None:
        loose = next((call.function for call in program.calls if call.function.startswith(DEVICE)), None)
        require(loose is None, where, "device functions only in a plan for an accelerator", repr(loose))
        return
    types = _element_types(manifest, program)
    shapes = {item.name: item.shape for item in (*program.buffers, *program.views)}
    called: dict[tuple[str, tuple[tuple[str, int], ...]], tuple[DeviceFunction, Mapping[str, int]]] = {}
    for position, (call, indices) in enumerate(_calls(manifest, program, where)):
        at = f"{where}, instruction {position} ({call.function})"
        if runs_in_library(call.function):
            continue
        expected = "a device function, or one that runs on devices, in a plan for an accelerator"
        require(call.function.startswith(DEVICE), at, expected, repr(call.function))
        function = _check_device_types(device, call, indices, types, at)
        for bucket in program.buckets:
            symbols = symbols_of((*call.outputs, *call.inputs), shapes, {"rows": bucket.rows, "logit_rows": bucket.logit_rows})
            called.setdefault((function.name, tuple(symbols.items())), (function, symbols))
    for function, symbols in called.values():
        check_device_launch(device, function, symbols, f"{where}, {symbols['rows']} rows, {DEVICE}{function.name}")


def _check_device_types(
    device: DevicePlan, call: Call, indices: range | None, types: dict[str, str], where: str
) -> DeviceFunction:
    require(not call.attributes, f"{where}: attributes", "none: a kernel's parameters hold them", sorted(call.attributes))
    function = None
    for index in indices or (0,):
        inputs, outputs = (
            [types[instantiate(name, index) if indices is not None and is_templated(name) else name] for name in names]
            for names in (call.inputs, call.outputs)
        )
        function = check_device_call(device, call.function.removeprefix(DEVICE), (inputs, outputs), where)
    assert function is not None
    return function


def _element_types(manifest: Manifest, program: Program) -> dict[str, str]:
    """Element type of everything an operand may name."""
    types: dict[str, str] = {}
    for group in manifest.kv.groups:
        types |= dict.fromkeys(cache_names(group), group.dtype)
    for states in manifest.kv.states:
        types |= {name: dtype for name, _, dtype in state_arrays(states)}
    for weight in manifest.weights:
        types |= {name: weight.dtype for name, _ in weight_instances(weight)}
    types |= {item.name: "i64" for item in (manifest.device.exchanges if manifest.device else ())}
    for item in (*manifest.constants, *manifest.slot_buffers, *manifest.step_inputs):
        types[item.name] = item.dtype
    buffers = {buffer.name: buffer.dtype for buffer in program.buffers}
    return types | buffers | {view.name: buffers[view.base] for view in program.views}


def _operand_count(item: Call | Repeat) -> int:
    calls, times = (item.body, max(item.count, 0)) if isinstance(item, Repeat) else ((item,), 1)
    return times * sum(len(call.inputs) + len(call.outputs) for call in calls)


def _calls(manifest: Manifest, program: Program, where: str) -> Iterator[tuple[Call, range | None]]:
    """Each call as written, with the layer indices it is run for (None outside a repeat)."""
    for item in program.body:
        if isinstance(item, Call):
            yield item, None
            continue
        at = f"{where}, repeat from layer {item.first}"
        require_number(item.first, f"{at}: first")
        require_number(item.count, f"{at}: count", 1)
        require_number(item.stride, f"{at}: stride", 1)
        require(bool(item.body), f"{at}: body", "at least one call", "none")
        last = item.first + (item.count - 1) * item.stride
        require(last < manifest.model.layers, at, f"layers below {manifest.model.layers}", last)
        yield from ((call, range(item.first, last + 1, item.stride)) for call in item.body)


def _check_resolves(names: Sequence[str], known: set[str], indices: range | None, where: str, expected: str) -> None:
    for name in names:
        if indices is None or not is_templated(name):
            require(name in known, where, expected, repr(name))
            continue
        for index in indices:
            instance = instantiate(name, index)
            require(instance in known, where, expected, repr(instance))
