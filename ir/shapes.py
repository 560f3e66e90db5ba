"""The shape rule of every operation: what its verifier checks. A rule returns what is wrong, or None."""

from __future__ import annotations

from collections.abc import Callable

from . import mixture
from .latent import latent_shapes
from .mlir import ir
from .recurrence import check_recurrence
from .types import dtype_of, shape_of

ACTIVATIONS = {"silu", "gelu", "gelu_tanh", "relu", "relu2"}

Shape = tuple[int | None, ...]
Rule = Callable[[list[Shape], list[Shape]], str | None]


def _crossing(operands: list[Shape], results: list[Shape]) -> str | None:
    """What goes from a stage to the next."""
    shape = (*operands, *results)[0]
    return _expect(bool(shape) and shape[0] is None, f"expects a value of rows, got {shape}")


def _expect(condition: bool, message: str) -> str | None:
    return None if condition else message


def _linear(operands: list[Shape], results: list[Shape]) -> str | None:
    x, weight, *bias = operands
    if len(x) != 2 or len(weight) != 2 or len(bias) > 1:
        return f"expects x[rows, k], weight[n, k] and at most one bias, got ranks {[len(shape) for shape in operands]}"
    if x[1] != weight[1]:
        return f"weight has {weight[1]} columns, x has {x[1]}"
    if bias and bias[0] != (weight[0],):
        return f"bias has shape {bias[0]}, expected ({weight[0]},)"
    return _expect(results[0] == (x[0], weight[0]), f"result is {results[0]}, expected {(x[0], weight[0])}")


def _embedding(operands: list[Shape], results: list[Shape]) -> str | None:
    ids, table = operands
    if len(ids) != 1 or len(table) != 2:
        return f"expects ids[rows] and table[vocabulary, hidden], got {ids} and {table}"
    return _expect(results[0] == (ids[0], table[1]), f"result is {results[0]}, expected {(ids[0], table[1])}")


def _rms_norm(operands: list[Shape], results: list[Shape]) -> str | None:
    x, weight = operands
    return _expect(weight == (x[-1],) and results[0] == x, f"weight {weight} and result {results[0]} do not fit x {x}")


def _add_rms_norm(operands: list[Shape], results: list[Shape]) -> str | None:
    x, residual, weight = operands
    fits = residual == x and weight == (x[-1],) and results == [x, x]
    return _expect(fits, f"x {x}, residual {residual}, weight {weight}, results {results} do not fit together")


def _layer_norm(operands: list[Shape], results: list[Shape]) -> str | None:
    x, *affine = operands
    fits = len(affine) <= 2 and all(item == (x[-1],) for item in affine) and results[0] == x
    return _expect(fits, f"weight and bias {affine} and result {results[0]} do not fit x {x}")


def _rope_table(operands: list[Shape], results: list[Shape]) -> str | None:
    positions, frequencies = operands
    if len(positions) != 1 or len(frequencies) != 1:
        return "expects positions[rows] and frequencies[rotary_dim / 2]"
    expected = (positions[0], (frequencies[0] or 0) * 2)
    return _expect(results == [expected, expected], f"cos and sin are {results}, expected {expected}")


def _rope(operands: list[Shape], results: list[Shape]) -> str | None:
    x, cos, sin = operands
    if len(x) != 3 or len(cos) != 2 or cos != sin:
        return f"expects x[rows, heads, head_dim] and equal cos, sin [rows, rotary_dim], got {operands}"
    if (cos[1] or 0) > (x[2] or 0) or (cos[1] or 0) % 2:
        return f"rotary dimension {cos[1]} is odd or larger than head_dim {x[2]}"
    return _expect(results[0] == x, f"result is {results[0]}, expected {x}")


def _heads(q: Shape, k: Shape, v: Shape) -> str | None:
    if not len(q) == len(k) == len(v) == 3:
        return "expects q, k, v of [rows, heads, head_dim]"
    if k[1] != v[1] or q[2] != k[2] or not k[1] or (q[1] or 0) % k[1]:
        return f"q {q}, k {k}, v {v}: head_dim must agree and query heads be a multiple of key/value heads"
    return None


