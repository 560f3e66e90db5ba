"""The cost rule of every operation: floating-point operations and bytes moved, linear in rows but for the experts of a mixture.

Attention over the cached context is counted apart (plans/perf_model.py), since it depends on context, not on rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ..ir.mixture import all_experts
from ..ir.mlir import ir
from ..ir.recurrence import state_arguments, step_block
from ..ir.storage import stored_type
from ..ir.types import dtype_of, shape_of
from ..plans.program import DTYPE_BYTES
from ..plans.weight_layout import stored_bytes
from .mixture_cost import busiest

FREE = {"ts.input", "ts.weight", "ts.constant", "ts.reshape", "ts.slice", "ts.take_rows", "ts.join_rows"}
"""Operations that cost nothing: names for storage that is there anyway."""


@dataclass(frozen=True)
class Cost:
    """Work of one operation at `rows` rows: flops, bytes of weights read, bytes of activations read and written."""

    flops: float
    weight_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes


def _elements(value: ir.Value, rows: int) -> int:
    return prod(rows if size is None else size for size in shape_of(value))


def _size(value: ir.Value, rows: int) -> int:
    return _elements(value, rows) * DTYPE_BYTES[dtype_of(value)]


def _weight_size(value: ir.Value) -> int:
    """Bytes of a weight as stored: block types are marked on ts.weight by the quantize phase."""
    shape = [size or 0 for size in shape_of(value)]
    owner: ir.Operation = value.owner if isinstance(value.owner, ir.Operation) else value.owner.operation  # pyright: ignore
    return stored_bytes(shape, stored_type(owner, dtype_of(value)), "none")


def _is_weight(value: ir.Value) -> bool:
    owner = value.owner
    return not isinstance(owner, ir.Block) and getattr(owner, "name", getattr(owner, "OPERATION_NAME", "")) == "ts.weight"


def _per_element(flops: float) -> Callable[[ir.Operation, int], float]:
    return lambda operation, rows: flops * _elements(operation.results[0], rows)


def _linear_flops(operation: ir.Operation, rows: int) -> float:
    out, inner = shape_of(operation.operands[1])
    return 2.0 * rows * (out or 0) * (inner or 0)


_PRODUCTS = {"addmm", "baddbmm", "bmm", "linear", "matmul", "mm"}


def _aten_flops(operation: ir.Operation, rows: int) -> float:
    """Products sum over the last dimension of their first matrix; all else is counted as one operation an element."""
    name = ir.StringAttr(operation.attributes["target"]).value.split(".")[1]
    elements = float(_elements(operation.results[0], rows))
    if name not in _PRODUCTS:
        return elements
    left = operation.operands[1 if name in {"addmm", "baddbmm"} else 0]
    return 2.0 * elements * (shape_of(left)[-1] or rows)


def _latent_flops(operation: ir.Operation, rows: int) -> float:
    """Queries into latent space and results out of it."""
    out, inner = shape_of(operation.operands[4])
    return 2.0 * rows * (out or 0) * (inner or 0)


def attention_width(operation: ir.Operation) -> float:
    """Products and sums of one row per key, over two: a query's features for attention over keys and values."""
    if operation.name != "ts.latent_attention":
        return float(_elements(operation.results[0], 1))
    (_, heads, rotated), latent = shape_of(operation.operands[1]), shape_of(operation.operands[2])[1] or 0
    return (heads or 0) * (latent + (rotated or 0) / 2)


_FLOPS: dict[str, Callable[[ir.Operation, int], float]] = {
    "ts.aten": _aten_flops,
    "ts.linear": _linear_flops,
    "ts.rms_norm": _per_element(4),
    "ts.add_rms_norm": _per_element(5),
    "ts.layer_norm": _per_element(7),
    "ts.rope_table": _per_element(2),
    "ts.rope": _per_element(3),
    "ts.rope_kv_write": _per_element(4),
    "ts.attention": _per_element(1),
    "ts.cached_attention": _per_element(1),
    "ts.latent_attention": _latent_flops,
    "ts.gated_activation": _per_element(5),
    "ts.activation": _per_element(4),
    "ts.scale": _per_element(1),
    "ts.softcap": _per_element(3),
    "ts.moe_route": lambda operation, rows: 8.0 * _elements(operation.operands[0], rows),
    "ts.moe_experts": lambda operation, rows: cost_of_experts(operation, rows, 1).flops,
    "ts.recurrence": lambda operation, rows: _recurrence_flops(operation, rows),
    "ts.cast": _per_element(1),
    "ts.add": _per_element(1),
    "ts.mul": _per_element(1),
}


def _recurrence_flops(operation: ir.Operation, rows: int) -> float:
    return sum(_aten_flops(inside, rows) for inside in _body_of(operation) if inside.name == "ts.aten")


def _body_of(operation: ir.Operation) -> list[ir.Operation]:
    return [view.operation for view in step_block(operation).operations]


def _state_bytes(operation: ir.Operation, rows: int) -> int:
    """Bytes of states that are read and written, and of what the body's calls make, write and read again."""
    states = sum(_size(value, rows) for value in state_arguments(operation))
    made = sum(_size(inside.results[0], rows) for inside in _body_of(operation) if inside.name == "ts.aten")
    return 2 * (states + made)


def cost_of(operation: ir.Operation, rows: int) -> Cost:
    """Work of one run of the operation; of experts that ranks share out, on the busiest rank."""
    if operation.name in FREE:
        return Cost(0, 0, 0)
    if operation.name == "ts.moe_experts":
        return cost_of_experts(operation, rows, 1)
    flops = _FLOPS.get(operation.name, lambda *_: 0.0)(operation, rows)
    weights = sum(_weight_size(value) for value in operation.operands if _is_weight(value))
    moved = sum(_size(value, rows) for value in (*operation.operands, *operation.results) if not _is_weight(value))
    if operation.name == "ts.embedding":
        return Cost(flops, 0, 2 * _size(operation.results[0], rows))
    if operation.name == "ts.aten":
        moved += 2 * _size(operation.results[0], rows)  # its result is copied to its place
    if operation.name == "ts.recurrence":
        moved += _state_bytes(operation, rows)
    return Cost(flops, weights, moved)


def cost_of_experts(operation: ir.Operation, rows: int, parts: int) -> Cost:
    """Work of `ts.moe_experts` on the busiest of `parts` times as many ranks as share its experts out already."""
    held, hidden, inner = (size or 0 for size in shape_of(operation.operands[4]))
    top_k, here = shape_of(operation.operands[1])[1] or 0, -(-held // parts)
    load = busiest(here, all_experts(operation), top_k, rows)
    flops = load.pairs * (6.0 * hidden * inner + 5 * inner + 2 * hidden)
    weights = sum(_weight_size(value) for value in operation.operands if _is_weight(value))
    moved = sum(_size(value, rows) for value in (*operation.operands, *operation.results) if not _is_weight(value))
    return Cost(flops, weights * load.experts / held, moved)
