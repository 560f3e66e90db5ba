"""One sound sample of every operation of the dialect, and what is wrong with others."""

from __future__ import annotations

from .modules import Sample

NORM = "cast_before_weight = true, eps = 1.0e-6 : f64, one_plus_weight = false"
LAYER_NORM = "eps = 1.0e-5 : f64, operandSegmentSizes = array<i32: 1, 1, BIAS>"
LINEAR = "operandSegmentSizes = array<i32: 1, 1, 0>"
BIASED = "operandSegmentSizes = array<i32: 1, 1, 1>"
SCORES = 'layer = "0", scale = 0.5 : f64, softcap = 30.0 : f64, window = 4 : i64'
ATTENTION = f"operandSegmentSizes = array<i32: 1, 1, 1, 0>, {SCORES}"
SINKS = f"operandSegmentSizes = array<i32: 1, 1, 1, 1>, {SCORES}"
CACHED = f"kv_heads = 2 : i64, operandSegmentSizes = array<i32: 1, 0>, {SCORES}"
CACHED_SINKS = f"kv_heads = 2 : i64, operandSegmentSizes = array<i32: 1, 1>, {SCORES}"
HALVES, NEIGHBOURS = "interleaved = false", "interleaved = true"
ATEN = (
    'arguments = "{\\"args\\": [{\\"operand\\": 0}], \\"kwargs\\": {}}", '
    'operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0>, target = "aten.relu.default"'
)
REPEAT = (
    "count = 3 : i64, first = 1 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 2 : i64"
)

LATENT = 'layer = "0", scale = 0.5 : f64'
LATENTS = ("tensor<?x4x8xf32>", "tensor<?x4x2xf32>", "tensor<?x5xf32>", "tensor<?x2xf32>", "tensor<56x5xf32>")
ROUTE = (
    'group_best = 2 : i64, groups = 2 : i64, normalize = true, scale = 2.5 : f64, scoring = "sigmoid", top_groups = 1 : i64, '
    "top_k = 3 : i64"
)
ROUTE_BY, ROUTE_BIASED = "operandSegmentSizes = array<i32: 1, 0>", "operandSegmentSizes = array<i32: 1, 1>"
EXPERTS = 'activation = "silu", alpha = 0.0 : f64, limit = 0.0 : f64'
EXPERTS_OF = "operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>"
EXPERTS_SHARED_OUT = "experts = 24 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 1>"
EXPERTS_BIASED = "operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0>"
INDICES, FACTORS, NUMBERS = "tensor<?x3xi32>", "tensor<?x3xf32>", "tensor<8xi32>"
GATE_UP, DOWN = "tensor<8x10x8xbf16>", "tensor<8x8x5xbf16>"

X, X3 = "tensor<?x8xf32>", "tensor<?x4x8xf32>"
XB = "tensor<?x8xbf16>"

