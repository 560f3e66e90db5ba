"""Expands a program once into launches bound to views: names resolved, repeats unrolled, operands checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ..plans.errors import PlanError
from ..plans.program import DTYPE_BYTES, NATIVE, Bucket, Buffer, Call, Dimension, Program, Repeat, View
from ..plans.template import instantiate
from .functions.context import Context, Launch
from .host_arrays import NUMPY_TYPES, HostArray, LibraryArray
from .native.launches import NativeLaunches
from .native.records import NativeArray, PackedWeight, Symbol, describe
from .native.runtime import NativeRuntime

if TYPE_CHECKING:
    import torch

    from .functions.registry import Function

# How the step inputs follow the rows of a step; the others are used whole, `counts` says what is real.
_ROW_INPUTS = frozenset(("token_ids", "positions", "slot_mapping", "row_slots"))
_LOGIT_INPUTS = frozenset(("logit_rows", "logit_slots"))


Array = HostArray | PackedWeight | LibraryArray
"""What an operand's name may stand for."""


def lookup(name: str) -> Function:
    """A function of the allow-list; imports torch, which programs of native kernels alone do without."""
    from .functions.registry import lookup as find

    return find(name)


@dataclass(frozen=True)
class Extent:
    """How many rows and logit rows an expansion is for."""

    rows: int
    logit_rows: int

    def of(self, shape: tuple[Dimension, ...]) -> tuple[int, ...]:
        symbols = {"rows": self.rows, "logit_rows": self.logit_rows}
        return tuple(symbols[extent] if isinstance(extent, str) else extent for extent in shape)


@dataclass(frozen=True)
class Surroundings:
    """What a program's operands may name outside the program: `inputs` may only be read, `state` may be written."""

    arena: HostArray
    inputs: Mapping[str, Array]
    state: Mapping[str, HostArray]
    context: Context
    native: NativeRuntime | None = None


@dataclass(frozen=True)
class Expansion:
    """Launches in order; `array` finds a view or buffer of the program by name.

    `resize(rows, logit_rows)` fits the native launches to a smaller step; meaningful when the program `is_native`.
    """

    launches: tuple[Launch, ...]
    array: Callable[[str], HostArray]
    resize: Callable[[int, int], None]


def bucket_for(program: Program, rows: int, logit_rows: int) -> Bucket | None:
    """The smallest bucket that holds the step."""
    fitting = [bucket for bucket in program.buckets if bucket.rows >= rows and bucket.logit_rows >= logit_rows]
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
    arrays = _Arrays(program, bucket, extent, around)
    native = NativeLaunches(around.native)
    launches: list[Launch | None] = []
    for call, index in calls(program, first_only):
        inputs, outputs = ([_named(name, index) for name in names] for names in (call.inputs, call.outputs))
        if call.function.startswith(NATIVE):
            readable = [arrays.described(name, arrays.readable(name)) for name in inputs]
            writable = [arrays.described(name, arrays.writable(name)) for name in outputs]
            native.add(call.function, readable, writable, call.attributes, _named(call.label, index))
            continue
        launches += [native.cut(), _bound(call, index, arrays, around.context)]
    launches.append(native.cut())
    return Expansion(tuple(launch for launch in launches if launch is not None), arrays.own, native.resize)


def _bound(call: Call, index: int | None, arrays: _Arrays, context: Context) -> Launch:
    """The launch of a library function."""
    function = lookup(call.function)
    from .functions.base import Operands

    inputs = [arrays.tensor(_named(name, index)) for name in call.inputs]
    outputs = [arrays.writable(_named(name, index)).tensor for name in call.outputs]
    return function(Operands(call.function, inputs, outputs, call.attributes, context, call.label, index))


def _named(name: str, index: int | None) -> str:
    return name if index is None or "{" not in name else instantiate(name, index)


