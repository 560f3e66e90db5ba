"""fuse: attention on keys and values that another layer's attention has stored already reads that layer's cache."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import shape_of


def share_kv_caches(module: ir.Module) -> ir.Module:
    """attention(q, k, v) behind another attention on the same k and v -> cached_attention(q) on the other's cache; in place.

    Both must see equally far back, for a cache keeps no more than its window.
    """
    stored: dict[tuple[ir.Value, ir.Value], list[ir.Operation]] = {}
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.attention":
            continue
        q, k, v, *sinks = operation.operands
        earlier = next((other for other in stored.get((k, v), ()) if _is_readable(other, operation)), None)
        if earlier is None:
            stored.setdefault((k, v), []).append(operation)
            continue
        with ir.InsertionPoint(operation):
            attributes = [operation.attributes[name] for name in ("scale", "window", "softcap")]
            kv_heads = modules.integer(shape_of(k)[1] or 0)
            kind = operation.results[0].type
            attention = dialect.CachedAttention(kind, q, sinks, earlier.attributes["layer"], *attributes, kv_heads)
        modules.set_label(attention.operation, modules.label_of(operation))
        operation.results[0].replace_all_uses_with(attention.res)
        operation.erase()
    return module


def _is_readable(stored: ir.Operation, reader: ir.Operation) -> bool:
    return stored.parent == reader.parent and stored.attributes["window"] == reader.attributes["window"]
