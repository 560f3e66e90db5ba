"""Expands a program once into launches bound to views: names resolved, repeats unrolled, operands checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ..plans.device_kernels import DEVICE
from ..plans.device_library import COLLECTIVES, runs_in_library
from ..plans.errors import PlanError
from ..plans.kv_caches import is_cache
from ..plans.program import NATIVE, Bucket, Call, Program, Repeat
from ..plans.template import instantiate
from .device.arrays import DeviceArray
from .functions.context import Context, Launch
from .host_arrays import HostArray
from .native.launches import NativeLaunches
from .operands import Addressed, Extent, OperandArrays, Surroundings
from .overlap import Meeting, Overlap, Span, joined

if TYPE_CHECKING:
    from .device.runtime import DeviceRuntime
    from .functions.registry import Function


def lookup(name: str) -> Function:
    """A function of the allow-list; imports torch, which programs of native kernels alone do without."""
    from .functions.registry import lookup as find

    return find(name)


@dataclass
class Unneeded:
    """Launches that a step need not run: those `of_decoding` rows without such rows, those `of_logits` where none are wanted."""

    of_decoding: set[Launch] = field(default_factory=set)
    of_logits: set[Launch] = field(default_factory=set)


@dataclass(frozen=True)
class Expansion:
    """Launches in order; `own` gives a view or buffer of the program by name, where the launches leave it; `array` a copy on the
    host if that is on a device, after all work so far. `cache_uses` says which KV caches a launch touches, on a device.

    `resize(rows, logit_rows)` fits the native launches to a smaller step; meaningful when the program `is_native`.
    """

    launches: tuple[Launch, ...]
    unneeded: Unneeded
    cache_uses: Mapping[Launch, tuple[str, ...]]
    own: Callable[[str], Addressed]
    array: Callable[[str], HostArray]
    resize: Callable[[int, int], None]

    @cached_property
    def of_chunks(self) -> tuple[Launch, ...]:
        """Those of a step without decoding rows."""
        return tuple(launch for launch in self.launches if launch not in self.unneeded.of_decoding)

    @cached_property
    def of_silent_chunks(self) -> tuple[Launch, ...]:
        """Those of a step without decoding rows that wants no logits either."""
        return tuple(launch for launch in self.of_chunks if launch not in self.unneeded.of_logits)


def bucket_for(program: Program, rows: int, logit_rows: int, decode: bool = True) -> Bucket | None:
    """The smallest bucket that holds the step; without `decode`, none in which every row wants its logits."""
    fitting = [
        bucket
        for bucket in program.buckets
        if bucket.rows >= rows and bucket.logit_rows >= logit_rows and (decode or bucket.rows != bucket.logit_rows)
    ]
    return min(fitting, key=lambda bucket: (bucket.rows, bucket.logit_rows), default=None)


def calls(program: Program, first_only: bool) -> Iterator[tuple[Call, int | None]]:
    """Calls in order with the layer index of their repeat; with `first_only` each repeat runs its first iteration alone."""
    for item in program.body:
        if isinstance(item, Repeat):
            for step in range(1 if first_only else item.count):
                for call in item.body:
                    yield call, item.first + step * item.stride
        else:
            yield item, None


def operand_names(program: Program, first_only: bool) -> set[str]:
    """All operand names of a program, layer indices filled in."""
    return {_named(name, index) for call, index in calls(program, first_only) for name in (*call.inputs, *call.outputs)}


def expand(program: Program, bucket: Bucket, extent: Extent, around: Surroundings, first_only: bool = False) -> Expansion:
    """Bind every call. Raises PlanError for a name that does not resolve, an access outside the arena, a forbidden output
    or operands that a function refuses."""
    arrays = OperandArrays(program, bucket, extent, around)
    native = NativeLaunches(around.native)
    launches: list[Launch | None] = []
    loose: set[Launch] = set()  # of libraries on a device, which no graph may hold
    unneeded = Unneeded()
    overlap, meetings = Overlap(), list[Meeting]()
    uses: dict[Launch, tuple[str, ...]] = {}
    for call, index in calls(program, first_only):
        inputs, outputs = ([_named(name, index) for name in names] for names in (call.inputs, call.outputs))
        if overlap.is_open:
            waits = overlap.before(_spans(inputs, arrays), _spans(outputs, arrays))
            launches += [native.cut(), *waits] if waits else ()
        if call.function.startswith(NATIVE):
            readable = [arrays.described(name, arrays.readable(name)) for name in inputs]
            writable = [arrays.described(name, arrays.writable(name)) for name in outputs]
            native.add(call.function, readable, writable, call.attributes, _named(call.label, index))
            continue
        if call.function.startswith(DEVICE):
            on_device = _on_device(call, index, arrays, around)
            uses.update(dict.fromkeys(on_device, _caches(inputs, outputs)))
            if around.device is not None:
                kernels = around.device.kernels
                unneeded.of_decoding.update(on_device if kernels.decoding_only(call.function) else ())
                unneeded.of_logits.update(on_device if kernels.by_logit_rows(call.function) else ())
            launches += [native.cut(), *on_device]
            continue
        if around.device is not None:
            launch = _in_library(call, index, arrays, around, around.device)
            if launch is not None and call.function not in COLLECTIVES:
                loose.add(launch)
                uses[launch] = _caches(inputs, outputs)
                launches += overlap.finish()  # no graph ends in between
        else:
            launch = _bound(call, index, arrays, around.context)
        launches.append(native.cut())
        if isinstance(launch, Meeting):
            meetings.append(launch)
            launches += overlap.begin(launch, _spans(inputs, arrays), _spans(outputs, arrays))
        else:
            launches.append(launch)
    launches += [native.cut(), *overlap.finish()]
    made = tuple(joined([launch for launch in launches if launch is not None], meetings))
    if around.device is not None and around.device.graphs.holds(bucket):
        where = f"program {program.name}, bucket of {bucket.rows} rows"
        made = around.device.graphs.captured(made, loose, where)
        every = tuple(dict.fromkeys(name for names in uses.values() for name in names))
        uses = {launch: uses.get(launch, every) for launch in made}
    uses = {launch: names for launch, names in uses.items() if names}
    return Expansion(made, unneeded, uses, arrays.own, lambda name: _on_host(arrays.own(name), around), native.resize)


def _caches(inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
    """The KV caches among a call's operands."""
    return tuple(name for name in (*inputs, *outputs) if is_cache(name))


