"""Finds the arrays that a program's operands name, on the host or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ..plans.errors import PlanError
from ..plans.program import DTYPE_BYTES, Bucket, Buffer, Call, Dimension, Program, View, count_of, symbols_of
from .device.arrays import DeviceArray
from .functions.context import Context
from .host_arrays import HostArray, LibraryArray
from .native.records import NativeArray, PackedWeight, Symbol, describe
from .overlap import Span

if TYPE_CHECKING:
    import torch

    from .device.runtime import DeviceRuntime
    from .native.runtime import NativeRuntime

# How the step inputs follow the rows of a step; the others are used whole, `counts` says what is real.
_ROW_INPUTS = frozenset(("token_ids", "positions", "slot_mapping", "row_slots"))
_LOGIT_INPUTS = frozenset(("logit_rows", "logit_slots"))

Addressed = HostArray | DeviceArray
"""An array that programs may write."""


def _follows_rows(name: str) -> bool:
    """Whether it is a step input of the step's rows; window pools have such inputs of their own."""
    return name in _ROW_INPUTS or name.startswith("slot_mapping.")


AddressedKind = TypeVar("AddressedKind", HostArray, DeviceArray, Addressed)

Array = Addressed | PackedWeight | LibraryArray
"""What an operand's name may stand for."""


@dataclass(frozen=True)
class Extent:
    """How many rows and logit rows an expansion is for."""

    rows: int
    logit_rows: int

    def of(self, shape: tuple[Dimension, ...]) -> tuple[int, ...]:
        symbols = {"rows": self.rows, "logit_rows": self.logit_rows}
        return tuple(count_of(extent, symbols) for extent in shape)


@dataclass(frozen=True)
class Surroundings:
    """What a program's operands may name outside the program: `inputs` may only be read, `state` may be written."""

    arena: Addressed
    inputs: Mapping[str, Array]
    state: Mapping[str, Addressed]
    context: Context
    native: NativeRuntime | None = None
    device: DeviceRuntime | None = None


class OperandArrays:
    """Finds operands by name for one extent, each made once."""

    def __init__(self, program: Program, bucket: Bucket, extent: Extent, around: Surroundings) -> None:
        self._program, self._around, self._extent = program.name, around, extent
        self._buffers = {buffer.name: (buffer, offset) for buffer, offset in zip(program.buffers, bucket.offsets, strict=True)}
        self._views = {view.name: view for view in program.views}
        self._made: dict[str, Array] = {}

    def described(self, name: str, array: Array) -> NativeArray:
        """The array as kernels see it, with the row count that its first dimension follows."""
        if isinstance(array, (LibraryArray, DeviceArray)):
            self._refuse("an array that the host's kernels can read", name)
        return describe(array.data if isinstance(array, HostArray) else array, array.dtype, self._symbol(name))

    def _symbol(self, name: str) -> Symbol:
        if _follows_rows(name):
            return "rows"
        if name in _LOGIT_INPUTS:
            return "logit_rows"
        shape = self._views[name].shape if name in self._views else self._buffers[name][0].shape if name in self._buffers else ()
        symbols: dict[str, Symbol] = {"rows": "rows", "logit_rows": "logit_rows"}
        return symbols.get(str(shape[0]), "") if shape else ""

    def symbols(self, call: Call) -> Mapping[str, int]:
        """The counts of rows that a call sees."""
        shapes = {
            name: self._views[name].shape if name in self._views else self._buffers[name][0].shape
            for name in (*call.outputs, *call.inputs)
            if name in self._views or name in self._buffers
        }
        symbols = {"rows": self._extent.rows, "logit_rows": self._extent.logit_rows}
        return symbols_of((*call.outputs, *call.inputs), shapes, symbols)

    def tensor(self, name: str) -> torch.Tensor:
        """An input of a library function."""
        return self._tensor(name, self.readable(name))

    def writable_tensor(self, name: str) -> torch.Tensor:
        """An output of a library function."""
        return self._tensor(name, self.writable(name))

    def addressed(self, name: str) -> DeviceArray:
        """An input of a device kernel."""
        return self._on_device(name, self.readable(name))

    def writable_addressed(self, name: str) -> DeviceArray:
        """An output of a device kernel."""
        return self._on_device(name, self.writable(name))

    def span(self, name: str) -> Span | None:
        """The addresses of a view or buffer of the program; None for what else a name may stand for."""
        found = self._find_own(name)
        if found is None:
            return None
        if isinstance(found, DeviceArray):
            reach = sum((extent - 1) * stride for extent, stride in zip(found.shape, found.strides, strict=True)) + 1
            return found.address, found.address + (reach * DTYPE_BYTES[found.dtype] if found.elements else 0)
        return found.span

    def _tensor(self, name: str, found: Array) -> torch.Tensor:
        if isinstance(found, (PackedWeight, DeviceArray)):
            self._refuse("an array that libraries on the host can read", name)
        return found.tensor

    def _on_device(self, name: str, found: Array) -> DeviceArray:
        if not isinstance(found, DeviceArray):
            self._refuse("an array in device memory", name)
        return found

    def own(self, name: str) -> Addressed:
        """A view or buffer of the program."""
        found = self._find_own(name)
        if found is None:
            self._refuse("a view or buffer of this program", name)
        return found

    def writable(self, name: str) -> Addressed:
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
        if not isinstance(found, Addressed):
            return found
        self._made[name] = found = self.cut(name, found)
        return found

    def cut(self, name: str, whole: AddressedKind) -> AddressedKind:
        """Of a step input's full extent, what a step of this extent reads."""
        if _follows_rows(name):
            return whole.first(self._extent.rows)
        return whole.first(self._extent.logit_rows) if name in _LOGIT_INPUTS else whole

    def _find_own(self, name: str) -> Addressed | None:
        kept = self._made.get(name)
        if isinstance(kept, Addressed) and (name in self._views or name in self._buffers):
            return kept
        if name in self._views:
            found = self._view(self._views[name])
        elif name in self._buffers:
            found = self._buffer(*self._buffers[name])
        else:
            return None
        self._made[name] = found
        return found

    def _buffer(self, buffer: Buffer, offset: int) -> Addressed:
        shape = self._extent.of(buffer.shape)
        size = prod(shape) * DTYPE_BYTES[buffer.dtype]
        arena = self._around.arena
        if min(shape, default=0) < 0 or offset < 0 or offset % 64 or offset + size > arena.nbytes:
            self._refuse(f"{buffer.name} inside the arena of {arena.nbytes} bytes", f"{size} bytes at {offset}")
        return arena.window(offset, buffer.dtype, shape)

    def _view(self, view: View) -> Addressed:
        base = self._find_own(view.base) if view.base in self._buffers else None
        if base is None:
            self._refuse(f"{view.name} on a buffer of this program", view.base)
        shape = self._extent.of(view.shape)
        sound = len(shape) == len(view.strides) and min((view.offset, *shape, *view.strides)) >= 0
        start = view.start({"rows": self._extent.rows, "logit_rows": self._extent.logit_rows}) if sound else view.offset
        reach = start + sum((extent - 1) * stride for extent, stride in zip(shape, view.strides, strict=False))
        if not sound or (0 not in shape and reach >= base.elements):
            self._refuse(f"{view.name} inside {view.base} of {base.elements} elements", f"{list(shape)} at {start}")
        return base.strided(start, shape, view.strides)

    def _refuse(self, expected: str, got: str) -> NoReturn:
        raise PlanError(
            "A program of the plan names what is not there.",
            where=f"program {self._program}",
            expected=expected,
            got=got,
            fix="compile the plan again with tokenspeed-compile",
        )
