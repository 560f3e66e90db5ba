"""Rules of embeddings, linear layers, elementwise operations and changes of shape."""

from __future__ import annotations

from typing import Any

from ...ir import dialect
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp
from .raised import FLOATING, Raised, Raiser, Rule, rows_of


def _embedding(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.embedding.default":
        return None
    table, ids = raiser.weight(root.arguments[0]), raiser.raised(root.arguments[1])
    if table is None or ids is None or ids.form is not Form.IDS or dtype_of(ids.value) != "i32":
        return None
    kind = tensor(dtype_of(table), [None, shape_of(table)[1]])
    return Raised(dialect.Embedding(kind, ids.value, table).res, Form.ROWS)


def _linear(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.linear.default":
        return None
    x, weight = rows_of(raiser, root.arguments[0]), raiser.weight(root.arguments[1])
    given_bias = root.arguments[2] if len(root.arguments) > 2 else None
    bias = raiser.weight(given_bias) if given_bias is not None else None
    if x is None or weight is None or (given_bias is not None and bias is None):
        return None
    kind = tensor(dtype_of(x), [None, shape_of(weight)[0]])
    made = dialect.Linear(kind, x, weight, [bias] if bias is not None else []).res
    return Raised(made, Form.at(shape_of(root.result), len(shape_of(root.result)) - 2))


def _elementwise(target: str, build: Any) -> Rule:
    def rule(root: AtenOp, raiser: Raiser) -> Raised | None:
        if root.target != target or len(root.operation.operands) != 2 or root.keywords:
            return None
        a, b = (raiser.raised(value) for value in root.operation.operands)
        if a is None or b is None or a.form is not b.form or a.value.type != b.value.type:
            return None
        if a.form.axis is None or dtype_of(a.value) not in FLOATING:
            return None
        return Raised(build(a.value.type, a.value, b.value).res, a.form)

    return rule


_TOKENS = {"symbol": "tokens"}


def _flatten(root: AtenOp, raiser: Raiser) -> Raised | None:
    """[1, tokens, features] to [tokens, features] and back: rows are the same."""
    if root.target not in {"aten.view.default", "aten.reshape.default"}:
        return None
    x = raiser.raised(root.arguments[0])
    before, after = shape_of(root.arguments[0]), shape_of(root.result)
    if x is None or x.form not in (Form.ROWS, Form.FLAT) or before[-1] != after[-1]:
        return None
    forms = {(None,): Form.FLAT, (1, None): Form.ROWS}
    return Raised(x.value, forms[after[:-1]]) if after[:-1] in forms else None


def _reshape(root: AtenOp, raiser: Raiser) -> Raised | None:
    """view or reshape between [1, tokens, heads * d] and [1, tokens, heads, d]."""
    if root.target not in {"aten.view.default", "aten.reshape.default"} or root.arguments[1][:2] != [1, _TOKENS]:
        return None
    x = raiser.raised(root.arguments[0])
    after = shape_of(root.result)
    if x is None or x.form not in {Form.ROWS, Form.HEADS} or len(after) not in {3, 4}:
        return None
    kind = tensor(dtype_of(x.value), [None, *after[2:]])
    return Raised(dialect.Reshape(kind, x.value).res, Form.ROWS if len(after) == 3 else Form.HEADS)


def _transpose(root: AtenOp, raiser: Raiser) -> Raised | None:
    """Swapping tokens and heads changes nothing in `ts`: rows stay first."""
    if root.target != "aten.transpose.int" or root.arguments[1:] not in ([1, 2], [2, 1]):
        return None
    x = raiser.raised(root.arguments[0])
    swapped = {Form.HEADS: Form.HEADS_FIRST, Form.HEADS_FIRST: Form.HEADS}
    return Raised(x.value, swapped[x.form]) if x is not None and x.form in swapped else None


STRUCTURE_RULES: tuple[Rule, ...] = (
    _embedding,
    _linear,
    _flatten,
    _reshape,
    _transpose,
    _elementwise("aten.add.Tensor", dialect.Add),
    _elementwise("aten.mul.Tensor", dialect.Mul),
)
