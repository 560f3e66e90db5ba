"""Modules of the dialect as text: one operation with its operands, and a whole small decoder."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 32, 4, 2, 8, 48, 64


@dataclass(frozen=True)
class Sample:
    """One operation: its name, types of operands and results, attributes as MLIR prints them."""

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    attributes: str = ""

    def line(self, operands: list[str]) -> str:
        names = ", ".join(f"%r{index}" for index in range(len(self.results)))
        types = f"({', '.join(self.operands)}) -> ({', '.join(self.results)})"
        assigned = f"{names} = " if self.results else ""
        return f'{assigned}"{self.name}"({", ".join(operands)}) {{{self.attributes}}} : {types}'

    def module(self) -> str:
        """A step function with inputs of the operands' types, then the operation."""
        inputs = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(self.operands)]
        body = [*inputs, self.line([f"%a{at}" for at in range(len(self.operands))]), "return"]
        return step(body)


def step(body: list[str], results: str = "") -> str:
    lines = "\n".join(f"    {line}" for line in body)
    return f"module {{\n  func.func @step(){f' -> {results}' if results else ''} {{\n{lines}\n  }}\n}}\n"


def weight(value: str, name: str, shape: str, dtype: str = "f32") -> str:
    return f'%{value} = "ts.weight"() {{parameters = ["{name}"], sym = "{name}"}} : () -> tensor<{shape}x{dtype}>'


def mixture(experts: int = 6, hidden: int = 16, inner: int = 12, top_k: int = 2) -> str:
    """A mixture of experts behind an embedding, its sum added to what it reads, then a head."""
    rows, indices, weights = f"tensor<?x{hidden}xf32>", f"tensor<?x{top_k}xi32>", f"tensor<?x{top_k}xf32>"
    logits, table = f"tensor<?x{experts}xf32>", f"tensor<{VOCABULARY}x{hidden}xf32>"
    route = (
        f'group_best = 1 : i64, groups = 1 : i64, normalize = true, scale = 1.0 : f64, scoring = "softmax", top_k = {top_k} : i64'
    )
    one, pair = "operandSegmentSizes = array<i32: 1, 1, 0>", "operandSegmentSizes = array<i32: 1, 0>"
    held = "operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>"
    gate_up, down = f"tensor<{experts}x{2 * inner}x{hidden}xf32>", f"tensor<{experts}x{hidden}x{inner}xf32>"
    body = [
        '%ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>',
        weight("table", "embed", f"{VOCABULARY}x{hidden}"),
        f'%x = "ts.embedding"(%ids, %table) : (tensor<?xi32>, {table}) -> {rows}',
        weight("router", "gate", f"{experts}x{hidden}"),
        f'%l = "ts.linear"(%x, %router) {{label = "gate", {one}}} : ({rows}, tensor<{experts}x{hidden}xf32>) -> {logits}',
        f'%i, %s = "ts.moe_route"(%l) {{{route}, top_groups = 1 : i64, {pair}}} : ({logits}) -> ({indices}, {weights})',
        weight("gate_up", "experts.gate_up", f"{experts}x{2 * inner}x{hidden}"),
        weight("down", "experts.down", f"{experts}x{hidden}x{inner}"),
        '%y = "ts.moe_experts"(%x, %i, %s, %gate_up, %down) {activation = "silu", alpha = 0.0 : f64, label = "experts", '
        f"limit = 0.0 : f64, {held}}} : ({rows}, {indices}, {weights}, {gate_up}, {down}) -> {rows}",
        f'%z = "ts.add"(%x, %y) : ({rows}, {rows}) -> {rows}',
        weight("head", "lm_head", f"{VOCABULARY}x{hidden}"),
        f'%out = "ts.linear"(%z, %head) {{label = "lm_head", {one}}} : ({rows}, {table}) -> tensor<?x{VOCABULARY}xf32>',
        f"return %out : tensor<?x{VOCABULARY}xf32>",
    ]
    return step(body, f"tensor<?x{VOCABULARY}xf32>")


