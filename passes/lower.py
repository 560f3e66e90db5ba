"""codegen: the selected operations as a flat instruction list over named buffers, windows and views.

Reshapes and slices cost nothing: they become views. What a repeat carries stays in one buffer, updated in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import msgspec

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.recurrence import state_arguments
from ..ir.rows import rows_after
from ..ir.types import dtype_of, shape_of
from ..plans.aten_functions import function_of
from ..plans.device_kernels import DEVICE
from ..plans.kv_caches import state_name
from ..plans.program import NATIVE, Attribute, Buffer, Call, Dimension, Program, Repeat, RowCount, View, base_of, in_pool
from ..plans.recurrence_body import RECURRENCE_INPUTS, encode_body
from ..targets.machine import Machine
from ..targets.triton.elementwise import copy
from ..targets.triton.operand import Layout, dense_strides
from ..targets.triton.rows import take_last_tokens
from .lower_device import DeviceCalls, operands_of
from .lower_recurrence import body_of_recurrence
from .select import kernel_named
from .window_pools import cache_layers, pools_of_layers

LOGITS = "logits"
IN_PLACE = {"add", "mul", "scale", "softcap"}
"""Functions whose output may be one of their inputs."""


@dataclass(frozen=True)
class _Place:
    """Where a value lives: an operand name and, for arena values, the window of its base buffer."""

    name: str
    base: str = ""
    offset: int = 0
    shape: tuple[Dimension, ...] = ()
    strides: tuple[int, ...] = ()
    skipped: Dimension = 0


def lower(
    module: ir.Module,
    machine: Machine,
    native: bool = False,
    device: DeviceCalls | None = None,
    name: str = "step",
    rank: int = 0,
    windows: Sequence[int] = (),
) -> Program:
    """The step program `name` of a rank, without buckets yet (allocate adds them). `native`: what is added here is native too.

    `device` makes the calls for an accelerator. `windows` have pools of KV blocks of their own, in that order.
    """
    lowering = _Lowering(machine, NATIVE if native else "", device, pools_of_layers(module, windows))
    program = lowering.run(modules.step_block(module))
    return msgspec.structs.replace(program, name=name, rank=rank)


class _Lowering:
    def __init__(self, machine: Machine, prefix: str, device: DeviceCalls | None, pools: dict[int, int]) -> None:
        self.machine, self.device, self.pools = machine, device, pools
        self.copy, self.take_last_tokens = f"{prefix}copy", f"{prefix}take_last_tokens"
        self.buffers: dict[str, Buffer] = {}
        self.views: dict[str, View] = {}
        self.places: dict[ir.Value, _Place] = {}
        self.symbols: dict[ir.Value, RowCount] = {}
        self.renamed: dict[str, str] = {}
        self.lowered: set[ir.Operation] = set()
        self.counter = 0

    def run(self, block: ir.Block) -> Program:
        body: list[Call | Repeat] = []
        self._block(block, body)
        for logits in list(block.operations)[-1].operation.operands:  # the last stage of a pipeline alone has them
            self._name_logits(logits, body)
        calls = tuple(self._resolved(item) for item in body)
        views = tuple(map(self._resolved_view, self.views.values()))
        touched = _touched(calls, views)  # what another operation's calls do as well leaves no results
        buffers = tuple(buffer for name, buffer in self.buffers.items() if name in touched)
        return Program("step", 0, buffers, views, calls, ())

    def _name_logits(self, returned: ir.Value, body: list[Call | Repeat]) -> None:
        place = self.places[returned]
        if place.name in self.buffers:
            self._rename(place.name, LOGITS)
        else:
            self.buffers[LOGITS] = Buffer(LOGITS, dtype_of(returned), place.shape)  # pyright: ignore[reportArgumentType]
            body += self._copy(place.name, LOGITS, "logits")

    def _block(self, block: ir.Block, body: list[Call | Repeat] | list[Call]) -> None:
        for view in block.operations:
            operation = view.operation
            if operation.name == "ts.repeat":
                body.extend(self._repeat(operation))  # pyright: ignore[reportArgumentType]
            elif operation.name not in {"ts.yield", "func.return"}:
                body.extend(self._operation(operation))
            self.lowered.add(operation)

    def _operation(self, operation: ir.Operation) -> list[Call]:
        if operation.name in {"ts.weight", "ts.constant", "ts.input"}:
            return self._leaf(operation)
        if operation.name in {"ts.reshape", "ts.slice"}:
            return self._view(operation)
        if operation.name == "ts.take_rows":
            return self._half(operation)
        if operation.name == "ts.join_rows":
            return self._joined(operation)
        symbol = rows_after(operation, self.symbols)
        for result in operation.results:
            self.symbols[result] = symbol
            self.places[result] = self._summed_in_place(operation) or self._buffer(operation, result, symbol)
        kernel = kernel_named(self.machine, operation)
        function = _aten_function(operation) if operation.name == "ts.aten" else kernel.function
        inputs = [self.places[value].name for value in operation.operands]
        outputs = [self.places[value].name for value in operation.results]
        calls = self._calls(operation, function, inputs, outputs)
        if self.device is None or kernel.device is None:
            return calls
        reads, writes = operands_of(calls)
        made = kernel.device(operation, self.device.setting)
        more = [self.places[value].name for value in made.more]
        return self.device.calls(made, (*reads, *writes, *more), modules.label_of(operation), self._room, symbol)

    def _calls(self, operation: ir.Operation, function: str, inputs: list[str], outputs: list[str]) -> list[Call]:
        build = _CALLS.get(operation.name)
        label = modules.label_of(operation)
        if build is None:
            return [Call(function, tuple(inputs), tuple(outputs), _attributes(operation), label)]
        layer = modules.text_attribute(operation, "layer")
        if operation.name == "ts.recurrence":
            states = range(len(state_arguments(operation)))
            outputs = [*outputs, *(state_name(layer, number) for number in states)]
        calls = build(function, inputs, outputs, _attributes(operation), layer, label)
        pool = self.pools.get(cache_layers(operation)[0], 0)
        return [_told_by_pool(call, pool) for call in calls] if pool else calls

    def _summed_in_place(self, operation: ir.Operation) -> _Place | None:
        """Where a sum over ranks takes the place of what is summed, which nothing else reads."""
        if operation.name != "ts.all_reduce":
            return None
        place = self.places[operation.operands[0]]
        return place if self._may_overwrite(operation, place) else None

    def _copy(self, source: str, target: str, label: str) -> list[Call]:
        """Into a buffer of its own."""
        if self.device is None:
            return [Call(self.copy, (source,), (target,), {}, label)]
        count = str((self.views[target] if target in self.views else self.buffers[target]).shape[0])
        made = copy(self._layout(source), self._layout(target), self.device.setting, base_of(count))
        return self.device.calls(made, (source, target), label, self._room, count)

    def _layout(self, name: str) -> Layout:
        view = self.views.get(name)
        buffer = self.buffers[self._base(name)]
        shape = buffer.shape if view is None else view.shape
        sizes = tuple(None if isinstance(size, str) else size for size in shape)
        if view is None:
            return Layout(buffer.dtype, sizes, dense_strides(sizes))
        return Layout(buffer.dtype, sizes, view.strides, view.offset)

    def _room(self, stem: str, wanted: Buffer) -> str:
        name = f"{stem}.{self.counter}"
        self.counter += 1
        self.buffers[name] = Buffer(name, wanted.dtype, wanted.shape)
        return name

    def _leaf(self, operation: ir.Operation) -> list[Call]:
        name = modules.text_attribute(operation, "sym")
        value = operation.results[0]
        self.symbols[value] = rows_after(operation, {})
        if name != "token_ids":
            self.places[value] = _Place(name)
            return []
        # a decode row may be scheduled before the step that samples its token is complete
        self.places[value] = self._buffer(operation, value, "rows", "tokens")
        inputs, outputs = ("token_ids", "row_slots", "last_tokens"), (self.places[value].name,)
        if self.device is not None:
            return self.device.calls(take_last_tokens(self.device.setting), (*inputs, *outputs), "token_ids", self._room)
        return [Call(self.take_last_tokens, inputs, outputs, {}, "token_ids")]

    def _buffer(self, operation: ir.Operation, value: ir.Value, symbol: RowCount, stem: str = "") -> _Place:
        name = f"{stem or operation.name.removeprefix('ts.')}.{self.counter}"
        self.counter += 1
        shape: tuple[Dimension, ...] = tuple(symbol if size is None else size for size in shape_of(value))
        self.buffers[name] = Buffer(name, dtype_of(value), shape)  # pyright: ignore[reportArgumentType]
        return _Place(name, name, 0, shape, _contiguous(shape))

    def _view(self, operation: ir.Operation) -> list[Call]:
        source, result = self.places[operation.operands[0]], operation.results[0]
        calls: list[Call] = []
        shape: tuple[Dimension, ...] = (source.shape[0], *(size or 0 for size in shape_of(result)[1:]))
        if operation.name == "ts.slice":
            strides, offset = source.strides, source.offset + modules.int_attribute(operation, "start")
        else:
            if source.strides[1:] != _contiguous(source.shape)[1:]:
                # the elements of a row lie apart, as those of a window on heads do: no view has them in another shape
                value = operation.operands[0]
                dense = self._buffer(operation, value, self.symbols[value])
                calls += self._copy(source.name, dense.name, modules.label_of(operation))
                source = dense
            strides, offset = (source.strides[0], *_contiguous(shape)[1:]), source.offset
        name = f"{operation.name.removeprefix('ts.')}.{self.counter}"
        self.counter += 1
        self._window(name, result, _Place(name, source.base, offset, shape, strides, source.skipped))
        self.symbols[result] = self.symbols[operation.operands[0]]
        return calls

    def _window(self, name: str, value: ir.Value | None, place: _Place) -> None:
        self.views[name] = View(name, place.base, place.shape, place.offset, place.strides, place.skipped)
        if value is not None:
            self.places[value] = place

    def _half(self, operation: ir.Operation) -> list[Call]:
        """Half of the rows, where all of them lie."""
        source, result = self.places[operation.operands[0]], operation.results[0]
        self.symbols[result] = rows_after(operation, self.symbols)
        assert source.base and not source.skipped, "a step's inputs and halves are not halved"
        name = f"take_rows.{self.counter}"
        self.counter += 1
        skipped = f"{source.shape[0]}/2" if modules.int_attribute(operation, "half") else 0
        shape = (self.symbols[result], *source.shape[1:])
        self._window(name, result, _Place(name, source.base, source.offset, shape, source.strides, skipped))
        return []

    def _joined(self, operation: ir.Operation) -> list[Call]:
        """Two halves as one buffer: what makes them writes them there, unless they are of other use where they are."""
        result = operation.results[0]
        self.symbols[result] = rows_after(operation, self.symbols)
        place = self.places[result] = self._buffer(operation, result, self.symbols[result])
        calls: list[Call] = []
        for half, value in enumerate(operation.operands):
            skipped = f"{self.symbols[result]}/2" if half else 0
            shape = (self.symbols[value], *place.shape[1:])
            name = f"{place.name}.{half}"
            self._window(name, None, _Place(name, place.base, 0, shape, place.strides, skipped))
            source = self.places[value].name
            if source in self.buffers and self._is_only_made(value, operation):
                self.renamed[source] = name
            else:
                calls += self._copy(source, name, modules.label_of(operation))
        return calls

    def _is_only_made(self, value: ir.Value, reader: ir.Operation) -> bool:
        """Whether a buffer is made in this block, for this reader alone, and is nothing else's place."""
        maker = modules.maker_of(value)
        own = [known for known, place in self.places.items() if place.base == self.places[value].base]
        return maker is not None and maker.name != "ts.repeat" and own == [value] and len(modules.readers_of(value)) == 1

    def _repeat(self, operation: ir.Operation) -> list[Call | Repeat]:
        block = modules.body_of(operation)
        # what runs from layer to layer is one hidden state, or its halves
        entering: list[Call | Repeat] = []
        places: list[_Place] = []
        for argument, value, result in zip(block.arguments, operation.operands, operation.results, strict=True):
            place, symbol = self.places[value], self.symbols[value]
            if not self._may_overwrite(operation, place):
                place = self._buffer(operation, value, symbol, "hidden")
                entering += self._copy(self.places[value].name, place.name, "what enters the layers is read again")
            for carried in (argument, result):
                self.places[carried], self.symbols[carried] = place, symbol
            places.append(place)
        calls: list[Call] = []
        self._block(block, calls)
        terminator = list(block.operations)[-1].operation
        for place, value in zip(places, terminator.operands, strict=True):
            self._carry(place.name, self.places[value].name, calls)
        first, count, stride = (modules.int_attribute(operation, name) for name in ("first", "count", "stride"))
        return [*entering, Repeat(first, count, stride, tuple(calls))]

    def _may_overwrite(self, operation: ir.Operation, place: _Place) -> bool:
        """Whether the place is a whole buffer that nothing but the operation reads from here on."""
        if place.name not in self.buffers:
            return False
        aliases = [value for value, known in self.places.items() if known.base == place.base]
        readers = [reader for alias in aliases for reader, _ in modules.readers_of(alias)]
        return all(reader == operation or reader in self.lowered for reader in readers)

    def _carry(self, carried: str, produced: str, calls: list[Call]) -> None:
        """Put what the body produces where the next round reads it: in place if the old value is dead by then, else a copy."""
        if produced == carried:
            return
        made = next((at for at, call in enumerate(calls) if produced in call.outputs), None)
        last_read = max((at for at, call in enumerate(calls) if self._touches(call, carried)), default=-1)
        if made is not None and (last_read < made or (last_read == made and _in_place(calls[made].function))):
            self._rename(produced, carried)
        else:
            calls += self._copy(produced, carried, "carried to the next layer")

    def _touches(self, call: Call, buffer: str) -> bool:
        return any(self._base(name) == buffer for name in (*call.inputs, *call.outputs))

    def _base(self, name: str) -> str:
        return self.views[name].base if name in self.views else name

    def _rename(self, old: str, new: str) -> None:
        if old == new:
            return
        if new not in self.buffers:
            shape, dtype = self.buffers[old].shape, self.buffers[old].dtype
            self.buffers[new] = Buffer(new, dtype, shape)
        self.renamed[old] = new

    def _final(self, name: str) -> str:
        while name in self.renamed:
            name = self.renamed[name]
        return name

    def _resolved(self, item: Call | Repeat) -> Call | Repeat:
        if isinstance(item, Repeat):
            return Repeat(item.first, item.count, item.stride, tuple(self._resolved_call(call) for call in item.body))
        return self._resolved_call(item)

    def _resolved_call(self, call: Call) -> Call:
        inputs, outputs = tuple(map(self._final, call.inputs)), tuple(map(self._final, call.outputs))
        return Call(call.function, inputs, outputs, call.attributes, call.label)

    def _resolved_view(self, view: View) -> View:
        return View(view.name, self._final(view.base), view.shape, view.offset, view.strides, view.skipped)