def _on_device(call: Call, index: int | None, arrays: OperandArrays, around: Surroundings) -> tuple[Launch, ...]:
    """The launches of a device kernel: none where its grid is empty."""
    where = _named(call.label or call.function, index)
    if around.device is None:
        raise PlanError(
            "The plan calls device kernels but is for no device.", where=where, got=call.function, fix="compile the plan again"
        )
    operands = [arrays.addressed(_named(name, index)) for name in call.inputs]
    operands += [arrays.writable_addressed(_named(name, index)) for name in call.outputs]
    return around.device.kernels.prepare(call.function, arrays.symbols(call), operands, where)


def _in_library(
    call: Call, index: int | None, arrays: OperandArrays, around: Surroundings, device: DeviceRuntime
) -> Launch | None:
    """The launch of a library function over device memory; none of a collective that kernels do for so few rows."""
    where = _named(call.label or call.function, index)
    library = device.library
    if library is None or not runs_in_library(call.function):
        raise PlanError(
            "The plan calls a function that does not run on a device.",
            where=where,
            got=call.function,
            fix="compile the plan again",
        )
    least = call.attributes.get("above") if call.function in COLLECTIVES else None
    if isinstance(least, int) and arrays.writable_addressed(_named(call.outputs[0], index)).shape[0] <= least:
        return None
    function = lookup(call.function)
    from .functions.base import Operands
    from .functions.registry import READ_ON_HOST

    on_host = READ_ON_HOST.get(call.function, frozenset())
    inputs = [
        arrays.cut(name, device.host_input(name)).tensor if name in on_host else library.tensor(arrays.addressed(name))
        for name in (_named(name, index) for name in call.inputs)
    ]
    outputs = [library.tensor(arrays.writable_addressed(_named(name, index))) for name in call.outputs]
    operands = Operands(call.function, inputs, outputs, call.attributes, around.context, call.label, index)
    launch = function(operands)
    if isinstance(launch, Meeting):
        return launch.with_launches(lambda part: library.guarded(part, where))
    return library.guarded(launch, where)


def _spans(names: Sequence[str], arrays: OperandArrays) -> list[Span]:
    """The addresses of those operands that lie in the arena: no collective touches any others."""
    return [span for span in map(arrays.span, names) if span is not None]


def _on_host(array: Addressed, around: Surroundings) -> HostArray:
    if not isinstance(array, DeviceArray):
        return array
    assert around.device is not None  # where device arrays come from
    return around.device.fetch(array)


def _bound(call: Call, index: int | None, arrays: OperandArrays, context: Context) -> Launch:
    """The launch of a library function."""
    function = lookup(call.function)
    from .functions.base import Operands

    inputs = [arrays.tensor(_named(name, index)) for name in call.inputs]
    outputs = [arrays.writable_tensor(_named(name, index)) for name in call.outputs]
    return function(Operands(call.function, inputs, outputs, call.attributes, context, call.label, index))


def _named(name: str, index: int | None) -> str:
    return name if index is None or "{" not in name else instantiate(name, index)