def decoder(
    layers: int = 2,
    window: int = 0,
    bias: bool = False,
    dtype: str = "f32",
    tied: bool = False,
    pattern: int = 1,
    rope: bool = True,
    softcap: float = 0.0,
    sinks: bool = False,
    interleaved: bool = False,
) -> str:
    """A decoder as raising leaves it. `pattern` layers stand in the body of the repeat, `layers` is a multiple of it."""
    rows = f"tensor<?x{HIDDEN}x{dtype}>"
    table = f"tensor<?x{HEAD_DIM}x{dtype}>"
    head_dtype = f"{VOCABULARY}x{HIDDEN}"
    body = [
        '%ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>',
        '%positions = "ts.input"() {sym = "positions"} : () -> tensor<?xi32>',
        f'%frequencies = "ts.constant"() {{sym = "inv_freq"}} : () -> tensor<{HEAD_DIM // 2}xf32>',
        f'%cos, %sin = "ts.rope_table"(%positions, %frequencies) {{scaling = 1.0 : f64}} : '
        f"(tensor<?xi32>, tensor<{HEAD_DIM // 2}xf32>) -> ({table}, {table})",
        weight("table", "embed.weight", head_dtype, dtype),
        f'%x = "ts.embedding"(%ids, %table) {{label = "embed"}} : (tensor<?xi32>, tensor<{head_dtype}x{dtype}>) -> {rows}',
        f'%out = "ts.repeat"(%x) ({{\n    ^bb0(%h0: {rows}):',
        *[line for offset in range(pattern) for line in _layer(offset, window, bias, dtype, rope, softcap, sinks, interleaved)],
        f'"ts.yield"(%h{pattern}) {{operandSegmentSizes = array<i32: 1>}} : ({rows}) -> ()',
        f"}}) {{count = {layers // pattern} : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, "
        f"resultSegmentSizes = array<i32: 1>, stride = {pattern} : i64}} : ({rows}) -> {rows}",
        weight("last", "norm.weight", f"{HIDDEN}", dtype),
        _norm("final", "%out", "%last", "norm", dtype),
        '%wanted = "ts.input"() {sym = "logit_rows"} : () -> tensor<?xi32>',
        f'%chosen = "ts.gather_rows"(%final, %wanted) : ({rows}, tensor<?xi32>) -> {rows}',
        *([] if tied else [weight("head", "lm_head.weight", head_dtype, dtype)]),
        _linear("logits", "%chosen", "%table" if tied else "%head", HIDDEN, VOCABULARY, "lm_head", dtype),
        f"return %logits : tensor<?x{VOCABULARY}x{dtype}>",
    ]
    return step(body, f"tensor<?x{VOCABULARY}x{dtype}>")


def _norm(value: str, x: str, scale: str, label: str, dtype: str) -> str:
    rows = f"tensor<?x{HIDDEN}x{dtype}>"
    flags = f'cast_before_weight = true, eps = 1.0e-5 : f64, label = "{label}", one_plus_weight = false'
    return f'%{value} = "ts.rms_norm"({x}, {scale}) {{{flags}}} : ({rows}, tensor<{HIDDEN}x{dtype}>) -> {rows}'


def _linear(value: str, x: str, matrix: str, inner: int, width: int, label: str, dtype: str, bias: str = "") -> str:
    segments = f"operandSegmentSizes = array<i32: 1, 1, {int(bool(bias))}>"
    operands, types = f"{x}, {matrix}", f"tensor<?x{inner}x{dtype}>, tensor<{width}x{inner}x{dtype}>"
    if bias:
        operands, types = f"{operands}, {bias}", f"{types}, tensor<{width}x{dtype}>"
    return f'%{value} = "ts.linear"({operands}) {{label = "{label}", {segments}}} : ({types}) -> tensor<?x{width}x{dtype}>'