def _sinks(q: Shape, sinks: list[Shape]) -> str | None:
    if len(sinks) > 1:
        return f"takes at most one operand of sinks, got {len(sinks)}"
    return _expect(not sinks or sinks[0] == q[1:2], f"sinks are {sinks}, expected one per query head of {q}")


def _attention(operands: list[Shape], results: list[Shape]) -> str | None:
    q, k, v, *sinks = operands
    expected = (q[0], q[1], v[2]) if len(q) == len(v) == 3 else ()
    fits = _expect(results[0] == expected, f"result is {results[0]}, expected {expected}")
    return _heads(q, k, v) or _sinks(q, sinks) or fits


def _rope_kv_write(operands: list[Shape], results: list[Shape]) -> str | None:
    q, k, v, cos, sin = operands
    return _heads(q, k, v) or _rope([q, cos, sin], results)


def _cached_attention(operands: list[Shape], results: list[Shape]) -> str | None:
    q, *sinks = operands
    return _expect(len(q) == 3 and results[0] == q, "q and result must be [rows, heads, head_dim] alike") or _sinks(q, sinks)


def _same(operands: list[Shape], results: list[Shape]) -> str | None:
    shapes = {*operands, *results}
    return _expect(len(shapes) == 1, f"operands and result must have one shape, got {sorted(map(str, shapes))}")


def _reshape(operands: list[Shape], results: list[Shape]) -> str | None:
    def per_row(shape: Shape) -> int:
        count = 1
        for size in shape[1:]:
            count *= size or 0
        return count

    before, after = operands[0], results[0]
    fits = before[0] == after[0] and per_row(before) == per_row(after)
    return _expect(fits, f"{before} cannot become {after}: rows and elements per row must stay")


def _slice(operands: list[Shape], results: list[Shape]) -> str | None:
    x, part = operands[0], results[0]
    fits = len(x) == len(part) >= 2 and x[:-1] == part[:-1] and (part[-1] or 0) <= (x[-1] or 0)
    return _expect(fits, f"{part} is not a window of the columns of {x}")


def _gather_rows(operands: list[Shape], results: list[Shape]) -> str | None:
    x, rows = operands
    return _expect(len(rows) == 1 and results[0] == (rows[0], *x[1:]), f"result is {results[0]} for x {x} and rows {rows}")


def _gathered(operands: list[Shape], results: list[Shape]) -> str | None:
    x, whole = operands[0], results[0]
    differs = [at for at, (part, size) in enumerate(zip(x, whole, strict=False)) if part != size]
    return _expect(len(x) == len(whole) and len(differs) < 2, f"{x} cannot become {whole}: only one dimension changes")


def _exchanged(operands: list[Shape], results: list[Shape]) -> str | None:
    x, indices = operands
    fits = len(x) == len(indices) == 2 and results[0] == x and x[0] is None and indices[0] is None
    return _expect(fits, f"expects x[rows, h] and indices[rows, k], and gives [rows, h]; got {x}, {indices} and {results[0]}")


def _source(_operands: list[Shape], results: list[Shape]) -> str | None:
    return _expect(all(size is None or size > 0 for size in results[0]), f"sizes must be positive, got {results[0]}")


def _any(_operands: list[Shape], _results: list[Shape]) -> str | None:
    return None