class _Arrays:
    """Finds operands by name for one extent, each made once."""

    def __init__(self, program: Program, bucket: Bucket, extent: Extent, around: Surroundings) -> None:
        self._program, self._around, self._extent = program.name, around, extent
        self._buffers = {buffer.name: (buffer, offset) for buffer, offset in zip(program.buffers, bucket.offsets, strict=True)}
        self._views = {view.name: view for view in program.views}
        self._made: dict[str, Array] = {}

    def described(self, name: str, array: Array) -> NativeArray:
        """The array as kernels see it, with the row count that its first dimension follows."""
        if isinstance(array, LibraryArray):
            self._refuse("an array that kernels can read", name)
        return describe(array.data if isinstance(array, HostArray) else array, array.dtype, self._symbol(name))

    def _symbol(self, name: str) -> Symbol:
        if name in _ROW_INPUTS:
            return "rows"
        if name in _LOGIT_INPUTS:
            return "logit_rows"
        shape = self._views[name].shape if name in self._views else self._buffers[name][0].shape if name in self._buffers else ()
        return shape[0] if shape and isinstance(shape[0], str) else ""

    def tensor(self, name: str) -> torch.Tensor:
        """An operand of a library function."""
        found = self.readable(name)
        if isinstance(found, PackedWeight):
            self._refuse("a weight that is not packed for native kernels", name)
        return found.tensor

    def own(self, name: str) -> HostArray:
        found = self._find_own(name)
        if found is None:
            self._refuse("a view or buffer of this program", name)
        return found

    def writable(self, name: str) -> HostArray:
        found = self._find_own(name)
        if found is None:
            found = self._around.state.get(name)
        if found is None:
            self._refuse("a view, buffer, slot buffer or KV cache as output", name)
        return found

    def readable(self, name: str) -> Array:
        found: Array | None = self._find_own(name)
        if found is None:
            found = self._made.get(name)
        if found is None:
            found = self._cut_input(name)
        if found is None:
            found = self._around.state.get(name)
        if found is None:
            self._refuse("a name that resolves", name)
        return found

    def _cut_input(self, name: str) -> Array | None:
        found = self._around.inputs.get(name)
        if not isinstance(found, HostArray):
            return found
        if name in _ROW_INPUTS:
            found = found.first(self._extent.rows)
        elif name in _LOGIT_INPUTS:
            found = found.first(self._extent.logit_rows)
        self._made[name] = found
        return found

    def _find_own(self, name: str) -> HostArray | None:
        kept = self._made.get(name)
        if isinstance(kept, HostArray) and (name in self._views or name in self._buffers):
            return kept
        if name in self._views:
            found = self._view(self._views[name])
        elif name in self._buffers:
            found = self._buffer(*self._buffers[name])
        else:
            return None
        self._made[name] = found
        return found

    def _buffer(self, buffer: Buffer, offset: int) -> HostArray:
        shape = self._extent.of(buffer.shape)
        size = prod(shape) * DTYPE_BYTES[buffer.dtype]
        arena = self._around.arena.data
        if min(shape, default=0) < 0 or offset < 0 or offset % 64 or offset + size > arena.size:
            self._refuse(f"{buffer.name} inside the arena of {arena.size} bytes", f"{size} bytes at {offset}")
        data = arena[offset : offset + size].view(NUMPY_TYPES[buffer.dtype]).reshape(shape)
        return HostArray(data, buffer.dtype, self._around.arena)

    def _view(self, view: View) -> HostArray:
        base = self._find_own(view.base) if view.base in self._buffers else None
        if base is None:
            self._refuse(f"{view.name} on a buffer of this program", view.base)
        shape = self._extent.of(view.shape)
        sound = len(shape) == len(view.strides) and min((view.offset, *shape, *view.strides)) >= 0
        reach = view.offset + sum((extent - 1) * stride for extent, stride in zip(shape, view.strides, strict=False))
        if not sound or (0 not in shape and reach >= base.data.size):
            self._refuse(f"{view.name} inside {view.base} of {base.data.size} elements", f"{list(shape)} at {view.offset}")
        flat = base.data.reshape(-1)[view.offset :]
        strides = [stride * flat.itemsize for stride in view.strides]
        return HostArray(np.lib.stride_tricks.as_strided(flat, shape, strides), base.dtype, base.arena)

    def _refuse(self, expected: str, got: str) -> NoReturn:
        raise PlanError(
            "A program of the plan names what is not there.",
            where=f"program {self._program}",
            expected=expected,
            got=got,
            fix="compile the plan again with tokenspeed-compile",
        )
