"""Templates of sums over the ranks of an axis: by kernels of ours through each other's memory where messages are small, with the
residual and the norm that follow; by the vendor's library where they are large.

For a `ts.all_reduce` and the `ts.add_rms_norm` or `ts.add` that alone reads it: in buckets of small messages neither launches
anything by itself, and a third function does the work of both. How large a message may be is the target's `exchange.*` sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of
from ...plans.device_kernels import Computed, Exchange, Parameter, Pointer, Product, Size, Symbol
from ...plans.program import DTYPE_BYTES
from ...plans.weight_layout import StoredType
from ..accelerator import Accelerator
from .elementwise import add
from .kernel import Constexpr, DeviceOperation, DeviceSetting, DeviceStep, FunctionTemplate, LibraryStep, Variants, merged
from .kernel import Launch as Launched
from .norms import add_rms_norm
from .norms import style as style_of
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, pointers, rows_of
from .tiles import power_of_two_above, waits_for_inputs

BLOCKS = 128
"""Most blocks that pass messages; all of them must run at the same time."""

_TURNS = 2
_WORD_BYTES = 8
_GATHERED_WORDS = 2048
_LATENCY_ALONE = 8
"""Rows up to which a row is better done by more threads."""

_COUNT_BYTES = 4
_MOST_COLUMNS = 16384
_LEAST_COLUMNS = 64
_ALIGNMENT = 64
_ADDRESS: Literal["i64"] = "i64"

Way = Literal["in_words", "in_rows"]

_SIZES: dict[Way, str] = {"in_words": "exchange.words", "in_rows": "exchange.rows"}
"""The target's figure of the largest message of each way, ascending."""


@dataclass(frozen=True)
class _Followed:
    """A sum with what reads it alone: its residual, the norm's weight."""

    operation: ir.Operation
    residual: ir.Value | None = None
    reader: ir.Operation | None = None