def _layer(
    offset: int, window: int, bias: bool, dtype: str, rope: bool, softcap: float, sinks: bool, interleaved: bool
) -> list[str]:
    index = f"{{i+{offset}}}" if offset else "{i}"
    path, n = f"layers.{index}", offset
    rows, table = f"tensor<?x{HIDDEN}x{dtype}>", f"tensor<?x{HEAD_DIM}x{dtype}>"
    q_width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    widths = {"q": q_width, "k": kv_width, "v": kv_width}
    lines = [
        weight(f"n{n}", f"{path}.norm1.weight", f"{HIDDEN}", dtype),
        _norm(f"y{n}", f"%h{n}", f"%n{n}", f"{path}.norm1", dtype),
    ]
    for name, width in widths.items():
        heads = f"tensor<?x{width // HEAD_DIM}x{HEAD_DIM}x{dtype}>"
        lines.append(weight(f"w{name}{n}", f"{path}.{name}_proj.weight", f"{width}x{HIDDEN}", dtype))
        if bias:
            lines.append(weight(f"b{name}{n}", f"{path}.{name}_proj.bias", f"{width}", dtype))
        added = f"%b{name}{n}" if bias else ""
        lines.append(_linear(f"p{name}{n}", f"%y{n}", f"%w{name}{n}", HIDDEN, width, f"{path}.{name}_proj", dtype, added))
        lines.append(f'%s{name}{n} = "ts.reshape"(%p{name}{n}) : (tensor<?x{width}x{dtype}>) -> {heads}')
        if rope and name != "v":
            how = f"{{interleaved = {str(interleaved).lower()}}}"
            lines.append(f'%r{name}{n} = "ts.rope"(%s{name}{n}, %cos, %sin) {how} : ({heads}, {table}, {table}) -> {heads}')
    turned = "r" if rope else "s"
    q_heads, kv_heads = (f"tensor<?x{count}x{HEAD_DIM}x{dtype}>" for count in (HEADS, KV_HEADS))
    if sinks:
        lines.append(weight(f"sinks{n}", f"{path}.sinks", f"{HEADS}", dtype))
    more = (f", %sinks{n}", f", tensor<{HEADS}x{dtype}>") if sinks else ("", "")
    return [
        *lines,
        f'%o{n} = "ts.attention"(%{turned}q{n}, %{turned}k{n}, %sv{n}{more[0]}) {{label = "{path}.attention", layer = "{index}", '
        f"operandSegmentSizes = array<i32: 1, 1, 1, {int(sinks)}>, scale = 0.35 : f64, softcap = {softcap} : f64, "
        f"window = {window} : i64}} : ({q_heads}, {kv_heads}, {kv_heads}{more[1]}) -> {q_heads}",
        f'%f{n} = "ts.reshape"(%o{n}) : ({q_heads}) -> {rows}',
        weight(f"wo{n}", f"{path}.o_proj.weight", f"{HIDDEN}x{q_width}", dtype),
        _linear(f"e{n}", f"%f{n}", f"%wo{n}", q_width, HIDDEN, f"{path}.o_proj", dtype),
        f'%m{n} = "ts.add"(%h{n}, %e{n}) : ({rows}, {rows}) -> {rows}',
        weight(f"nn{n}", f"{path}.norm2.weight", f"{HIDDEN}", dtype),
        _norm(f"z{n}", f"%m{n}", f"%nn{n}", f"{path}.norm2", dtype),
        weight(f"wg{n}", f"{path}.gate_proj.weight", f"{INTERMEDIATE}x{HIDDEN}", dtype),
        _linear(f"g{n}", f"%z{n}", f"%wg{n}", HIDDEN, INTERMEDIATE, f"{path}.gate_proj", dtype),
        weight(f"wu{n}", f"{path}.up_proj.weight", f"{INTERMEDIATE}x{HIDDEN}", dtype),
        _linear(f"u{n}", f"%z{n}", f"%wu{n}", HIDDEN, INTERMEDIATE, f"{path}.up_proj", dtype),
        f'%a{n} = "ts.gated_activation"(%g{n}, %u{n}) {{activation = "silu"}} : (tensor<?x{INTERMEDIATE}x{dtype}>, '
        f"tensor<?x{INTERMEDIATE}x{dtype}>) -> tensor<?x{INTERMEDIATE}x{dtype}>",
        weight(f"wd{n}", f"{path}.down_proj.weight", f"{HIDDEN}x{INTERMEDIATE}", dtype),
        _linear(f"d{n}", f"%a{n}", f"%wd{n}", INTERMEDIATE, HIDDEN, f"{path}.down_proj", dtype),
        f'%h{n + 1} = "ts.add"(%m{n}, %d{n}) : ({rows}, {rows}) -> {rows}',
    ]