RULES: dict[str, Rule] = {
    "ts.aten": _any,
    "ts.input": _source,
    "ts.weight": _source,
    "ts.constant": _source,
    "ts.embedding": _embedding,
    "ts.linear": _linear,
    "ts.rms_norm": _rms_norm,
    "ts.add_rms_norm": _add_rms_norm,
    "ts.layer_norm": _layer_norm,
    "ts.rope_table": _rope_table,
    "ts.rope": _rope,
    "ts.attention": _attention,
    "ts.rope_kv_write": _rope_kv_write,
    "ts.cached_attention": _cached_attention,
    "ts.gated_activation": _same,
    "ts.activation": _same,
    "ts.scale": _same,
    "ts.softcap": _same,
    "ts.latent_attention": latent_shapes,
    "ts.moe_route": mixture.route_shapes,
    "ts.moe_experts": mixture.experts_shapes,
    "ts.cast": _same,
    "ts.add": _same,
    "ts.mul": _same,
    "ts.reshape": _reshape,
    "ts.slice": _slice,
    "ts.gather_rows": _gather_rows,
    "ts.all_reduce": _same,
    "ts.all_gather": _gathered,
    "ts.send": _crossing,
    "ts.receive": _crossing,
    "ts.reduce_scatter": _gathered,
    "ts.take_rows": _same,
    "ts.join_rows": _same,
    "ts.take_part": _gathered,
    "ts.dispatch": _exchanged,
    "ts.combine": _exchanged,
}

_MIXED_DTYPES = {"ts.aten", "ts.embedding", "ts.rope_table", "ts.gather_rows", "ts.moe_route", "ts.moe_experts", "ts.cast"} | {
    "ts.dispatch",
    "ts.combine",
}


_TABLES = {"ts.rope": (1, 2), "ts.rope_kv_write": (3, 4)}
"""Operands that may be float32 whatever the others are."""


def _element_types(operation: ir.Operation) -> str | None:
    at = _TABLES.get(operation.name, ())
    tables = {dtype_of(operation.operands[position]) for position in at}
    others = [*(value for position, value in enumerate(operation.operands) if position not in at), *operation.results]
    dtypes = {dtype_of(value) for value in others}
    if len(dtypes) > 1 or len(tables) > 1:
        return f"mixes element types {sorted(dtypes | tables)}"
    return _expect(tables <= dtypes | {"f32"}, f"tables are {sorted(tables)}, expected {sorted(dtypes | {'f32'})}")


def _slice_start(operation: ir.Operation) -> str | None:
    start = ir.IntegerAttr(operation.attributes["start"]).value
    available, width = shape_of(operation.operands[0])[-1], shape_of(operation.results[0])[-1]
    return _expect(0 <= start <= (available or 0) - (width or 0), f"columns from {start} on do not hold {width} of {available}")


def _scores(operation: ir.Operation) -> str | None:
    window, softcap = ir.IntegerAttr(operation.attributes["window"]).value, ir.FloatAttr(operation.attributes["softcap"]).value
    if window < 0:
        return f"window must be 0 or more, got {window}"
    return _expect(softcap >= 0, f"softcap must be 0 or more, got {softcap}")


def _kv_heads(operation: ir.Operation) -> str | None:
    heads, kv_heads = shape_of(operation.operands[0])[1] or 0, ir.IntegerAttr(operation.attributes["kv_heads"]).value
    fits = kv_heads > 0 and heads % kv_heads == 0
    return _scores(operation) or _expect(fits, f"{heads} query heads are no multiple of {kv_heads} key/value heads")


def _repeat(operation: ir.Operation) -> str | None:
    first, count, stride = (ir.IntegerAttr(operation.attributes[name]).value for name in ("first", "count", "stride"))
    if first < 0 or count < 1 or stride < 1:
        return f"runs for {count} layers from {first} on, {stride} apart"
    body = operation.regions[0].blocks[0]
    carried = {
        "arguments": body.arguments,
        "yielded values": list(body.operations)[-1].operation.operands,
        "results": operation.results,
    }
    expected = [str(value.type) for value in operation.operands]
    for name, values in carried.items():
        got = [str(value.type) for value in values]
        if got != expected:
            return f"carries {expected}, its {name} are {got}"
    return None


def _one_of_activations(attribute: str) -> Callable[[ir.Operation], str | None]:
    def rule(operation: ir.Operation) -> str | None:
        name = ir.StringAttr(operation.attributes[attribute]).value
        return _expect(name in ACTIVATIONS, f"{attribute} is {name!r}, expected one of {', '.join(sorted(ACTIVATIONS))}")

    return rule


