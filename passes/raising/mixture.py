"""Rules for mixtures of experts: routers are written in many ways, `ts.moe_route` says what they compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.arrangement import arrangement_of, set_arrangement
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .arranged import arranged_weight
from .fallback import built_call
from .form import Form
from .pattern import AtenOp, Bind, Number, defining, either, match, op, result
from .raised import Raised, Raiser, Rule, rows_of

NEGLIGIBLE = 1e-6
"""What routers add to a sum of scores against division by zero; at most this is left out."""


@dataclass(frozen=True)
class _Selection:
    """What the selected experts and their weights come from."""

    scoring: str
    logits: ir.Value
    top_k: int
    bias: ir.Value | None = None
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1


def _uncast(value: ir.Value) -> ir.Value:
    found = defining(value)
    while found is not None and (
        found.target == "aten.type_as.default"
        or (found.target == "aten._to_copy.default" and list(found.keywords) == ["dtype"] and "bool" not in str(found.keywords))
    ):
        value = found.arguments[0]
        found = defining(value)
    return value


_TOTAL = either(op("sum", Bind("weights"), [-1], True), op("sum", Bind("weights"), [1], True))
_NORMALIZED = op("div", Bind("weights"), either(_TOTAL, op("add", _TOTAL, Number("least")), op("clamp", _TOTAL, Number("least"))))


def _topk(value: ir.Value, output: int) -> tuple[ir.Value, int] | None:
    """(what is selected from, how many) where the value is values (0) or indices (1) of a selection along the last dimension."""
    found = defining(value)
    if found is None or found.target != "aten.topk.default" or found.output != output:
        return None
    source, count, *options = found.arguments
    last = len(shape_of(source)) - 1
    if (options and options[0] not in (-1, last)) or (len(options) > 1 and options[1] is not True):
        return None
    return source, count


def _scores(value: ir.Value) -> tuple[str, ir.Value] | None:
    """(scoring, logits) of scores over all experts."""
    found = defining(_uncast(value))
    if found is None:
        return None
    if found.target == "aten.sigmoid.default":
        return "sigmoid", _uncast(found.arguments[0])
    if found.target == "aten.softmax.int" and found.arguments[1] in (-1, len(shape_of(value)) - 1):
        return "softmax", _uncast(found.arguments[0])
    return None


def _mask(value: ir.Value) -> tuple[ir.Value, int, int, int] | None:
    """(scores, groups, top groups, best of a group) when the value hides all experts but those of the best groups."""
    grouped = op("view", Bind("scores"), Bind("shape"))
    judged = either(
        op("sum", result(0, "topk", grouped, Number("best")), [-1]),
        op("sum", result(0, "topk", grouped, Number("best"), -1), [-1]),
        result(0, "max", grouped, -1),
        op("amax", grouped, [-1]),
    )
    chosen = defining(value)
    # not(bool(view(expand(unsqueeze(scatter(zeros, 1, topk(judged).indices, 1), -1), [-1, groups, of_group]), [rows, experts])))
    for target in ("bitwise_not", "_to_copy", "view", "expand", "unsqueeze"):
        if chosen is None or chosen.target.split(".")[1].removeprefix("_unsafe_").replace("reshape", "view") != target:
            return None
        if target == "unsqueeze" and chosen.arguments[1] not in (-1, 2):
            return None
        chosen = defining(chosen.arguments[0])
    if chosen is None or chosen.target != "aten.scatter.value" or chosen.arguments[1] not in (1, -1) or chosen.arguments[3] != 1:
        return None
    zeros, selected = defining(chosen.arguments[0]), _topk(chosen.arguments[2], 1)
    if zeros is None or zeros.target != "aten.zeros_like.default" or selected is None:
        return None
    bound = match(judged, selected[0])
    if bound is None or len(bound["shape"]) != 3:
        return None
    return bound["scores"], bound["shape"][1], selected[1], int(bound.get("best", 1))


def _choice(value: ir.Value, top_k: int, raiser: Raiser) -> _Selection | None:
    """What experts are selected by: scores, perhaps with a bias added, perhaps of the best groups only."""
    groups = top_groups = best = 1
    hidden = defining(value)
    if hidden is not None and hidden.target == "aten.masked_fill.Scalar":
        mask = _mask(hidden.arguments[1])
        if mask is None or mask[0] != hidden.arguments[0]:
            return None
        value, groups, top_groups, best = mask
        if hidden.arguments[2] != -float("inf") and (hidden.arguments[2] != 0 or _scores(value) is None):
            return None
        if groups == 1:
            top_groups = best = 1
    scored, bias = _scores(value), None
    if scored is None:
        bound = match(op("add", Bind("a"), Bind("b")), value)
        if bound is None:
            return None
        a, b = bound["a"], bound["b"]
        scored, bias = _scores(a), raiser.weight(_uncast(b)) if isinstance(b, ir.Value) else None
        if scored is None or bias is None or len(shape_of(bias)) != 1:
            return None
    return _Selection(*scored, top_k, bias, groups, top_groups, best)


def _selection(weights: ir.Value, indices: ir.Value, raiser: Raiser) -> _Selection | None:
    chosen = _topk(_uncast(indices), 1)
    if chosen is None:
        return None
    source, top_k = chosen
    found = defining(weights)
    if _topk(weights, 0) == chosen:
        return _choice(source, top_k, raiser)
    if found is not None and found.target == "aten.softmax.int" and found.arguments[1] in (-1, 1):
        return _Selection("softmax_selected", _uncast(source), top_k) if _topk(_uncast(found.arguments[0]), 0) == chosen else None
    if found is not None and found.target == "aten.gather.default" and found.arguments[1] in (-1, 1):
        selection = _choice(source, top_k, raiser)
        same = selection is not None and _scores(found.arguments[0]) == (selection.scoring, selection.logits)
        return selection if same and _uncast(found.arguments[2]) == _uncast(indices) else None
    return None


def _route(indices: ir.Value, weights: ir.Value, raiser: Raiser) -> tuple[ir.Value, ir.Value] | None:
    """Indices and weights of `ts.moe_route`, if that is what makes these."""
    kind, scale, normalize = dtype_of(weights), 1.0, False
    inner = _uncast(weights)
    scaled = match(op("mul", Bind("weights"), Number("scale")), inner)
    if scaled is not None:
        inner, scale = _uncast(scaled["weights"]), float(scaled["scale"])
    normalized = match(_NORMALIZED, inner)
    if normalized is not None and normalized.get("least", 0.0) <= NEGLIGIBLE:
        inner, normalize = _uncast(normalized["weights"]), True
    found = _selection(inner, indices, raiser)
    logits = rows_of(raiser, found.logits) if found is not None else None
    if found is None or logits is None:
        return None
    operation = dialect.MoeRoute(
        tensor("i32", [None, found.top_k]),
        tensor(kind, [None, found.top_k]),
        logits,
        [found.bias] if found.bias is not None else [],
        modules.integer(found.top_k),
        modules.text(found.scoring),
        modules.flag(normalize),
        modules.number(scale),
        modules.integer(found.groups),
        modules.integer(found.top_groups),
        modules.integer(found.group_best),
    ).operation
    router = defining(inner)
    assert router is not None
    modules.set_label(operation, modules.label_of(router.operation))
    return operation.results[0], operation.results[1]


def _computed_route(indices: ir.Value, weights: ir.Value, raiser: Raiser) -> tuple[ir.Value, ir.Value] | None:
    """Indices and weights of a router that is no `ts.moe_route`, as its own operations make them row by row."""
    chosen, scaled = raiser.raised(indices), raiser.raised(weights)
    if chosen is None or scaled is None or chosen.form is not Form.FLAT or scaled.form is not Form.FLAT:
        return None
    router = defining(indices)
    label = modules.label_of(router.operation) if router is not None else ""
    text = json.dumps({"args": [{"operand": 0}], "kwargs": {"dtype": {"dtype": "i32"}}})
    narrow = tensor("i32", shape_of(chosen.value))
    reason = "experts are numbered in i32"
    operand = [(chosen.value, Form.FLAT)]
    return built_call(narrow, operand, Form.FLAT, "aten._to_copy.default", text, reason, label), scaled.value


def _experts(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "tokenspeed.experts.default":
        return None
    x, indices, weights, *tensors = root.arguments[:7]
    activation, alpha, limit, transposed, interleaved = root.arguments[7:]
    rows = raiser.raised(x)
    parameters = [None if item is None else raiser.weight(item) for item in tensors]
    if rows is None or rows_of(raiser, x) is None or parameters[0] is None or parameters[1] is None:
        return None
    routed = _route(indices, weights, raiser) or _computed_route(indices, weights, raiser)
    if routed is None:
        return None
    turned, sorted_halves = ["transpose"] * transposed, ["deinterleave"] * interleaved
    steps: tuple[list[str], ...] = (turned + sorted_halves, turned, sorted_halves, [])
    arranged = [
        None if item is None else arranged_weight(item, step) if step else item
        for item, step in zip(parameters, steps, strict=True)
    ]
    biases = [[] if item is None else [item] for item in arranged[2:]]
    attributes = modules.text(activation), modules.number(alpha), modules.number(limit)
    made: Any = dialect.MoeExperts(rows.value.type, rows.value, *routed, *arranged[:2], *biases, [], *attributes)
    return Raised(made.res, rows.form)


def _cast(root: AtenOp, raiser: Raiser) -> Raised | None:
    """A change of element type that no other rule took along. Of a weight: the same weight stored in the other type."""
    if root.target != "aten._to_copy.default" or list(root.keywords) != ["dtype"]:
        return None
    source = raiser.raised(root.arguments[0])
    dtype = dtype_of(root.result)
    if source is None or dtype not in {"f32", "bf16", "f16"} or dtype_of(source.value) not in {"f32", "bf16", "f16"}:
        return None
    if source.form is not Form.WEIGHT:
        return Raised(dialect.Cast(tensor(dtype, shape_of(source.value)), source.value).res, source.form)
    owner = source.value.owner
    assert not isinstance(owner, ir.Block)
    weight = owner if isinstance(owner, ir.Operation) else owner.operation
    if weight.name != "ts.weight":
        return None
    sym = modules.text(f"{modules.text_attribute(weight, 'sym')}.{dtype}")
    made = dialect.Weight(tensor(dtype, shape_of(source.value)), sym, weight.attributes["parameters"])
    set_arrangement(made.operation, arrangement_of(weight))
    return Raised(made.res, Form.WEIGHT)


MIXTURE_RULES: tuple[Rule, ...] = (_experts,)
CAST_RULES: tuple[Rule, ...] = (_cast,)
