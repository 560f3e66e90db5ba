"""Rules of embeddings, linear layers, elementwise operations and changes of shape."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .arranged import arranged_weight
from .form import Form
from .pattern import AtenOp, defining
from .raised import FLOATING, Raised, Raiser, Rule, rows_of

_TURNS: dict[str, tuple[list[Any], ...]] = {
    "aten.permute.default": ([[1, 0]],),
    "aten.t.default": ([],),
    "aten.transpose.int": ([0, 1], [1, 0], [-1, -2], [-2, -1]),
}
"""Ways to turn a matrix, by the arguments behind it."""


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
    x, weight = _features_of(raiser, root.arguments[0]), raiser.weight(root.arguments[1])
    given_bias = root.arguments[2] if len(root.arguments) > 2 else None
    bias = raiser.weight(given_bias) if given_bias is not None else None
    if x is None or weight is None or (given_bias is not None and bias is None):
        return None
    kind = tensor(dtype_of(x), [None, shape_of(weight)[0]])
    made = dialect.Linear(kind, x, weight, [bias] if bias is not None else []).res
    found = raiser.raised(root.arguments[0])
    assert found is not None and found.form.axis is not None
    form = Form.at(shape_of(root.result), found.form.axis)
    wanted = form.rows_shape(shape_of(root.result))
    return Raised(made if shape_of(made) == wanted else dialect.Reshape(tensor(dtype_of(made), wanted), made).res, form)


def _features_of(raiser: Raiser, value: Any) -> ir.Value | None:
    """A value as [rows, features], whatever dimensions of one it has between them."""
    found = raiser.raised(value) if isinstance(value, ir.Value) else None
    if found is None or found.form.axis is None or found.form.layout[-1] != ".":
        return None
    shape = shape_of(found.value)
    if any(size != 1 for size in shape[1:-1]):
        return None
    return found.value if len(shape) == 2 else dialect.Reshape(tensor(dtype_of(found.value), (None, shape[-1])), found.value).res


def _matmul(root: AtenOp, raiser: Raiser) -> Raised | None:
    """x @ weight.T, written out."""
    if root.target != "aten.matmul.default":
        return None
    x, turned = rows_of(raiser, root.arguments[0]), defining(root.arguments[1])
    if x is None or turned is None or turned.target not in _TURNS or turned.arguments[1:] not in _TURNS[turned.target]:
        return None
    weight = raiser.weight(turned.arguments[0])
    found = raiser.raised(root.arguments[0])
    if weight is None or found is None or len(shape_of(weight)) != 2:
        return None
    return Raised(dialect.Linear(tensor(dtype_of(x), [None, shape_of(weight)[0]]), x, weight, []).res, found.form)


def _addmm(root: AtenOp, raiser: Raiser) -> Raised | None:
    """bias + x @ weight: a linear layer whose weight is kept the other way round (GPT-2's Conv1D)."""
    if root.target != "aten.addmm.default" or root.keywords or len(shape_of(root.arguments[0])) != 1:
        return None
    bias, x, weight = raiser.weight(root.arguments[0]), rows_of(raiser, root.arguments[1]), raiser.weight(root.arguments[2])
    if bias is None or x is None or weight is None:
        return None
    turned = arranged_weight(weight, ["transpose"])
    return Raised(dialect.Linear(tensor(dtype_of(x), [None, shape_of(turned)[0]]), x, turned, [bias]).res, Form.FLAT)


def _scale(root: AtenOp, raiser: Raiser) -> Raised | None:
    """x times, or divided by, a number."""
    if root.target not in {"aten.mul.Tensor", "aten.div.Tensor"} or root.keywords or len(root.operation.operands) != 1:
        return None
    source, number = root.arguments
    x = raiser.raised(source) if isinstance(source, ir.Value) else None
    if x is None or x.form.axis is None or isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if not dtype_of(x.value) == dtype_of(root.result) in FLOATING:
        return None
    factor = float(number) if root.target == "aten.mul.Tensor" else 1.0 / number
    return Raised(dialect.Scale(x.value.type, x.value, modules.number(factor)).res, x.form)


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


def _reshape(root: AtenOp, raiser: Raiser) -> Raised | None:
    """view or reshape among [1, tokens, heads * d], [tokens, heads * d] and [1, tokens, heads, d]."""
    if root.target not in {"aten.view.default", "aten.reshape.default"} or "other_sizes" in root.operation.attributes:
        return None
    x, after = raiser.raised(root.arguments[0]), shape_of(root.result)
    if x is not None and x.form is Form.IDS:
        return x if after == (1, None) else None
    if x is None or x.form not in {Form.ROWS, Form.FLAT, Form.HEADS}:
        return None
    form = {2: Form.FLAT, 3: Form.ROWS, 4: Form.HEADS}.get(len(after))
    features = after[1:] if form is Form.FLAT else after[2:]
    sizes, before = [size for size in features if size], [size for size in shape_of(x.value)[1:] if size]
    if form is None or after != ((None, *sizes) if form is Form.FLAT else (1, None, *sizes)) or prod(sizes) != prod(before):
        return None
    if sizes == before:
        return Raised(x.value, form)
    return Raised(dialect.Reshape(tensor(dtype_of(x.value), [None, *sizes]), x.value).res, form)


def _window(x: Raised, start: int, stop: int) -> Raised:
    """Columns [start, stop) of the last dimension."""
    *leading, width = shape_of(x.value)
    if (start, stop) == (0, width):
        return x
    kind = tensor(dtype_of(x.value), [*leading, stop - start])
    return Raised(dialect.Slice(kind, x.value, modules.integer(start)).res, x.form)


def _cut(root: AtenOp, raiser: Raiser) -> Raised | None:
    """A slice of the last dimension, or one piece of a split along it."""
    if root.target not in {"aten.slice.Tensor", "aten.split.Tensor", "aten.split_with_sizes.default"} or root.keywords:
        return None
    source, rest = root.arguments[0], root.arguments[1:]
    x, rank = raiser.raised(source), len(shape_of(source))
    width = shape_of(source)[-1]
    if x is None or x.form not in {Form.ROWS, Form.FLAT, Form.HEADS, Form.HEADS_FIRST} or width is None:
        return None
    if root.target == "aten.slice.Tensor":
        dimension, start, stop, step = (*rest, *(0, 0, None, 1)[len(rest) :])
        if dimension not in (-1, rank - 1) or step != 1 or any(isinstance(bound, dict) for bound in (start, stop)):
            return None
        first, last, _ = slice(start, stop).indices(width)
    else:
        sizes, dimension = (*rest, 0)[:2]
        if dimension not in (-1, rank - 1):
            return None
        edges = [0, *accumulate(sizes)] if isinstance(sizes, list) else [*range(0, width, sizes), width]
        first, last = edges[root.output : root.output + 2]
    return _window(x, first, last) if last > first else None


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
    _matmul,
    _addmm,
    _reshape,
    _cut,
    _transpose,
    _scale,
    _elementwise("aten.add.Tensor", dialect.Add),
    _elementwise("aten.mul.Tensor", dialect.Mul),
)