def _gathered_dimension(operation: ir.Operation) -> str | None:
    return _parts(operation, shape_of(operation.operands[0]), shape_of(operation.results[0]))


def _scattered_dimension(operation: ir.Operation) -> str | None:
    return _parts(operation, shape_of(operation.results[0]), shape_of(operation.operands[0]))


def _parts(operation: ir.Operation, part: Shape, whole: Shape) -> str | None:
    dimension, ranks = (ir.IntegerAttr(operation.attributes[name]).value for name in ("dimension", "ranks"))
    if not 0 <= dimension < len(part):
        return f"is about dimension {dimension} of {part}"
    own, every = part[dimension], whole[dimension]
    if own is None or every is None:  # rows
        return _expect(dimension == 0 and part == whole and ranks > 0, f"{ranks} parts of {part} do not give {whole}")
    return _expect(every == own * ranks, f"{ranks} parts of {part} do not give {whole}")


def _half(operation: ir.Operation) -> str | None:
    half = ir.IntegerAttr(operation.attributes["half"]).value
    return _expect(half in {0, 1} and shape_of(operation.operands[0])[0] is None, f"there is no half {half} of these rows")


def _cap(operation: ir.Operation) -> str | None:
    cap = ir.FloatAttr(operation.attributes["cap"]).value
    return _expect(cap > 0, f"cap must be above 0, got {cap}")


def _layouts(operation: ir.Operation) -> str | None:
    """On flat rows: one layout for each operand and for the result, of the right rank, rows first where there are tokens."""
    if "layouts" not in operation.attributes:
        return None
    given = ir.StringAttr(operation.attributes["layouts"]).value
    operands, _, result = given.partition("->")
    layouts = [*([part.strip() for part in operands.split(",")] if operands.strip() else []), result.strip()]
    shapes = [shape_of(value) for value in (*operation.operands, operation.results[0])]
    if len(layouts) != len(shapes):
        return f"has {len(layouts)} layouts for {len(shapes)} operands and results"
    for layout, shape in zip(layouts, shapes, strict=True):
        rows = [] if layout == "-" else [0]
        fits = layout == "-" or (layout.count("t") == 1 and layout.find("b") < 1 and len(shape) == len(layout.lstrip("b")))
        if not fits or [at for at, size in enumerate(shape) if size is None] != rows:
            return f"has layout {layout!r} for a value of shape {shape}"
    return None


ATTRIBUTE_RULES: dict[str, Callable[[ir.Operation], str | None]] = {
    "ts.aten": _layouts,
    "ts.slice": _slice_start,
    "ts.gated_activation": _one_of_activations("activation"),
    "ts.activation": _one_of_activations("kind"),
    "ts.softcap": _cap,
    "ts.all_gather": _gathered_dimension,
    "ts.take_rows": _half,
    "ts.reduce_scatter": _scattered_dimension,
    "ts.take_part": _scattered_dimension,
    "ts.dispatch": _gathered_dimension,
    "ts.combine": _scattered_dimension,
    "ts.moe_route": mixture.route_attributes,
    "ts.moe_experts": mixture.experts_attributes,
    "ts.attention": _scores,
    "ts.cached_attention": _kv_heads,
}
"""What shapes alone do not say; asked once the shapes are right."""


def check(operation: ir.Operation) -> str | None:
    """What is wrong with the operation's shapes, element types or attributes, or None."""
    if operation.name == "ts.repeat":
        return _repeat(operation)
    if operation.name == "ts.recurrence":
        return check_recurrence(operation)
    rule = RULES[operation.name]
    operands, results = list(operation.operands), list(operation.results)
    problem = rule([shape_of(value) for value in operands], [shape_of(value) for value in results])
    if problem or not operands:
        return problem
    mixed = None if operation.name in _MIXED_DTYPES else _element_types(operation)
    return mixed or ATTRIBUTE_RULES.get(operation.name, lambda _: None)(operation)
