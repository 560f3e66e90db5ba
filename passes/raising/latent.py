"""The rule of multi-head latent attention: models write it as attention over keys and values made from latents (DeepSeek-V2)."""

from __future__ import annotations

from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp, Bind, Number, either, match, op, result
from .raised import Raised, Raiser, Rule, rows_of

_END = Number("end")

# keys as torch.cat gives them, or written piece by piece (compiler/frontends/decompositions.py)
_LEADING = op("cat", [either(op("expand", Bind("k_nope"), Bind("nope_shape")), Bind("k_nope")), Bind("unwritten")], 3)
_ONE_FOR_ALL = either(op("expand", Bind("k_rope"), Bind("shape")), Bind("k_rope"))
_SHARED = either(op("expand", _ONE_FOR_ALL, Bind("rope_shape")), _ONE_FOR_ALL)
_KEYS = either(
    op("cat", [op("slice", _LEADING, 3, 0, Number("nope")), _SHARED], 3),
    op("cat", [Bind("k_nope"), _SHARED], -1),
)
_QUERIES = op("cat", [Bind("q_nope"), Bind("q_rope")], -1)
_EXPANDED = op("transpose", op("view", op("linear", Bind("latent"), Bind("kv_b")), Bind("shape")), 1, 2)
_VIEWED = op("view", Bind("x"), Bind("shape"))

_X = Bind("x")
_EVEN, _ODD = op("slice", _X, 3, 0, _END, 2), op("slice", _X, 3, 1, _END, 2)
_COS, _SIN = (op("unsqueeze", op("slice", Bind(name), 2, 0, Number("half")), 1) for name in ("cos", "sin"))
_INTERLEAVED = op(
    "cat",
    [
        op("sub", op("mul", _EVEN, _COS), op("mul", _ODD, _SIN)),
        op("add", op("mul", _ODD, _COS), op("mul", _EVEN, _SIN)),
    ],
    -1,
)
"""Neighbouring pairs turned; the first members of all pairs come first. Scores do not depend on that order: q and k share it."""


def _pieces(value: ir.Value, kept: int) -> tuple[ir.Value, list[int]] | None:
    """(what is split along its last dimension, the sizes) when the value is piece number `kept` of two."""
    for target in ("split_with_sizes", "split"):
        bound = match(result(kept, target, Bind("x"), Bind("sizes"), -1), value)
        if bound is not None and isinstance(bound["sizes"], list) and len(bound["sizes"]) == 2:
            return bound["x"], bound["sizes"]
    return None


def _heads(value: ir.Value, raiser: Raiser) -> ir.Value | None:
    """A raised [rows, heads, d], of a value that stood heads first; one that all heads share has one head."""
    found = raiser.raised(value)
    if found is not None and found.form is Form.HEADS_FIRST and len(shape_of(found.value)) == 3:
        return found.value
    bound = match(_VIEWED, value)
    shape = shape_of(value)
    x = rows_of(raiser, bound["x"]) if bound is not None else None
    if x is None or shape[:3] != (1, 1, None) or shape_of(x)[1] != shape[3]:
        return None
    return dialect.Reshape(tensor(dtype_of(x), [None, 1, shape[3]]), x).res


def _turned(value: ir.Value, raiser: Raiser) -> tuple[ir.Value, str] | None:
    """The raised rotated heads, and the order that their columns are in."""
    bound = match(_INTERLEAVED, value)
    if bound is None:
        raised = raiser.raised(value)
        made = raised.value.owner if raised is not None else None
        operation = made if isinstance(made, ir.Operation) else getattr(made, "operation", None)
        if raised is None or operation is None or operation.name != "ts.rope" or raised.form is not Form.HEADS_FIRST:
            return None
        return raised.value, "half-split"
    x, cos, sin = _heads(bound["x"], raiser), rows_of(raiser, bound["cos"]), rows_of(raiser, bound["sin"])
    if x is None or cos is None or sin is None or not shape_of(x)[2] == shape_of(cos)[1] == 2 * bound["half"]:
        return None
    return dialect.Rope(tensor(dtype_of(x), shape_of(x)), x, cos, sin, modules.flag(True)).res, "first members first"


def _latent_attention(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "tokenspeed.attention.default" or len(root.operation.operands) != 3:
        return None
    scale, window, softcap, layer = root.arguments
    q, k, v = list(root.operation.operands)[:3]
    queries, keys = match(_QUERIES, q), match(_KEYS, k)
    if window or softcap or queries is None or keys is None:
        return None
    if keys.get("nope", shape_of(keys["k_nope"])[3]) != shape_of(keys["k_nope"])[3]:
        return None
    of_keys, of_values = _pieces(keys["k_nope"], 0), _pieces(v, 1)
    expanded = match(_EXPANDED, of_keys[0]) if of_keys is not None and of_keys == of_values else None
    if expanded is None:
        return None
    latent, kv_b = _flat(expanded["latent"], raiser), raiser.weight(expanded["kv_b"])
    q_nope, q_rope = _heads(queries["q_nope"], raiser), _turned(queries["q_rope"], raiser)
    k_rope = _turned(keys["k_rope"], raiser)
    if latent is None or kv_b is None or q_nope is None or q_rope is None or k_rope is None or q_rope[1] != k_rope[1]:
        return None
    heads, shared = shape_of(q_nope)[1], shape_of(k_rope[0])
    if shared[1] != 1 or shape_of(q_nope)[2] != shape_of(keys["k_nope"])[3] or shape_of(v)[1] != heads:
        return None
    rotated = dialect.Reshape(tensor(dtype_of(k_rope[0]), [None, shared[2]]), k_rope[0]).res
    kind = tensor(dtype_of(q_nope), [None, heads, shape_of(v)[3]])
    numbers: Any = modules.text(layer), modules.number(scale)
    made = dialect.LatentAttention(kind, q_nope, q_rope[0], latent, rotated, kv_b, *numbers)
    return Raised(made.res, Form.HEADS)


def _flat(value: ir.Value, raiser: Raiser) -> ir.Value | None:
    """Latents as [rows, r], whether or not they were viewed as one head's."""
    found = rows_of(raiser, value)
    bound = match(_VIEWED, value)
    if found is None and bound is not None and shape_of(bound["x"])[-1] == shape_of(value)[-1]:
        found = rows_of(raiser, bound["x"])
    return found


LATENT_RULES: tuple[Rule, ...] = (_latent_attention,)
