"""fuse: rotating q and k and storing k and v in the cache become one operation, attention then reads the cache alone."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import shape_of


def fuse_rope_kv_write(module: ir.Module) -> ir.Module:
    """attention(rope(q), rope(k), v) -> cached_attention(rope_kv_write(q, k, v)); in place."""
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.attention":
            continue
        q, k, v, *sinks = operation.operands
        rope_q, rope_k = _rope(q), _rope(k)
        if rope_q is None or rope_k is None or _turned_by(rope_q) != _turned_by(rope_k):
            continue
        cos, sin, interleaved = _turned_by(rope_q)
        with ir.InsertionPoint(operation):
            plain_q, plain_k = rope_q.operands[0], rope_k.operands[0]
            layer = operation.attributes["layer"]
            write = dialect.RopeKvWrite(q.type, plain_q, plain_k, v, cos, sin, layer, modules.flag(interleaved))
            kv_heads = modules.integer(shape_of(k)[1] or 0)
            attributes = [operation.attributes[name] for name in ("layer", "scale", "window", "softcap")]
            attention = dialect.CachedAttention(operation.results[0].type, write.res, sinks, *attributes, kv_heads)
        for fused in (write.operation, attention.operation):
            modules.set_label(fused, modules.label_of(operation))
        operation.results[0].replace_all_uses_with(attention.res)
        operation.erase()
    modules.erase_unused(modules.step_block(module))
    return module


def _turned_by(rope: ir.Operation) -> tuple[ir.Value, ir.Value, bool]:
    return rope.operands[1], rope.operands[2], bool(modules.int_attribute(rope, "interleaved"))


def _rope(value: ir.Value) -> ir.Operation | None:
    owner = value.owner
    operation = owner if isinstance(owner, ir.Operation) else getattr(owner, "operation", None)
    return operation if operation is not None and operation.name == "ts.rope" else None
