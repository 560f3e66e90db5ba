"""Template of an embedding whose table is in blocks."""

from __future__ import annotations

from ...ir.mlir import ir
from ...plans.device_kernels import Constant
from ...plans.weight_layout import chunk_of
from .kernel import Constexpr, DeviceOperation, DeviceSetting, Launch
from .templates import layouts, one_launch, pointers
from .tiles import paired_codes, power_of_two_above, waits_for_inputs

_HALFWORDS = 1024


def block_embedding(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.embedding of a table in planes: (tokens, table) -> rows."""
    (tokens, table), (rows,) = layouts(operation)
    columns, dependent = rows.columns, waits_for_inputs(setting.accelerator)
    halfwords = columns // (4 if table.dtype in ("q4_0", "q4_1") else 2)
    block = min(_HALFWORDS, power_of_two_above(halfwords))
    constants: dict[str, Constexpr] = {
        "FORMAT": table.dtype,
        "CHUNK": chunk_of(columns, table.dtype),
        "PAIRED": paired_codes(setting.accelerator, rows.dtype),
        "BLOCK": block,
        "DEPENDENT": dependent,
    }
    of_tokens, of_table, of_rows = pointers((tokens, table, rows))
    sizes = [Constant("i32", size) for size in (table.shape[0] or 0, columns)]
    launch = Launch(
        "block_rows.gather",
        constants,
        (of_table, of_tokens, of_rows, *sizes),
        ("rows", -(-halfwords // block), 1),
        dependent_launch=dependent,
    )
    return one_launch(f"embedding.{table.dtype}", launch, (tokens, table), (rows,))