def _touched(body: Sequence[Call | Repeat], views: Sequence[View]) -> set[str]:
    """Names that calls read or write, and what views are of."""
    calls = [call for item in body for call in (item.body if isinstance(item, Repeat) else (item,))]
    return {name for call in calls for name in (*call.inputs, *call.outputs)} | {view.base for view in views}


def _in_place(function: str) -> bool:
    return function.removeprefix(NATIVE).removeprefix(DEVICE).split(".")[0] in IN_PLACE


def _contiguous(shape: tuple[Dimension, ...]) -> tuple[int, ...]:
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    return tuple(prod(sizes[at:]) for at in range(len(sizes) + 1))


def _attributes(operation: ir.Operation) -> dict[str, Attribute]:
    reader = _ATTRIBUTES.get(operation.name, {})
    return {name: read(operation, name) for name, read in reader.items()}


def _flag(operation: ir.Operation, name: str) -> bool:
    return bool(modules.int_attribute(operation, name))


_NORM = {"eps": modules.float_attribute, "cast_before_weight": _flag, "one_plus_weight": _flag}
_ATTENTION = {"scale": modules.float_attribute, "window": modules.int_attribute, "softcap": modules.float_attribute}
_ROPE = {"interleaved": _flag}
_CROSSING = {"axis": modules.text_attribute, "value": lambda operation, _name: modules.text_attribute(operation, "sym")}
_PARTS = {"axis": modules.text_attribute, "dimension": modules.int_attribute, "ranks": modules.int_attribute}
_ATTRIBUTES = {
    "ts.rms_norm": _NORM,
    "ts.add_rms_norm": _NORM,
    "ts.layer_norm": {"eps": modules.float_attribute},
    "ts.rope_table": {"scaling": modules.float_attribute},
    "ts.rope": _ROPE,
    "ts.rope_kv_write": _ROPE,
    "ts.gated_activation": {"activation": modules.text_attribute},
    "ts.activation": {"kind": modules.text_attribute},
    "ts.scale": {"factor": modules.float_attribute},
    "ts.softcap": {"cap": modules.float_attribute},
    "ts.aten": {"arguments": modules.text_attribute, "layouts": modules.text_attribute},
    "ts.moe_route": {
        "top_k": modules.int_attribute,
        "scoring": modules.text_attribute,
        "normalize": _flag,
        "scale": modules.float_attribute,
        "groups": modules.int_attribute,
        "top_groups": modules.int_attribute,
        "group_best": modules.int_attribute,
    },
    "ts.moe_experts": {"activation": modules.text_attribute, "alpha": modules.float_attribute, "limit": modules.float_attribute},
    "ts.attention": _ATTENTION,
    "ts.cached_attention": _ATTENTION,
    "ts.latent_attention": {"scale": modules.float_attribute},
    "ts.all_reduce": {"axis": modules.text_attribute, "ranks": modules.int_attribute},
    "ts.all_gather": _PARTS,
    "ts.reduce_scatter": _PARTS,
    "ts.take_part": _PARTS,
    "ts.dispatch": _PARTS | {"experts": modules.int_attribute},
    "ts.combine": _PARTS | {"experts": modules.int_attribute},
    "ts.send": _CROSSING,
    "ts.receive": _CROSSING,
    "ts.recurrence": {"body": lambda operation, _name: encode_body(body_of_recurrence(operation))},
}