SOUND: tuple[Sample, ...] = (
    Sample("ts.input", (), ("tensor<?xi32>",), 'sym = "token_ids"'),
    Sample("ts.weight", (), ("tensor<6x8xbf16>",), 'parameters = ["a", "b"], sym = "a+b"'),
    Sample("ts.constant", (), ("tensor<4xf32>",), 'sym = "inv_freq"'),
    Sample("ts.aten", (X,), (X,), ATEN),
    Sample("ts.embedding", ("tensor<?xi32>", "tensor<50x8xf32>"), (X,)),
    Sample("ts.linear", (X, "tensor<6x8xf32>"), ("tensor<?x6xf32>",), LINEAR),
    Sample("ts.linear", (X, "tensor<6x8xf32>", "tensor<6xf32>"), ("tensor<?x6xf32>",), BIASED),
    Sample("ts.rms_norm", (X, "tensor<8xf32>"), (X,), NORM),
    Sample("ts.rms_norm", (X3, "tensor<8xf32>"), (X3,), NORM),
    Sample("ts.add_rms_norm", (X, X, "tensor<8xf32>"), (X, X), NORM),
    Sample("ts.layer_norm", (X, "tensor<8xf32>"), (X,), LAYER_NORM.replace("BIAS", "0")),
    Sample("ts.layer_norm", (X3, "tensor<8xf32>", "tensor<8xf32>"), (X3,), LAYER_NORM.replace("BIAS", "1")),
    Sample("ts.rope_table", ("tensor<?xi32>", "tensor<4xf32>"), ("tensor<?x8xbf16>", "tensor<?x8xbf16>"), "scaling = 1.5 : f64"),
    Sample("ts.rope", (X3, "tensor<?x6xf32>", "tensor<?x6xf32>"), (X3,), HALVES),
    Sample("ts.rope", (X3, X, X), (X3,), NEIGHBOURS),
    Sample("ts.attention", (X3, "tensor<?x2x8xf32>", "tensor<?x2x6xf32>"), ("tensor<?x4x6xf32>",), ATTENTION),
    Sample("ts.attention", (X3, X3, X3, "tensor<4xf32>"), (X3,), SINKS),
    Sample("ts.rope_kv_write", (X3, "tensor<?x2x8xf32>", "tensor<?x2x8xf32>", X, X), (X3,), f'layer = "0", {HALVES}'),
    Sample("ts.cached_attention", (X3,), (X3,), CACHED),
    Sample("ts.cached_attention", (X3, "tensor<4xf32>"), (X3,), CACHED_SINKS),
    Sample("ts.gated_activation", (X, X), (X,), 'activation = "gelu_tanh"'),
    Sample("ts.activation", (X,), (X,), 'kind = "relu2"'),
    Sample("ts.scale", (X,), (X,), "factor = 0.25 : f64"),
    Sample("ts.softcap", (X3,), (X3,), "cap = 30.0 : f64"),
    Sample("ts.latent_attention", LATENTS, ("tensor<?x4x6xf32>",), LATENT),
    Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE}, {ROUTE_BY}"),
    Sample("ts.moe_route", (X, "tensor<8xf32>"), (INDICES, "tensor<?x3xbf16>"), f"{ROUTE}, {ROUTE_BIASED}"),
    Sample("ts.moe_experts", (XB, INDICES, FACTORS, GATE_UP, DOWN), (XB,), f"{EXPERTS}, {EXPERTS_OF}"),
    Sample(
        "ts.moe_experts",
        (XB, INDICES, FACTORS, GATE_UP, DOWN, "tensor<8x10xbf16>", "tensor<8x8xbf16>"),
        (XB,),
        f'activation = "swiglu_clamped", alpha = 1.7 : f64, limit = 7.0 : f64, {EXPERTS_BIASED}',
    ),
    Sample("ts.moe_experts", (XB, INDICES, FACTORS, GATE_UP, DOWN, NUMBERS), (XB,), f"{EXPERTS}, {EXPERTS_SHARED_OUT}"),
    Sample("ts.cast", (XB,), (X,)),
    Sample("ts.add", (X, X), (X,)),
    Sample("ts.mul", (X3, X3), (X3,)),
    Sample("ts.reshape", ("tensor<?x32xf32>",), (X3,)),
    Sample("ts.slice", (X,), ("tensor<?x3xf32>",), "start = 5 : i64"),
    Sample("ts.gather_rows", (X, "tensor<?xi32>"), (X,)),
    Sample("ts.all_reduce", (X,), (X,), 'axis = "tp", ranks = 3 : i64'),
    Sample("ts.all_gather", (X,), ("tensor<?x24xf32>",), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'),
    Sample("ts.send", (X,), (), 'axis = "pp", sym = "x"'),
    Sample("ts.receive", (), (X,), 'axis = "pp", sym = "x"'),
    Sample("ts.all_gather", (X,), (X,), 'axis = "tp", dimension = 0 : i64, ranks = 3 : i64'),
    Sample("ts.dispatch", (X, INDICES), (X,), 'axis = "tp", dimension = 0 : i64, experts = 8 : i64, ranks = 3 : i64'),
    Sample("ts.combine", (X, INDICES), (X,), 'axis = "tp", dimension = 0 : i64, experts = 8 : i64, ranks = 3 : i64'),
    Sample("ts.reduce_scatter", (X,), (X,), 'axis = "tp", dimension = 0 : i64, ranks = 3 : i64'),
    Sample("ts.reduce_scatter", ("tensor<?x24xf32>",), (X,), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'),
    Sample("ts.take_part", (X,), (X,), 'axis = "tp", dimension = 0 : i64, ranks = 3 : i64'),
    Sample("ts.take_rows", (X,), (X,), "half = 1 : i64"),
    Sample("ts.join_rows", (X, X), (X,)),
)

F16 = "tensor<?x8xf16>"

WRONG: tuple[tuple[Sample, str], ...] = (
    (Sample("ts.input", (), ("tensor<?x0xi32>",), 'sym = "x"'), "sizes must be positive"),
    (Sample("ts.weight", (), ("tensor<0x8xf32>",), 'parameters = ["a"], sym = "a"'), "sizes must be positive"),
    (Sample("ts.constant", (), ("tensor<0xf32>",), 'sym = "c"'), "sizes must be positive"),
    (Sample("ts.embedding", ("tensor<?x1xi32>", "tensor<50x8xf32>"), (X,)), r"expects ids\[rows\]"),
    (Sample("ts.embedding", ("tensor<?xi32>", "tensor<50x9xf32>"), (X,)), "result is"),
    (Sample("ts.linear", (X, "tensor<6x9xf32>"), ("tensor<?x6xf32>",), LINEAR), "weight has 9 columns, x has 8"),
    (Sample("ts.linear", (X3, "tensor<6x8xf32>"), ("tensor<?x6xf32>",), LINEAR), r"expects x\[rows, k\]"),
    (Sample("ts.linear", (X, "tensor<6x8xf32>", "tensor<5xf32>"), ("tensor<?x6xf32>",), BIASED), "bias has shape"),
    (Sample("ts.linear", (X, "tensor<6x8xf32>"), ("tensor<?x7xf32>",), LINEAR), "result is"),
    (Sample("ts.linear", (X, "tensor<6x8xf16>"), ("tensor<?x6xf32>",), LINEAR), "mixes element types"),
    (Sample("ts.rms_norm", (X, "tensor<7xf32>"), (X,), NORM), "do not fit x"),
    (Sample("ts.rms_norm", (X, "tensor<8xf32>"), ("tensor<?x7xf32>",), NORM), "do not fit x"),
    (Sample("ts.add_rms_norm", (X, "tensor<?x7xf32>", "tensor<8xf32>"), (X, X), NORM), "do not fit together"),
    (Sample("ts.layer_norm", (X, "tensor<7xf32>"), (X,), LAYER_NORM.replace("BIAS", "0")), "do not fit x"),
    (Sample("ts.layer_norm", (X, "tensor<8xf32>", "tensor<7xf32>"), (X,), LAYER_NORM.replace("BIAS", "1")), "do not fit x"),
    (Sample("ts.rope_table", ("tensor<?xi32>", "tensor<4xf32>"), (X, "tensor<?x6xf32>"), "scaling = 1.0 : f64"), "cos and sin"),
    (Sample("ts.rope_table", ("tensor<?x1xi32>", "tensor<4xf32>"), (X, X), "scaling = 1.0 : f64"), r"expects positions\[rows\]"),
    (Sample("ts.rope", (X3, "tensor<?x5xf32>", "tensor<?x5xf32>"), (X3,), HALVES), "is odd or larger"),
    (Sample("ts.rope", (X3, "tensor<?x10xf32>", "tensor<?x10xf32>"), (X3,), NEIGHBOURS), "is odd or larger"),
    (Sample("ts.rope", (X3, X, "tensor<?x6xf32>"), (X3,), HALVES), "equal cos, sin"),
    (Sample("ts.attention", (X3, "tensor<?x3x8xf32>", "tensor<?x3x8xf32>"), (X3,), ATTENTION), "multiple of key/value heads"),
    (Sample("ts.attention", (X3, "tensor<?x2x6xf32>", "tensor<?x2x6xf32>"), (X3,), ATTENTION), "head_dim must agree"),
    (Sample("ts.attention", (X3, X3, X3), ("tensor<?x4x6xf32>",), ATTENTION), "result is"),
    (Sample("ts.attention", (X3, X3, X3), (X3,), ATTENTION.replace("window = 4", "window = -4")), "window must be 0 or more"),
    (Sample("ts.attention", (X3, X3, X3), (X3,), ATTENTION.replace("softcap = 30", "softcap = -1")), "softcap must be 0 or more"),
    (Sample("ts.attention", (X3, X3, X3, "tensor<3xf32>"), (X3,), SINKS), "one per query head"),
    (Sample("ts.rope_kv_write", (X3, X3, "tensor<?x2x8xf32>", X, X), (X3,), f'layer = "0", {HALVES}'), "key/value heads"),
    (Sample("ts.rope_kv_write", (X3, X3, X3, X, X), ("tensor<?x2x8xf32>",), f'layer = "0", {HALVES}'), "result is"),
    (Sample("ts.cached_attention", (X3,), (X,), CACHED), "q and result"),
    (Sample("ts.cached_attention", (X3,), (X3,), CACHED.replace("kv_heads = 2", "kv_heads = 3")), "no multiple of 3"),
    (Sample("ts.cached_attention", (X3, X), (X3,), CACHED_SINKS), "one per query head"),
    (Sample("ts.gated_activation", (X, "tensor<?x9xf32>"), (X,), 'activation = "silu"'), "one shape"),
    (Sample("ts.gated_activation", (X, X), (X,), 'activation = "tanh"'), "expected one of gelu, gelu_tanh, relu, relu2, silu"),
    (Sample("ts.activation", (X,), (X,), 'kind = "tanh"'), "kind is 'tanh', expected one of gelu, gelu_tanh, relu, relu2, silu"),
    (Sample("ts.scale", (X,), (X3,), "factor = 0.25 : f64"), "one shape"),
    (Sample("ts.softcap", (X,), (X,), "cap = 0.0 : f64"), "cap must be above 0"),
    (Sample("ts.latent_attention", LATENTS, (X3,), LATENT), "result is"),
    (Sample("ts.latent_attention", (*LATENTS[:2], X3, *LATENTS[3:]), ("tensor<?x4x6xf32>",), LATENT), "expects q_nope"),
    (Sample("ts.latent_attention", (*LATENTS[:3], X, LATENTS[4]), ("tensor<?x4x6xf32>",), LATENT), "do not fit together"),
    (Sample("ts.latent_attention", (*LATENTS[:4], "tensor<32x5xf32>"), ("tensor<?x4x6xf32>",), LATENT), "kv_b is"),
    (Sample("ts.latent_attention", (*LATENTS[:4], "tensor<57x5xf32>"), ("tensor<?x4x6xf32>",), LATENT), "kv_b is"),
    (Sample("ts.moe_route", (X, "tensor<7xf32>"), (INDICES, FACTORS), f"{ROUTE}, {ROUTE_BIASED}"), "bias is"),
    (Sample("ts.moe_route", (X,), (INDICES, "tensor<?x2xf32>"), f"{ROUTE}, {ROUTE_BY}"), "expected twice"),
    (Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace('top_k = 3', 'top_k = 2')}, {ROUTE_BY}"), "top_k is 2"),
    (Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace('sigmoid', 'relu')}, {ROUTE_BY}"), "scoring is"),
    (
        Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace('sigmoid', 'softmax_selected')}, {ROUTE_BY}"),
        "neither bias",
    ),
    (
        Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace(' groups = 2', ' groups = 3')}, {ROUTE_BY}"),
        "of 3 groups",
    ),
    (
        Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace(' groups = 2', ' groups = 4')}, {ROUTE_BY}"),
        "are wanted",
    ),
    (Sample("ts.moe_route", (X,), (INDICES, FACTORS), f"{ROUTE.replace('best = 2', 'best = 5')}, {ROUTE_BY}"), "best 5"),
    (Sample("ts.moe_experts", (XB, INDICES, FACTORS, DOWN, DOWN), (XB,), f"{EXPERTS}, {EXPERTS_OF}"), "do not fit together"),
    (Sample("ts.moe_experts", (XB, INDICES, X, GATE_UP, DOWN), (XB,), f"{EXPERTS}, {EXPERTS_OF}"), "expects x"),
    (Sample("ts.moe_experts", (XB, INDICES, FACTORS, GATE_UP, DOWN), (INDICES,), f"{EXPERTS}, {EXPERTS_OF}"), "result is"),
    (
        Sample(
            "ts.moe_experts", (XB, INDICES, FACTORS, GATE_UP, DOWN), (XB,), f"{EXPERTS.replace('silu', 'relu')}, {EXPERTS_OF}"
        ),
        "activation is",
    ),
    (
        Sample(
            "ts.moe_experts",
            (XB, INDICES, FACTORS, GATE_UP, DOWN, "tensor<8x9xbf16>", "tensor<8x8xbf16>"),
            (XB,),
            f"{EXPERTS}, {EXPERTS_BIASED}",
        ),
        "biases are",
    ),
    (
        Sample(
            "ts.moe_experts", (XB, INDICES, FACTORS, GATE_UP, DOWN, "tensor<7xi32>"), (XB,), f"{EXPERTS}, {EXPERTS_SHARED_OUT}"
        ),
        "numbers are",
    ),
    (
        Sample(
            "ts.moe_experts",
            (XB, INDICES, FACTORS, GATE_UP, DOWN, NUMBERS),
            (XB,),
            f"{EXPERTS}, {EXPERTS_SHARED_OUT.partition(', ')[2]}",
        ),
        "not how many the model has",
    ),
    (Sample("ts.cast", (XB,), (X3,)), "one shape"),
    (Sample("ts.add", (X, X3), (X,)), "one shape"),
    (Sample("ts.add", (X, F16), (X,)), "mixes element types"),
    (Sample("ts.mul", (X, X), (X3,)), "one shape"),
    (Sample("ts.reshape", (X,), (X3,)), "cannot become"),
    (Sample("ts.slice", (X,), ("tensor<?x9xf32>",), "start = 0 : i64"), "not a window of the columns"),
    (Sample("ts.slice", (X,), ("tensor<?x3xf32>",), "start = 6 : i64"), "columns from 6 on do not hold 3 of 8"),
    (Sample("ts.gather_rows", (X, "tensor<?x1xi32>"), (X,)), "for x"),
    (Sample("ts.all_reduce", (X,), (X3,), 'axis = "tp", ranks = 3 : i64'), "one shape"),
    (Sample("ts.send", ("tensor<4x8xf32>",), (), 'axis = "pp", sym = "x"'), "a value of rows"),
    (Sample("ts.receive", (), ("tensor<8xf32>",), 'axis = "pp", sym = "x"'), "a value of rows"),
    (Sample("ts.all_gather", (X,), (X3,), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'), "only one dimension changes"),
    (Sample("ts.all_gather", (X,), (X3,), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'), "only one dimension changes"),
    (Sample("ts.all_gather", (X,), (X,), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'), "3 parts of"),
    (Sample("ts.all_gather", (X,), (X,), 'axis = "tp", dimension = 2 : i64, ranks = 3 : i64'), "is about dimension 2 of"),
    (Sample("ts.dispatch", (X, INDICES), (X3,), 'axis = "tp", dimension = 0 : i64, experts = 8 : i64, ranks = 3 : i64'), "gives"),
    (Sample("ts.combine", (X, NUMBERS), (X,), 'axis = "tp", dimension = 0 : i64, experts = 8 : i64, ranks = 3 : i64'), "gives"),
    (Sample("ts.reduce_scatter", (X,), (X,), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'), "3 parts of"),
    (Sample("ts.reduce_scatter", (X,), ("tensor<?x24xf32>",), 'axis = "tp", dimension = 1 : i64, ranks = 3 : i64'), "3 parts of"),
    (Sample("ts.take_rows", (X,), (X,), "half = 2 : i64"), "there is no half 2"),
    (Sample("ts.join_rows", (X, "tensor<?x4xf32>"), (X,)), "one shape"),
    (Sample("ts.take_part", (X,), ("tensor<?x4xf32>",), 'axis = "tp", dimension = 0 : i64, ranks = 3 : i64'), "3 parts of"),
)


def repeat(attributes: str = REPEAT, argument: str = X, yielded: str = "%h", result: str = X) -> str:
    """A module with a repeat whose body hands its argument on; each part can be made wrong."""
    handed_on = "tensor<?x9xf32>" if yielded == "%other" else argument
    return f"""
module {{
  func.func @step() {{
    %x = "ts.input"() {{sym = "x"}} : () -> {X}
    %other = "ts.input"() {{sym = "y"}} : () -> tensor<?x9xf32>
    %out = "ts.repeat"(%x) ({{
    ^bb0(%h: {argument}):
      "ts.yield"({yielded}) {{operandSegmentSizes = array<i32: 1>}} : ({handed_on}) -> ()
    }}) {{{attributes}}} : ({X}) -> {result}
    return
  }}
}}
"""


WRONG_REPEATS = (
    (repeat(REPEAT.replace("count = 3", "count = 0")), "runs for 0 layers"),
    (repeat(REPEAT.replace("first = 1", "first = -1")), "from -1 on"),
    (repeat(REPEAT.replace("stride = 2", "stride = 0")), "0 apart"),
    (repeat(yielded="%other"), "its yielded values are"),
    (repeat(result="tensor<?x9xf32>"), "its results are"),
    (repeat(argument="tensor<?x9xf32>"), "its arguments are"),
)
