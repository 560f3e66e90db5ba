"""Each raising rule: the shapes of code that it takes, and close ones that it must leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import shape_of
from tokenspeed.plans.errors import ModelError

from .graph import TOKENS, Graph, only, operations

ROWS: list[int | None] = [1, None, 16]
ONE: list[int | None] = [1, None, 1]


def norm(
    graph: Graph, x: ir.Value, *, cast_last: bool = False, swapped: bool = False, power: int = 2, keep: ir.Value | None = None
) -> ir.Value:
    """LlamaRMSNorm, or with the weight applied in float32 (`cast_last`)."""
    narrow = graph.dtype != "f32"
    wide = graph.cast(x, ROWS, "f32") if narrow else x
    squares = graph.call("pow.Tensor_Scalar", wide, power, shape=ROWS, dtype="f32")
    mean = graph.call("mean.dim", squares, [-1], True, shape=ONE, dtype="f32")
    root = graph.call("rsqrt.default", graph.call("add.Tensor", mean, 1e-5, shape=ONE, dtype="f32"), shape=ONE, dtype="f32")
    normal = graph.call("mul.Tensor", wide if keep is None else keep, root, shape=ROWS, dtype="f32")
    weight = graph.weight("norm", [16], "f32" if cast_last else "")
    if narrow and not cast_last:
        normal = graph.cast(normal, ROWS, graph.dtype)
    pair = (normal, weight) if swapped else (weight, normal)
    scaled = graph.call("mul.Tensor", *pair, shape=ROWS, dtype="f32" if cast_last else "", label="norm")
    return graph.cast(scaled, ROWS, graph.dtype) if narrow and cast_last else scaled


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("swapped", [False, True])
def test_rms_norm(dtype: str, swapped: bool) -> None:
    graph = Graph(dtype)
    raised = only(graph.raised(norm(graph, graph.hidden(), swapped=swapped)), "rms_norm")
    assert module.float_attribute(raised, "eps") == 1e-5
    assert module.int_attribute(raised, "cast_before_weight") and not module.int_attribute(raised, "one_plus_weight")
    assert module.label_of(raised) == "norm"


def test_rms_norm_of_another_power_or_two_values_is_left() -> None:
    for wrong in (
        lambda graph, x: norm(graph, x, power=3),
        lambda graph, x: norm(graph, x, keep=graph.weight("other", [1, 1, 16])),
    ):
        graph = Graph()
        raised = graph.raised(wrong(graph, graph.hidden()))
        assert not operations(raised, "rms_norm") and "aten.rsqrt.default" in fallbacks(raised)


def fallbacks(raised: ir.Module) -> list[str]:
    """ATen operations that were left."""
    return [module.text_attribute(item, "target") for item in operations(raised, "aten")]


@pytest.mark.parametrize("scaling", [None, 1.25])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rope_and_its_table(scaling: float | None, dtype: str) -> None:
    graph = Graph(dtype)
    cos, sin = graph.table(scaling=scaling)
    raised = graph.raised(flat(graph, rope(graph, graph.heads(), cos, sin)))
    table, turned = only(raised, "rope_table"), only(raised, "rope")
    assert module.float_attribute(table, "scaling") == (scaling or 1.0)
    assert list(turned.operands)[1:] == list(table.results)
    assert shape_of(turned.results[0]) == (None, 2, 8)


def rope(
    graph: Graph, x: ir.Value, cos: ir.Value, sin: ir.Value, *, half: int = 4, axis: int = 1, turned: str = "neg.default"
) -> ir.Value:
    """apply_rotary_pos_emb for one of q and k; x is [1, heads, tokens, 8] (axis 1) or [1, tokens, heads, 8] (axis 2)."""
    shape: list[int | None] = [1, 2, None, 8] if axis == 1 else [1, None, 2, 8]
    table: list[int | None] = [1, 1, None, 8] if axis == 1 else [1, None, 1, 8]
    before, after = [*shape[:3], half], [*shape[:3], 8 - half]
    cos, sin = (graph.call("unsqueeze.default", value, axis, shape=table) for value in (cos, sin))
    straight = graph.call("mul.Tensor", x, cos, shape=shape)
    second = graph.call("slice.Tensor", x, 3, half, 9223372036854775807, shape=after)
    first = graph.call("slice.Tensor", x, 3, 0, half, shape=before)
    joined = graph.call("cat.default", [graph.call(turned, second, shape=after), first], -1, shape=shape)
    return graph.call("add.Tensor", straight, graph.call("mul.Tensor", joined, sin, shape=shape), shape=shape)


def flat(graph: Graph, heads: ir.Value, axis: int = 1) -> ir.Value:
    """[1, heads, tokens, 8] as [1, tokens, 16]."""
    if axis == 1:
        heads = graph.call("transpose.int", heads, 1, 2, shape=[1, None, 2, 8])
    return graph.call("view.default", heads, [1, TOKENS, 16], shape=ROWS)


def test_rope_on_tokens_first() -> None:
    graph = Graph()
    split = graph.call("view.default", graph.hidden(), [1, TOKENS, 2, 8], shape=[1, None, 2, 8])
    turned = rope(graph, split, *graph.table(), axis=2)
    assert only(graph.raised(flat(graph, turned, axis=2)), "rope")


@pytest.mark.parametrize("wrong", [{"half": 3}, {"turned": "relu.default"}])
def test_what_only_looks_like_rope_is_left(wrong: dict[str, int | str]) -> None:
    graph = Graph()
    heads = graph.heads()
    raised = graph.raised(flat(graph, rope(graph, heads, *graph.table(), **wrong)))  # pyright: ignore[reportArgumentType]
    assert not operations(raised, "rope") and "aten.cat.default" in fallbacks(raised)


def test_rope_whose_tables_meet_heads_instead_of_tokens_is_refused() -> None:
    graph = Graph()
    heads = graph.heads()
    with pytest.raises(ModelError, match="combines every token with every token"):
        graph.raised(flat(graph, rope(graph, heads, *graph.table(), axis=2)))


def test_attention_takes_heads_and_gives_rows() -> None:
    graph = Graph()
    heads = graph.heads()
    out = graph.attention([heads, heads, heads], 0.25, window=7, layer="{i+1}")
    raised = only(graph.raised(flat(graph, out, axis=2)), "attention")
    assert module.float_attribute(raised, "scale") == 0.25 and module.int_attribute(raised, "window") == 7
    assert module.text_attribute(raised, "layer") == "{i+1}" and shape_of(raised.results[0]) == (None, 2, 8)
    assert module.float_attribute(raised, "softcap") == 0.0 and len(raised.operands) == 3


def test_attention_with_a_soft_cap_and_sinks() -> None:
    graph = Graph()
    heads, sinks = graph.heads(), graph.weight("sinks", [2])
    out = graph.attention([heads, heads, heads, sinks], 0.25, softcap=30.0)
    raised = only(graph.raised(flat(graph, out, axis=2)), "attention")
    assert module.float_attribute(raised, "softcap") == 30.0 and shape_of(raised.operands[3]) == (2,)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", lambda graph, x: graph.call("silu.default", x, shape=ROWS)),
        ("gelu", lambda graph, x: graph.call("gelu.default", x, shape=ROWS)),
        ("gelu_tanh", lambda graph, x: graph.call("gelu.default", x, shape=ROWS, approximate="tanh")),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_gated_activations(name: str, function: Callable[[Graph, ir.Value], ir.Value], swapped: bool) -> None:
    graph = Graph()
    x = graph.hidden()
    up = graph.call("linear.default", x, graph.weight("up", [16, 16]), shape=ROWS)
    pair = (function(graph, x), up)
    out = graph.call("mul.Tensor", *(pair[::-1] if swapped else pair), shape=ROWS)
    parsed = graph.raised(out)
    raised = only(parsed, "gated_activation")
    assert module.text_attribute(raised, "activation") == name
    assert list(raised.operands) == [only(parsed, "embedding").results[0], only(parsed, "linear").results[0]]


def test_linear_with_and_without_bias() -> None:
    graph = Graph()
    x = graph.call("linear.default", graph.hidden(), graph.weight("a", [16, 16]), None, shape=ROWS)
    x = graph.call("mul.Tensor", x, x, shape=ROWS)
    y = graph.call("linear.default", x, graph.weight("b", [16, 16]), graph.weight("c", [16]), shape=ROWS)
    y = graph.call("add.Tensor", x, y, shape=ROWS)
    counts = [len(item.operands) for item in operations(graph.raised(y), "linear")]
    assert counts == [2, 3]


def test_additions_with_a_factor_are_left() -> None:
    graph = Graph()
    x = graph.hidden()
    silu = graph.call("mul.Tensor", x, x, shape=ROWS)
    left = only(graph.raised(graph.call("add.Tensor", x, silu, shape=ROWS, label="scaled", alpha=2)), "aten")
    assert (module.text_attribute(left, "target"), module.label_of(left)) == ("aten.add.Tensor", "scaled")


def test_broadcasts_and_mixed_types_are_left() -> None:
    graph = Graph()
    x = graph.hidden()
    narrow = graph.call("linear.default", x, graph.weight("one", [1, 16]), shape=ONE)
    assert fallbacks(graph.raised(graph.call("add.Tensor", x, narrow, shape=ROWS))) == ["aten.add.Tensor"]
    graph = Graph()
    table = graph.weight("bf16 table", [50, 16], "bf16")
    other = graph.call("embedding.default", table, graph.input(), shape=ROWS, dtype="bf16")
    assert fallbacks(graph.raised(graph.call("add.Tensor", graph.hidden(), other, shape=ROWS))) == ["aten.add.Tensor"]


def test_views_keep_rows_first() -> None:
    graph = Graph()
    raised = graph.raised(flat(graph, graph.heads()))
    assert [shape_of(item.results[0]) for item in operations(raised, "reshape")] == [(None, 2, 8), (None, 16)]

    graph = Graph()
    turned = graph.call("transpose.int", graph.hidden(), 0, 1, shape=[None, 1, 16])
    raised = graph.raised(turned)
    assert [shape_of(item.results[0]) for item in operations(raised, "reshape")] == [(None, 1, 16)]


def test_a_product_with_a_turned_weight_is_a_linear_layer() -> None:
    graph = Graph()
    turned = graph.call("permute.default", graph.weight("w", [24, 16]), [1, 0], shape=[16, 24])
    raised = graph.raised(graph.call("matmul.default", graph.hidden(), turned, shape=[1, None, 24]))
    assert shape_of(only(raised, "linear").operands[1]) == (24, 16) and not operations(raised, "aten")