def _aten_function(operation: ir.Operation) -> str:
    """The plan's name for the ATen operation; raising kept only those that have one."""
    name = function_of(modules.text_attribute(operation, "target"))
    assert name is not None
    return name


def _told_by_pool(call: Call, pool: int) -> Call:
    """The call with what a window pool's steps say of blocks."""
    inputs = tuple(in_pool(name, pool) if name in {"block_tables", "slot_mapping"} else name for name in call.inputs)
    return msgspec.structs.replace(call, inputs=inputs)


_SEQUENCES = ("sequence_starts", "context_lengths", "block_tables", "counts")


def _caches(layer: str) -> list[str]:
    return [f"kv.k.{layer}", f"kv.v.{layer}"]


def _rope_kv_write(
    function: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], layer: str, label: str
) -> list[Call]:
    return [Call(function, (*inputs, "slot_mapping"), (*outputs, *_caches(layer)), attributes, label)]


def _cached_attention(
    function: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], layer: str, label: str
) -> list[Call]:
    q, *sinks = inputs
    return [Call(function, (q, *_caches(layer), *_SEQUENCES, *sinks), tuple(outputs), attributes, label)]


def _attention(
    function: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], layer: str, label: str
) -> list[Call]:
    write, _, attend = function.partition("+")
    q, k, v, *sinks = inputs
    store = Call(write, (k, v, "slot_mapping"), tuple(_caches(layer)), {}, label)
    return [store, *_cached_attention(attend, [q, *sinks], outputs, attributes, layer, label)]


def _latent_attention(
    function: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], layer: str, label: str
) -> list[Call]:
    write, _, attend = function.partition("+")
    q_nope, q_rope, latent, k_rope, kv_b = inputs
    cache = f"kv.latent.{layer}"
    store = Call(write, (latent, k_rope, "slot_mapping"), (cache,), {}, label)
    return [store, Call(attend, (q_nope, q_rope, kv_b, cache, *_SEQUENCES), tuple(outputs), attributes, label)]


def _recurrence(
    function: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], _layer: str, label: str
) -> list[Call]:
    return [Call(function, (*inputs, *RECURRENCE_INPUTS), tuple(outputs), attributes, label)]


_CALLS = {
    "ts.recurrence": _recurrence,
    "ts.attention": _attention,
    "ts.rope_kv_write": _rope_kv_write,
    "ts.cached_attention": _cached_attention,
    "ts.latent_attention": _latent_attention,
}
"""Operations that also read step inputs and KV caches, which the IR leaves implicit."""
