"""quantize: the type each matrix is stored in: the model's own, blocks as the checkpoint has them, or blocks it is rounded to.

Block types are ggml's, and one of 8-bit floats (plans/weight_layout.py). Only kernels in the plan read them, so without those
nothing is quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Literal

from ..ir import module as modules
from ..ir.arrangement import arrangement_of
from ..ir.mlir import ir
from ..ir.placements import parse_shard
from ..ir.storage import KEPT, STORED
from ..ir.types import placement_of, shape_of
from ..plans.errors import UsageError
from ..plans.template import is_templated
from ..plans.weight_layout import BLOCKS, WEIGHT_BLOCKS

Quantization = Literal["auto", "none", "int8", "int4", "f8e4m3"]
Encodings = Callable[[str, Sequence[int]], set[str]]
"""(parameter template, layers) -> encodings of the checkpoint tensors behind it, as plans name types; empty if there are none."""

MATRIX_OPERANDS: dict[str, tuple[int, ...]] = {"ts.linear": (1,), "ts.embedding": (1,), "ts.moe_experts": (3, 4)}
_ANY_READER = dict.fromkeys(MATRIX_OPERANDS, WEIGHT_BLOCKS)
_ROUNDED = {"int8": "q8_0", "int4": "q4_0", "f8e4m3": "e4m3_128"}
# what holds a checkpoint's blocks: the same type, or one that restates them
_HOLDS = {**{name: name for name in WEIGHT_BLOCKS}, "q4_k": "q4_1", "f8_e4m3": "e4m3_128"}
_FALLBACK = "q8_0"


def choose_weight_types(
    module: ir.Module,
    wanted: Quantization,
    native: str | None,
    encodings: Encodings,
    readers: Mapping[str, Container[str]] = _ANY_READER,
) -> ir.Module:
    """Mark weights with the block type they are stored in; in place. `native` says why there are no native kernels, if so;
    `readers` are the operations that have a kernel which reads blocks, and the types of these.

    `auto` keeps the blocks of a quantised checkpoint; the others round every matrix (the embedding table and the head, which
    decide over single tokens, to int8 in any case, and what has rows of no whole blocks). Raises UsageError when it was asked for
    and cannot be done.
    """
    if native is not None:
        if wanted in _ROUNDED:
            raise UsageError(
                "quantised weights need native kernels", where="--quantize", got=native, fix="compile with --quantize none"
            )
        return module
    if wanted in _ROUNDED and not any(_ROUNDED[wanted] in types for types in readers.values()):
        raise UsageError(
            "no kernel of this target reads weights of this type",
            where="--quantize",
            expected="auto, none, int8 or int4",
            got=wanted,
        )
    head = _head(module)
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.weight" or not _is_matrix(operation, readers):
            continue
        stored, kept = _choice(operation, wanted, operation == head, encodings)
        if stored and all(stored in readers[user.name] for user, _ in users_of(operation)):
            operation.attributes[STORED] = modules.text(stored)
            operation.attributes[KEPT] = modules.text(kept)
    return module


def stored_share(wanted: Quantization, checkpoint: str | None = None) -> float:
    """What matrices take of what they take in 16 bits: rounded ones, and those kept in the block type that a whole checkpoint is
    stored in; 1 where there are none."""
    stored = checkpoint if wanted == "auto" else _ROUNDED.get(wanted)
    if stored is None:
        return 1.0
    elements, size = BLOCKS[stored]
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
        return _FALLBACK if alone or features % BLOCKS[_ROUNDED[wanted]][0] else _ROUNDED[wanted], ""
    found: set[str] = set()
    for name in modules.text_list(weight, "parameters"):
        found |= encodings(name, layers_of(weight))
    if found == {"f8_e4m3"}:
        return ("e4m3_128", "f8_e4m3") if _of_whole_blocks(weight, "e4m3_128") else ("", "")
    if not found or not all(name.endswith(("_0", "_1", "_k")) for name in found):
        return "", ""
    if len(found) == 1 and found <= _HOLDS.keys():
        (kept,) = found
        return _HOLDS[kept], kept
    return _FALLBACK, ""


def _of_whole_blocks(weight: ir.Operation, stored: str) -> bool:
    """Whether rows, and what a rank has of them, are whole blocks as the checkpoint has them."""
    value = weight.results[0]
    size, last = BLOCKS[stored][0], len(shape_of(value)) - 1
    cuts = [cut for cut in map(parse_shard, placement_of(value).values()) if cut is not None and cut.dimension == last]
    segments = [segment.size for cut in cuts for segment in cut.segments]
    return not arrangement_of(weight) and all(extent % size == 0 for extent in (shape_of(value)[-1] or 0, *segments))


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
