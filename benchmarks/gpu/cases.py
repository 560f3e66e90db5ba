"""The operations of a Llama 3.1 8B step as cases: their text in the dialect, operands, reference in float64, and bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tokenspeed.plans.program import DType
from torch import Tensor

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, VOCABULARY = 4096, 14336, 32, 8, 128, 128256
BLOCK_TOKENS, MOST_ROWS, MOST_DECODING = 64, 8192, 64
BLOCKS_PER_SEQUENCE = 128
LAYERS = {"qkv": (6144, HIDDEN), "o": (HIDDEN, HIDDEN), "gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}


@dataclass(frozen=True)
class Case:
    """One operation in a step of `rows` rows and `logit_rows` logit rows.

    `types` and `line` are the dialect's text (inputs are %a0, %a1, ...). `operands` makes inputs and outputs as the operation's
    call has them (`places`: of a number there, the number here), on the default device; those numbered `cold` are read from
    memory, so that several copies take turns. Those numbered `stored` are weights in planes of a block type;
    `kv_dtype` is what keys and values are kept as, None: the attention's own.
    `reference` gives the outputs in float64; `rival` does the same with a library. `bytes` are moved at least, `operations` done.
    """

    name: str
    rows: int
    logit_rows: int
    types: Sequence[str]
    line: str
    operands: Callable[[], list[Tensor]]
    outputs: int
    cold: Sequence[int]
    reference: Callable[[list[Tensor]], list[Tensor]]
    rival: Callable[[list[Tensor]], object] | None
    bytes: float
    operations: float = 0.0
    places: Mapping[int, int] = field(default_factory=dict)
    stored: Mapping[int, str] = field(default_factory=dict)
    kv_dtype: DType | None = None

    def again(self, operands: list[Tensor]) -> list[Tensor]:
        """The operands of another turn: what is read from memory is a copy."""
        return [item.clone() if at in self.cold else item for at, item in enumerate(operands)]


@dataclass(frozen=True)
class Heads:
    """Of an attention, and the most tokens and sequences that its step is made for."""

    count: int
    kv: int
    blocks_per_sequence: int = BLOCKS_PER_SEQUENCE


LLAMA = Heads(HEADS, KV_HEADS)


def cases() -> Iterator[Case]:
    """All of them."""
    for rows in (1, 16, 64, 256, 2048):
        for name, (columns, inner) in LAYERS.items():
            yield linear_case(name, rows, columns, inner)
    for rows in (1, 16, 64, 2048):
        yield _gated_layer(rows)
    for rows in (1, 64):
        yield linear_case("lm_head", rows, VOCABULARY, HIDDEN)
    for rows in (1, 64, 2048):
        yield _norm(rows)
        yield _gated(rows)
    for sequences, context in ((1, 2048), (16, 4100), (64, 4100)):
        yield attention_case(f"decode {sequences} x {context}", [1] * sequences, context)
    for rows in (2048, 8192):
        yield attention_case(f"chunk {rows}", [rows], rows)


def _tensor(*sizes: int | str) -> str:
    return f"tensor<{'x'.join(map(str, sizes))}xbf16>"


def _normal(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def linear_case(name: str, rows: int, columns: int, inner: int) -> Case:
    """A layer with so many columns of output and of input."""
    types = (_tensor("?", inner), _tensor(columns, inner))
    segments = "operandSegmentSizes = array<i32: 1, 1, 0>"
    line = f'%r = "ts.linear"(%a0, %a1) {{{segments}}} : ({", ".join(types)}) -> {_tensor("?", columns)}'
    return Case(
        f"linear {name}, {rows} rows",
        rows,
        rows,
        types,
        line,
        lambda: [_normal(rows, inner), _normal(columns, inner, scale=0.02), torch.zeros(rows, columns).bfloat16()],
        1,
        (1,),
        lambda given: [given[0].double() @ given[1].double().T],
        lambda given: torch.mm(given[0], given[1].T, out=given[2]),
        2.0 * (columns * inner + rows * (columns + inner)),
        2.0 * rows * columns * inner,
    )


def _norm(rows: int) -> Case:
    x, weight = _tensor("?", HIDDEN), _tensor(HIDDEN)
    style = "cast_before_weight = true, eps = 1.0e-5 : f64, one_plus_weight = false"
    line = f'%r:2 = "ts.add_rms_norm"(%a0, %a1, %a2) {{{style}}} : ({x}, {x}, {weight}) -> ({x}, {x})'

    def reference(given: list[Tensor]) -> list[Tensor]:
        total = (given[0].double() + given[1].double()).bfloat16().double()
        return [total, total * (total.square().mean(1, keepdim=True) + 1e-5).rsqrt() * given[2].double()]

    def rival(given: list[Tensor]) -> object:
        torch.add(given[0], given[1], out=given[3])
        return torch.nn.functional.rms_norm(given[3], (HIDDEN,), given[2], 1e-5)

    def operands() -> list[Tensor]:
        return [_normal(rows, HIDDEN), _normal(rows, HIDDEN), _normal(HIDDEN), *(_normal(rows, HIDDEN) for _ in range(2))]

    name = f"add_rms_norm, {rows} rows"
    return Case(name, rows, rows, (x, x, weight), line, operands, 2, (0, 1), reference, rival, 2.0 * 4 * rows * HIDDEN)


def _gated(rows: int) -> Case:
    x = _tensor("?", INNER)
    line = f'%r = "ts.gated_activation"(%a0, %a1) {{activation = "silu"}} : ({x}, {x}) -> {x}'

    def reference(given: list[Tensor]) -> list[Tensor]:
        return [torch.nn.functional.silu(given[0].double()).bfloat16().double() * given[1].double()]

    def rival(given: list[Tensor]) -> object:
        return torch.mul(torch.nn.functional.silu(given[0]), given[1], out=given[2])

    def operands() -> list[Tensor]:
        return [_normal(rows, INNER) for _ in range(3)]

    name = f"gated_activation, {rows} rows"
    return Case(name, rows, rows, (x, x), line, operands, 1, (0, 1), reference, rival, 2.0 * 3 * rows * INNER)


def _gated_layer(rows: int) -> Case:
    """Gate, up and their activation."""
    x, weight, both, half = _tensor("?", HIDDEN), _tensor(2 * INNER, HIDDEN), _tensor("?", 2 * INNER), _tensor("?", INNER)
    lines = [
        f'%l = "ts.linear"(%a0, %a1) {{operandSegmentSizes = array<i32: 1, 1, 0>}} : ({x}, {weight}) -> {both}',
        *(f'%{name} = "ts.slice"(%l) {{start = {at} : i64}} : ({both}) -> {half}' for name, at in (("g", 0), ("u", INNER))),
        f'%r = "ts.gated_activation"(%g, %u) {{activation = "silu"}} : ({half}, {half}) -> {half}',
    ]

    def reference(given: list[Tensor]) -> list[Tensor]:
        gate, up = (given[0].double() @ given[1].double().T).bfloat16().double().chunk(2, 1)
        return [torch.nn.functional.silu(gate).bfloat16().double() * up]

    def rival(given: list[Tensor]) -> object:
        gate, up = torch.mm(given[0], given[1].T).chunk(2, 1)
        return torch.mul(torch.nn.functional.silu(gate), up, out=given[2])

    def operands() -> list[Tensor]:
        return [_normal(rows, HIDDEN), _normal(2 * INNER, HIDDEN, scale=0.02), torch.zeros(rows, INNER).bfloat16()]

    moved, operations = 2.0 * (2 * INNER * HIDDEN + rows * (HIDDEN + INNER)), 4.0 * rows * INNER * HIDDEN
    places = {3: 0, 4: 1}
    name = f"linear gate_up with activation, {rows} rows"
    return Case(name, rows, rows, (x, weight), "\n".join(lines), operands, 1, (1,), reference, rival, moved, operations, places)


def attention_case(name: str, rows_of: list[int], context: int, heads: Heads = LLAMA) -> Case:
    """Sequences with so many rows each, all of `context` tokens."""
    rows, sequences, blocks = sum(rows_of), len(rows_of), -(-context // BLOCK_TOKENS)
    q = _tensor("?", heads.count, WIDTH)
    scores = f"scale = {WIDTH**-0.5} : f64, softcap = 0.0 : f64, window = 0 : i64, operandSegmentSizes = array<i32: 1, 0>"
    line = f'%r = "ts.cached_attention"(%a0) {{kv_heads = {heads.kv} : i64, layer = "0", {scores}}} : ({q}) -> {q}'
    decoding = rows == sequences

    def operands() -> list[Tensor]:
        caches = [_normal(sequences * blocks + 1, heads.kv, BLOCK_TOKENS, WIDTH) for _ in range(2)]
        tables = torch.zeros(MOST_DECODING, heads.blocks_per_sequence, dtype=torch.int32)
        tables[:sequences, :blocks] = torch.randperm(sequences * blocks).view(sequences, blocks) + 1
        starts, lengths = torch.zeros(MOST_DECODING + 1, dtype=torch.int32), torch.zeros(MOST_DECODING, dtype=torch.int32)
        starts[1 : sequences + 1] = torch.tensor(rows_of).cumsum(0)
        lengths[:sequences] = context
        counts = torch.tensor([rows, sequences if decoding else 0, sequences, sequences], dtype=torch.int32)
        return [_normal(rows, heads.count, WIDTH), *caches, starts, lengths, tables, counts, _normal(rows, heads.count, WIDTH)]

    def dense(given: list[Tensor], sequence: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence, [heads.kv, context, WIDTH]."""
        at = given[5][sequence, :blocks].long()
        keys, values = (cache[at].transpose(0, 1).flatten(1, 2)[:, :context] for cache in given[1:3])
        return keys, values

    def reference(given: list[Tensor]) -> list[Tensor]:
        made = torch.full((rows, heads.count, WIDTH), torch.nan, dtype=torch.float64)
        for sequence in range(sequences):
            keys, values = (item.double() for item in dense(given, sequence))
            # of a chunk some rows stand for all
            chosen = [sequence] if decoding else [0, 1, rows // 3, rows - 1]
            for row in chosen:
                seen = context if decoding else row + 1
                query = given[0][row].double().view(heads.kv, heads.count // heads.kv, WIDTH)
                weights = (query @ keys[:, :seen].transpose(1, 2) * WIDTH**-0.5).softmax(-1)
                made[row] = (weights @ values[:, :seen]).flatten(0, 1)
        return [made]

    kept: list[tuple[Tensor, Tensor]] = []

    def rival(given: list[Tensor]) -> object:
        """torch's own attention over keys that lie side by side already."""
        if not kept:
            kept.append(dense(given, 0))
        keys, values = (item.repeat_interleave(heads.count // heads.kv, 0)[None] for item in kept[0])
        queries = given[0].transpose(0, 1)[None]
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    pairs = sequences * context if decoding else rows * (rows + 1) / 2
    moved = 2.0 * (2 * sequences * context * heads.kv * WIDTH + 2 * rows * heads.count * WIDTH)
    alike = None if decoding else rival
    logit_rows = rows if decoding else sequences
    operations = 4.0 * pairs * heads.count * WIDTH
    return Case(f"attention, {name}", rows, logit_rows, (q,), line, operands, 1, (1, 2), reference, alike, moved, operations)
