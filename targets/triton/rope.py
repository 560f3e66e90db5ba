"""Templates of rotary position embedding and of the KV cache's writes."""

from __future__ import annotations

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import shape_of
from ...plans.device_kernels import Pointer
from .kernel import Constexpr, DeviceOperation, DeviceSetting, DeviceStep, FunctionTemplate, Launch
from .norms import rms_norm, style
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import flag, layouts, number, one_function, one_launch, pointers, rows_of
from .tiles import power_of_two_above, waits_for_inputs

_ELEMENTS = 1024
"""Pairs that one program turns."""


def rope_table(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rope_table: (positions, frequencies) -> cos, sin."""
    inputs, outputs = layouts(operation)
    half, dependent = inputs[1].shape[0] or 1, waits_for_inputs(setting.accelerator)
    constants: dict[str, Constexpr] = {"HALF": half, "SCALING": number(operation, "scaling"), "BLOCK": power_of_two_above(half)}
    constants["DEPENDENT"] = dependent
    launch = Launch("rope.table", constants, tuple(pointers((*inputs, *outputs))), ("rows", 1, 1), 1, dependent_launch=dependent)
    return one_launch("rope_table", launch, inputs, outputs)


def rope(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rope: (x, cos, sin) -> x turned."""
    inputs, outputs = layouts(operation)
    x, cos, _ = inputs
    heads, dependent, rows = x.shape[1] or 1, waits_for_inputs(setting.accelerator), rows_of(operation)
    constants = {"HEADS": heads, "X_ROW": x.row_stride, "X_HEAD": x.strides[1], **_turn(operation, x, cos, heads)}
    constants["DEPENDENT"] = dependent
    grid = (rows, -(-heads // _number(constants, "BLOCK_HEADS")), 1)
    launch = Launch("rope.rope", constants, tuple(pointers((*inputs, *outputs))), grid, dependent_launch=dependent)
    return one_launch("rope", launch, inputs, outputs, rows)


def rope_kv_write(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rope_kv_write: (q, k, v, cos, sin, slot_mapping) -> q turned, k_cache, v_cache; norms of q's and k's heads come with it
    where nothing else reads them (`normalised_heads`), and then their operands follow."""
    (q, k, v, cos, sin), (out,) = layouts(operation)
    norms, weights = normalised_heads(operation), ()
    if norms is not None:
        (q, of_q), (k, of_k) = (layouts(norm)[0] for norm in norms)
        weights = (of_q, of_k)
    heads, kv_heads, dependent = q.shape[1] or 1, k.shape[1] or 1, waits_for_inputs(setting.accelerator)
    constants: dict[str, Constexpr] = {"HEADS": heads, "KV_HEADS": kv_heads, "TOKENS": setting.block_tokens}
    for name, layout in (("Q", q), ("K", k), ("V", v)):
        constants |= {f"{name}_ROW": layout.row_stride, f"{name}_HEAD": layout.strides[1]}
    constants |= _turn(operation, q, cos, min(heads, kv_heads))
    constants |= {"BLOCK_D": power_of_two_above(q.shape[2] or 1), "DEPENDENT": dependent}
    if norms is None:
        constants |= {"q_norm": None, "k_norm": None, "EPS": 0.0, "ONE_PLUS": False, "CAST_FIRST": False}
        places, more = (0, 1, 2, 3, 4, 5), ()
    else:
        constants |= style(norms[0])
        places = (9, 11, 2, 3, 4, 5, 10, 12)
        more = tuple(value for norm in norms for value in norm.operands)
    together = _number(constants, "BLOCK_HEADS")
    inputs = [*pointers((q, k, v, cos, sin)), Pointer(5, "i64", MOST_ALIGNMENT), *pointers(weights, 6)]
    kept, first = setting.kv_dtype or q.dtype, len(inputs)
    outputs = [out.pointer(first), *(Pointer(first + at, kept, MOST_ALIGNMENT) for at in (1, 2))]
    grid = ("rows", -(-heads // together) + -(-kv_heads // together), 1)
    launch = Launch("rope.rope_kv_write", constants, (*inputs, *outputs), grid, 2, dependent_launch=dependent)
    types = (*(item.dtype for item in (q, k, v, cos, sin)), "i64", *(item.dtype for item in weights))
    function = one_function("rope_kv_write", launch, types, (q.dtype, kept, kept))
    return DeviceOperation((DeviceStep(function, places, (6, 7, 8)),), (), more)


def norm_unless_turned(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rms_norm: nothing where the writer of keys, which alone reads it, does it as well."""
    readers = modules.readers_of(operation.results[0])
    write = readers[0][0] if len(readers) == 1 else None
    if write is not None and write.name == "ts.rope_kv_write" and operation in (normalised_heads(write) or ()):
        return DeviceOperation(())
    return rms_norm(operation, setting)


def normalised_heads(write: ir.Operation) -> tuple[ir.Operation, ir.Operation] | None:
    """The RMS norms that make q and k of a ts.rope_kv_write alone: of each head, and alike but for their weights."""
    found: list[ir.Operation] = []
    for value in list(write.operands)[:2]:
        norm = modules.maker_of(value)
        if norm is None or norm.name != "ts.rms_norm" or norm.parent != write.parent or len(modules.readers_of(value)) > 1:
            return None
        if len(shape_of(norm.operands[0])) != 3 or layout_of(norm.operands[1]).dtype != layout_of(value).dtype:
            return None
        found.append(norm)
    q, k = found
    return (q, k) if q != k and style(q) == style(k) else None


def kv_write(k: Layout, v: Layout, setting: DeviceSetting) -> FunctionTemplate:
    """(k, v, slot_mapping) -> k_cache, v_cache."""
    kv_heads, width, dependent = k.shape[1] or 1, k.shape[2] or 1, waits_for_inputs(setting.accelerator)
    block = power_of_two_above(width)
    together = min(power_of_two_above(kv_heads), max(1, 2 * _ELEMENTS // block))
    constants: dict[str, Constexpr] = {"KV_HEADS": kv_heads, "D": width, "TOKENS": setting.block_tokens}
    for name, layout in (("K", k), ("V", v)):
        constants |= {f"{name}_ROW": layout.row_stride, f"{name}_HEAD": layout.strides[1]}
    constants |= {"BLOCK_HEADS": together, "BLOCK_D": block, "DEPENDENT": dependent}
    kept = setting.kv_dtype or k.dtype
    caches = [Pointer(index, kept, MOST_ALIGNMENT) for index in (3, 4)]
    parameters = (*pointers((k, v)), Pointer(2, "i64", MOST_ALIGNMENT), *caches)
    launch = Launch("rope.kv_write", constants, parameters, ("rows", -(-kv_heads // together), 1), 2, dependent_launch=dependent)
    return one_function("kv_write", launch, (k.dtype, v.dtype, "i64"), (kept, kept))


def _turn(operation: ir.Operation, x: Layout, cos: Layout, heads: int) -> dict[str, Constexpr]:
    """Constants of turning heads as wide as x's by tables like cos, blocks cut for `heads`."""
    width, turned = x.shape[2] or 1, cos.shape[1] or 1
    pairs = power_of_two_above(turned // 2)
    return {
        "D": width,
        "TURNED": turned,
        "TABLE_ROW": cos.row_stride,
        "INTERLEAVED": flag(operation, "interleaved"),
        "BLOCK_HEADS": min(power_of_two_above(heads), max(1, _ELEMENTS // pairs)),
        "BLOCK": pairs,
        "REST": power_of_two_above(width - turned) if width > turned else 0,
    }


def _number(constants: dict[str, Constexpr], name: str) -> int:
    value = constants[name]
    assert isinstance(value, int)
    return value
