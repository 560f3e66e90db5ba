"""Templates of rows in and out of the model."""

from __future__ import annotations

from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Pointer, Symbol
from .kernel import Constexpr, DeviceOperation, DeviceSetting, Launch, single
from .operand import MOST_ALIGNMENT, Layout
from .templates import layouts, one_function, one_launch, pointers
from .tiles import power_of_two_above, waits_for_inputs

_BLOCK = 2048
_TOKENS = 256


def embedding(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.embedding: (tokens, table) -> rows."""
    (tokens, table), (rows,) = layouts(operation)
    return _gathered("embedding", (tokens, table), (1, 0), rows, setting, "rows")


def gather_rows(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.gather_rows: (x, logit_rows) -> rows."""
    (x, indices), (rows,) = layouts(operation)
    return _gathered("gather_rows", (x, indices), (0, 1), rows, setting, "logit_rows")


def take_last_tokens(setting: DeviceSetting) -> DeviceOperation:
    """(token_ids, row_slots, last_tokens) -> tokens: -1 stands for what the row's slot sampled last."""
    dependent = waits_for_inputs(setting.accelerator)
    operands = [Pointer(index, "i32", MOST_ALIGNMENT) for index in range(4)]
    launch = Launch(
        "rows.take_last_tokens",
        {"BLOCK": _TOKENS, "DEPENDENT": dependent},
        (*operands, Computed("rows")),
        (CeilDivide("rows", _TOKENS), 1, 1),
        dependent_launch=dependent,
    )
    return single(one_function("take_last_tokens", launch, ("i32",) * 3, ("i32",)))


def _gathered(
    stem: str, inputs: tuple[Layout, Layout], order: tuple[int, int], out: Layout, setting: DeviceSetting, by: Symbol
) -> DeviceOperation:
    """`order` says which inputs are the source and the indices."""
    source, dependent = inputs[order[0]], waits_for_inputs(setting.accelerator)
    block = min(_BLOCK, power_of_two_above(out.columns))
    constants: dict[str, Constexpr] = {"N": out.columns, "SOURCE_ROW": source.row_stride, "BLOCK": block, "DEPENDENT": dependent}
    operands = pointers((*inputs, out))
    parameters = (operands[order[0]], operands[order[1]], operands[2])
    grid = (by, -(-out.columns // block), 1)
    launch = Launch("rows.gather", constants, parameters, grid, dependent_launch=dependent)
    return one_launch(stem, launch, inputs, (out,), by)
