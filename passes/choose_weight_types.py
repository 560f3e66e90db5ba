"""quantize: the type each matrix is stored in: the model's own, blocks as the checkpoint has them, or blocks it is rounded to.

Block types are ggml's (plans/weight_layout.py). Only kernels in the plan read them, so without those nothing is quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Literal

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.storage import KEPT, STORED
from ..ir.types import shape_of
from ..plans.errors import UsageError
from ..plans.template import is_templated
from ..plans.weight_layout import BLOCKS, WEIGHT_BLOCKS

Quantization = Literal["auto", "none", "int8", "int4"]
Encodings = Callable[[str, Sequence[int]], set[str]]
"""(parameter template, layers) -> encodings of the checkpoint tensors behind it, as plans name types; empty if there are none."""

MATRIX_OPERANDS = {"ts.linear": (1,), "ts.embedding": (1,), "ts.moe_experts": (3, 4)}
_ROUNDED = {"int8": "q8_0", "int4": "q4_0"}
# what holds a checkpoint's blocks: the same type, or one that restates them
_HOLDS = {**{name: name for name in WEIGHT_BLOCKS}, "q4_k": "q4_1"}
_FALLBACK = "q8_0"


def choose_weight_types(
    module: ir.Module, wanted: Quantization, native: str | None, encodings: Encodings, readers: Container[str] = MATRIX_OPERANDS
) -> ir.Module:
    """Mark weights with the block type they are stored in; in place. `native` says why there are no native kernels, if so;
    `readers` are the operations that have a kernel which reads blocks.

    `auto` keeps the blocks of a quantised checkpoint; int8 and int4 round every matrix (the embedding table and the head, which
    decide over single tokens, to int8 either way). Raises UsageError when it was asked for and cannot be done.
    """
    if native is not None:
        if wanted in _ROUNDED:
            raise UsageError(
                "quantised weights need native kernels", where="--quantize", got=native, fix="compile with --quantize none"
            )
        return module
    head = _head(module)
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.weight" or not _is_matrix(operation, readers):
            continue
        stored, kept = _choice(operation, wanted, operation == head, encodings)
        if stored:
            operation.attributes[STORED] = modules.text(stored)
            operation.attributes[KEPT] = modules.text(kept)
    return module


def stored_share(wanted: Quantization) -> float:
    """What rounded matrices take of what they take in 16 bits; 1 where nothing is rounded."""
    if wanted not in _ROUNDED:
        return 1.0
    elements, size = BLOCKS[_ROUNDED[wanted]]
    return size / (2 * elements)


def layers_of(operation: ir.Operation) -> tuple[int, ...]:
    """The layer indices that a weight in a repeat stands for; () outside, and for one that all layers share."""
    parent = operation.parent
    if parent is None or parent.name != "ts.repeat" or not is_templated(modules.text_attribute(operation, "sym")):
        return ()
    first, count, stride = (modules.int_attribute(parent, name) for name in ("first", "count", "stride"))
    return tuple(range(first, first + count * stride, stride))


def users_of(operation: ir.Operation) -> list[tuple[ir.Operation, int]]:
    """Operations that read the first result, with the operand's position."""
    return modules.readers_of(operation.results[0])


def _is_matrix(weight: ir.Operation, readers: Container[str]) -> bool:
    users = users_of(weight)
    matrices = bool(users) and all(
        user.name in readers and position in MATRIX_OPERANDS.get(user.name, ()) for user, position in users
    )
    # a router is small, and its rounding would send rows to other experts
    return matrices and not any(reader.name == "ts.moe_route" for user, _ in users for reader, _ in users_of(user))


def _choice(weight: ir.Operation, wanted: Quantization, is_head: bool, encodings: Encodings) -> tuple[str, str]:
    """(stored type or "", checkpoint's type where its blocks are kept or "")."""
    features = shape_of(weight.results[0])[-1] or 0
    if wanted == "none" or features % BLOCKS[_FALLBACK][0]:
        return "", ""
    if wanted in _ROUNDED:
        alone = is_head or any(user.name == "ts.embedding" for user, _ in users_of(weight))
        return _FALLBACK if alone else _ROUNDED[wanted], ""
    found: set[str] = set()
    for name in modules.text_list(weight, "parameters"):
        found |= encodings(name, layers_of(weight))
    if not found or not all(name.endswith(("_0", "_1", "_k")) for name in found):
        return "", ""
    if len(found) == 1 and found <= _HOLDS.keys():
        (kept,) = found
        return _HOLDS[kept], kept
    return _FALLBACK, ""


def _head(module: ir.Module) -> ir.Operation | None:
    """The weight that the logits are made with."""
    returned = list(modules.step_block(module).operations)[-1].operation.operands[0]
    while True:
        owner = returned.owner
        if isinstance(owner, ir.Block):
            return None
        operation = owner if isinstance(owner, ir.Operation) else owner.operation
        if operation.name == "ts.linear":
            weight = operation.operands[1].owner
            return weight if isinstance(weight, ir.Operation) else getattr(weight, "operation", None)
        if not operation.operands:
            return None
        returned = operation.operands[0]