def all_reduce_or_nothing(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.all_reduce: (x) -> the sum of all ranks' x; nothing where what follows does it as well."""
    most = most_rows(operation, setting.accelerator)
    library = LibraryStep(
        "all_reduce",
        (0,),
        (1,),
        {
            "axis": modules.text_attribute(operation, "axis"),
            "ranks": modules.int_attribute(operation, "ranks"),
            "above": max(most.values(), default=0),
        },
    )
    if not most or _reader_of(operation) is not None:
        return DeviceOperation((), before=(library,))
    exchanges, steps = _steps(_Followed(operation), setting, (0,), (1,))
    return DeviceOperation(steps, exchanges=exchanges, before=(library,))


def all_gather(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.all_gather: (x) -> the x of all ranks side by side along a dimension; by the library but for few rows of columns."""
    (x,), (out,) = (tuple(map(layout_of, values)) for values in (operation.operands, operation.results))
    axis = modules.text_attribute(operation, "axis")
    dimension, ranks = (modules.int_attribute(operation, name) for name in ("dimension", "ranks"))
    rows = _most_gathered(x, dimension, ranks, setting.accelerator)
    library = LibraryStep("all_gather", (0,), (1,), {"axis": axis, "dimension": dimension, "ranks": ranks, "above": rows})
    if not rows:
        return DeviceOperation((), before=(library,))
    block = min(_GATHERED_WORDS, power_of_two_above(x.columns // 2))
    parts = -(-x.columns // 2 // block)
    size = _counts() + BLOCKS * _TURNS * ranks * block * _WORD_BYTES
    exchange = Exchange(name=f"exchange.{axis}.gather.{block}", axis=axis, bytes=size)
    constants: dict[str, Constexpr] = {"N": x.columns, "X_ROW": x.row_stride, "PARTS": parts, "RANKS": ranks, "BLOCK": block}
    constants |= {"COUNTS": _counts(), "THROUGH": setting.accelerator.kind == "hip"}
    constants |= {"DEPENDENT": waits_for_inputs(setting.accelerator)}
    by = rows_of(operation)
    parameters: tuple[Parameter, ...] = (x.pointer(0), Pointer(1, _ADDRESS, 8), out.pointer(2), Computed(by))

    def launch(count: int) -> Launched | None:
        if count > rows:
            return None
        blocks: Size = Product((by, parts)) if count * parts <= BLOCKS else BLOCKS
        warps = max(1, min(8, block // 256))
        return Launched("exchange.gather", constants, parameters, (blocks, 1, 1), warps, dependent_launch=_dependent(constants))

    name = function_name(f"exchange.gather.n{x.columns}", x.dtype, parameters, {**constants, "most": rows, "by": by})
    inputs: tuple[StoredType, ...] = (x.dtype, _ADDRESS)
    function = FunctionTemplate(name, inputs, (out.dtype,), lambda bounds: merged([(most, launch(most)) for most in bounds]), by)
    return DeviceOperation((DeviceStep(function, (0, exchange.name), (1,)),), exchanges=(exchange,), before=(library,))


def _most_gathered(x: Layout, dimension: int, ranks: int, accelerator: Accelerator) -> int:
    """The most rows that are gathered through each other's memory."""
    fits = x.dtype in {"bf16", "f16"} and len(x.shape) == 2 and x.shape[0] is None and x.alignment == MOST_ALIGNMENT
    if not fits or dimension != 1 or x.columns % 8 or ranks > accelerator.peers or "exchange.words" not in accelerator.sizes:
        return 0
    return int(accelerator.sizes["exchange.words"].value) // (x.columns * DTYPE_BYTES[x.dtype])


def _dependent(constants: Mapping[str, Constexpr]) -> bool:
    return bool(constants["DEPENDENT"])


def add_rms_norm_or_all(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add_rms_norm: (x, residual, weight) -> their sum, its norm; or x's sum over the ranks too, whose operand follows."""
    made, summed = add_rms_norm(operation, setting), _sum_before(operation)
    if summed is None or not (most := most_rows(summed, setting.accelerator)):
        return made
    followed = _Followed(summed, operation.operands[1], operation)
    exchanges, steps = _steps(followed, setting, (5, 1, 2), (3, 4))
    alone = tuple(_left_out(step, max(most.values())) for step in made.steps)
    return replace(made, steps=(*alone, *steps), more=(summed.operands[0],), exchanges=exchanges)


def add_or_all(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add: (a, b) -> a + b; or, where one is a sum over the ranks, that sum too, whose operand follows."""
    made, summed = add(operation, setting), _sum_before(operation)
    if summed is None or not (most := most_rows(summed, setting.accelerator)):
        return made
    other = 1 if modules.maker_of(operation.operands[0]) == summed else 0
    followed = _Followed(summed, operation.operands[other], operation)
    exchanges, steps = _steps(followed, setting, (3, other), (2,))
    alone = tuple(_left_out(step, max(most.values())) for step in made.steps)
    return replace(made, steps=(*alone, *steps), more=(summed.operands[0],), exchanges=exchanges)


def most_rows(operation: ir.Operation, accelerator: Accelerator) -> dict[Way, int]:
    """The most rows that a sum goes through each other's memory with, by way; none where it never does."""
    x = layout_of(operation.operands[0])
    ranks = modules.int_attribute(operation, "ranks")
    fits = x.dtype in {"bf16", "f16"} and len(x.shape) == 2 and x.shape[0] is None and x.alignment == MOST_ALIGNMENT
    whole = x.columns % 8 == 0 and _LEAST_COLUMNS <= x.columns <= _MOST_COLUMNS
    if not fits or not whole or ranks > accelerator.peers:
        return {}
    found: dict[Way, int] = {}
    for way, size in _SIZES.items():
        rows = int(accelerator.sizes[size].value) // (x.columns * DTYPE_BYTES[x.dtype]) if size in accelerator.sizes else 0
        if rows > max(found.values(), default=0):
            found[way] = rows
    return found


def _reader_of(operation: ir.Operation) -> ir.Operation | None:
    """What is done together with a sum: the addition, with its norm or without, that alone reads it."""
    readers = [reader for reader, _ in modules.readers_of(operation.results[0])]
    if len(readers) != 1 or readers[0].parent != operation.parent:
        return None
    return readers[0] if _sum_before(readers[0]) == operation else None


def _sum_before(operation: ir.Operation) -> ir.Operation | None:
    """The sum over ranks that an addition (with its norm or without) alone reads."""
    if operation.name not in {"ts.add_rms_norm", "ts.add"}:
        return None
    for at, value in enumerate(operation.operands[:1] if operation.name == "ts.add_rms_norm" else operation.operands):
        maker = modules.maker_of(value)
        if maker is None or maker.name != "ts.all_reduce" or maker.parent != operation.parent:
            continue
        residual = operation.operands[1 - at]
        alone = len(list(modules.readers_of(value))) == 1
        alike = dtype_of(residual) == dtype_of(value) and layout_of(residual).alignment == MOST_ALIGNMENT
        if alone and alike and len(layout_of(residual).shape) == 2 and layout_of(residual).columns == layout_of(value).columns:
            return maker
    return None


def _left_out(step: DeviceStep, most: int) -> DeviceStep:
    """The same, but nothing in buckets of up to so many rows."""
    function = step.function

    def variants(bounds: Sequence[int]) -> Variants:
        return merged([(bound, None if bound <= most else function.variants([bound])[0][1]) for bound in bounds])

    name = f"{function.name}.above{most}"
    return replace(step, function=replace(function, name=name, variants=variants))


def _steps(
    followed: _Followed, setting: DeviceSetting, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[tuple[Exchange, ...], tuple[DeviceStep, ...]]:
    """A step for each way; inputs are x, residual and weight as far as there are any, then the exchange."""
    most = most_rows(followed.operation, setting.accelerator)
    least = 0
    exchanges, steps = [], []
    for way, rows in most.items():
        exchange = _exchange(followed.operation, way)
        exchanges.append(exchange)
        steps.append(DeviceStep(_function(followed, setting, way, least, rows), (*inputs, exchange.name), outputs))
        least = rows
    return tuple(exchanges), tuple(steps)


def _exchange(operation: ir.Operation, way: Way) -> Exchange:
    axis, ranks = modules.text_attribute(operation, "axis"), modules.int_attribute(operation, "ranks")
    columns = layout_of(operation.operands[0]).columns
    places = BLOCKS * _TURNS * ranks * columns * (4 if way == "in_words" else 2)
    return Exchange(name=f"exchange.{axis}.{way}.{columns}", axis=axis, bytes=_counts() + _flags(way, ranks) + places)


def _counts() -> int:
    return BLOCKS * _COUNT_BYTES


def _flags(way: Way, ranks: int) -> int:
    return 0 if way == "in_words" else -(-BLOCKS * ranks * _COUNT_BYTES // _ALIGNMENT) * _ALIGNMENT


def _function(followed: _Followed, setting: DeviceSetting, way: Way, least: int, most: int) -> FunctionTemplate:
    """(x[, residual[, weight]], exchange) -> total[, out], in buckets of more than `least` and up to `most` rows."""
    operation, reader = followed.operation, followed.reader
    norm = reader if reader is not None and reader.name == "ts.add_rms_norm" else None
    x, by = layout_of(operation.operands[0]), rows_of(operation)
    read = [x] + ([layout_of(followed.residual)] if followed.residual is not None else [])
    read += [layout_of(norm.operands[2])] if norm is not None else []
    written = [layout_of(value) for value in (norm or reader or operation).results]
    constants = _constants(operation, norm, read, setting.accelerator, way)
    if norm is None:
        constants |= {"weight": None, "out": None}
    if followed.residual is None:
        constants["residual"] = None
    address = Pointer(len(read), _ADDRESS, 8)
    parameters: tuple[Parameter, ...] = (*pointers(read), address, *pointers(written, len(read) + 1), Computed(by))

    def launch(rows: int) -> Launched | None:
        if not least < rows <= most:
            return None
        return _launch(way, constants, parameters, by, rows)

    depends = {**constants, "least": least, "most": most, "by": by}
    name = function_name(f"exchange.{way}.n{x.columns}", x.dtype, parameters, depends)
    inputs: tuple[StoredType, ...] = (*(item.dtype for item in read), _ADDRESS)
    outputs: tuple[StoredType, ...] = tuple(item.dtype for item in written)
    return FunctionTemplate(name, inputs, outputs, lambda bounds: merged([(bound, launch(bound)) for bound in bounds]), by)


def _launch(way: Way, constants: dict[str, Constexpr], parameters: tuple[Parameter, ...], by: Symbol, rows: int) -> Launched:
    columns = constants["N"]
    assert isinstance(columns, int)
    wanted = max(1, min(16, columns // (256 if rows <= _LATENCY_ALONE else 512)))
    warps = 1 << (wanted.bit_length() - 1)  # a power of two, whatever the columns
    grid = (by if rows <= BLOCKS else BLOCKS, 1, 1)
    return Launched(f"exchange.{way}", constants, parameters, grid, warps, dependent_launch=_dependent(constants))


def _constants(
    operation: ir.Operation, norm: ir.Operation | None, read: Sequence[Layout], accelerator: Accelerator, way: Way
) -> dict[str, Constexpr]:
    ranks, x = modules.int_attribute(operation, "ranks"), read[0]
    style = {"EPS": 0.0, "ONE_PLUS": False, "CAST_FIRST": False} if norm is None else style_of(norm)
    return {
        "N": x.columns,
        "X_ROW": x.row_stride,
        "RESIDUAL_ROW": read[1].row_stride if len(read) > 1 else 0,
        "RANKS": ranks,
        "COUNTS": _counts(),
        "FLAGS": _flags(way, ranks),
        "BLOCK": power_of_two_above(x.columns // 2),
        "THROUGH": accelerator.kind == "hip",
        "DEPENDENT": waits_for_inputs(accelerator),
        **style,
    }
