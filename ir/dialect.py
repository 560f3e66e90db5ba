"""The `ts` dialect: every operation with its fields and its verifier (the shape rule); those of several ranks are in
rank_operations.py.

Rows are the first dimension of activations. Operands that may be absent (a bias) are variadic with at most one value.
"""

from collections.abc import Sequence

from . import rank_operations as rank_operations  # they are of the dialect that is loaded
from .mlir import ext, ir
from .operations import Operand, Result, TsDialect, verify

RECURRENCE_OPERANDS, RECURRENT_STATES = 40, 8
"""The most operands and states that a recurrence may have."""


class Input(TsDialect.Operation, name="input", traits=[ext.Pure]):
    """A step input by its name in the step ABI."""

    verify_invariants = verify
    res: Result
    sym: ir.StringAttr


class Weight(TsDialect.Operation, name="weight", traits=[ext.Pure]):
    """A weight: model parameters (checkpoint path templates) joined along dimension 0, known to programs as `sym`. One of no
    parameters is the numbers from 0 to an attribute `count`.

    An attribute `arrangement`, where present, lists how each parameter is rearranged before (ir/arrangement.py).
    """

    verify_invariants = verify
    res: Result
    sym: ir.StringAttr
    parameters: ir.ArrayAttr


def numbers_weight(count: int, sym: str) -> ir.Value:
    """A weight of no parameters: the numbers from 0 to `count` - 1, in i32. Ranks that have a part know which part they have."""
    attributes = {"sym": ir.StringAttr.get(sym), "parameters": ir.ArrayAttr.get([])}
    attributes["count"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), count)
    kind = ir.RankedTensorType.get([count], ir.IntegerType.get_signless(32))
    return ir.Operation.create("ts.weight", results=[kind], attributes=attributes).results[0]


class Constant(TsDialect.Operation, name="constant", traits=[ext.Pure]):
    """A small array computed at compile time, by name."""

    verify_invariants = verify
    res: Result
    sym: ir.StringAttr


class Aten(TsDialect.Operation, name="aten", traits=[ext.Pure]):
    """Any ATen operation that was not raised. `arguments` is JSON: `args`, `kwargs`, and `result`, the number of the one result
    that is meant, where the operation has several. In arguments `{"operand": n}` stands for the n-th operand.

    As imported, operands and results are ATen's. On flat rows the operation has `layouts`, such as "bt.,-->b.t.": for each
    operand and for the result one letter for each ATen dimension, `b` the batch of one, `t` tokens, `.` any other, or `-` for a
    value without tokens. A value with tokens is [rows, ...]: tokens first, the batch dropped, the others in their order.
    `reason` says why no other operation was found.

    Operands of one variadic group must have one type (a limit of IRDL), so each operand has a group to itself.
    """

    verify_invariants = verify
    res: Result
    operand0: Sequence[Operand]
    operand1: Sequence[Operand]
    operand2: Sequence[Operand]
    operand3: Sequence[Operand]
    operand4: Sequence[Operand]
    operand5: Sequence[Operand]
    operand6: Sequence[Operand]
    rest: Sequence[Operand]
    target: ir.StringAttr
    arguments: ir.StringAttr


def aten(kind: ir.Type, operands: list[ir.Value], target: str, arguments: str) -> ir.Operation:
    """Build `ts.aten`; operands past the seventh must share one type."""
    groups = [[operand] for operand in operands[:7]] + [[]] * (7 - len(operands))
    op = Aten(kind, *groups, operands[7:], ir.StringAttr.get(target), ir.StringAttr.get(arguments))
    return op.operation


class Embedding(TsDialect.Operation, name="embedding", traits=[ext.Pure]):
    verify_invariants = verify
    res: Result
    ids: Operand
    table: Operand


class Linear(TsDialect.Operation, name="linear", traits=[ext.Pure]):
    """x[rows, k] times weight[n, k] transposed, plus bias[n] if there is one."""

    verify_invariants = verify
    res: Result
    x: Operand
    weight: Operand
    bias: Sequence[Operand]


class RmsNorm(TsDialect.Operation, name="rms_norm", traits=[ext.Pure]):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019), computed in float32."""

    verify_invariants = verify
    res: Result
    x: Operand
    weight: Operand
    eps: ir.FloatAttr
    cast_before_weight: ir.IntegerAttr
    one_plus_weight: ir.IntegerAttr


class AddRmsNorm(TsDialect.Operation, name="add_rms_norm", traits=[ext.Pure]):
    """sum = x + residual; normed = rms_norm(sum)."""

    verify_invariants = verify
    sum: Result
    normed: Result
    x: Operand
    residual: Operand
    weight: Operand
    eps: ir.FloatAttr
    cast_before_weight: ir.IntegerAttr
    one_plus_weight: ir.IntegerAttr


class LayerNorm(TsDialect.Operation, name="layer_norm", traits=[ext.Pure]):
    """Layer norm over the last dimension (Ba et al. 2016), in float32: (x - mean) / sqrt(variance + eps) * weight + bias."""

    verify_invariants = verify
    res: Result
    x: Operand
    weight: Operand
    bias: Sequence[Operand]
    eps: ir.FloatAttr


class RopeTable(TsDialect.Operation, name="rope_table", traits=[ext.Pure]):
    """cos and sin of position x frequency (Su et al. 2021), both halves alike, scaled by `scaling`."""

    verify_invariants = verify
    cos: Result
    sin: Result
    positions: Operand
    frequencies: Operand
    scaling: ir.FloatAttr


class Rope(TsDialect.Operation, name="rope", traits=[ext.Pure]):
    """Rotary embedding of the first columns of x[rows, heads, head_dim], as many as cos and sin have; the rest passes through.

    Turned are the pairs (j, j + columns / 2), or (2 j, 2 j + 1) where `interleaved`, by the angle of column j < columns / 2. The
    tables are of x's type, or float32: then products are not rounded.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    cos: Operand
    sin: Operand
    interleaved: ir.IntegerAttr


class Attention(TsDialect.Operation, name="attention"):
    """Stores k and v of these rows in layer `layer`'s KV cache, then causal attention of q over each row's own sequence.

    `window` limits how far back a row sees (0: no limit). Key/value heads are shared by groups of query heads. Scores are
    scale x q.k, then softcap x tanh(scores / softcap) (Gemma 2; 0: none), then masked. `sinks`[heads], if given, are logits that
    join the softmax's denominator and nothing else (gpt-oss; Xiao et al. 2023).
    """

    verify_invariants = verify
    res: Result
    q: Operand
    k: Operand
    v: Operand
    sinks: Sequence[Operand]
    layer: ir.StringAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr


class RopeKvWrite(TsDialect.Operation, name="rope_kv_write"):
    """Rotates q and k as `rope` does, stores k and v in the KV cache of `layer`, gives back q."""

    verify_invariants = verify
    res: Result
    q: Operand
    k: Operand
    v: Operand
    cos: Operand
    sin: Operand
    layer: ir.StringAttr
    interleaved: ir.IntegerAttr


class CachedAttention(TsDialect.Operation, name="cached_attention"):
    """Causal attention of q over the KV cache of `layer`, whose rows are already stored. Attributes and sinks of `attention`."""

    verify_invariants = verify
    res: Result
    q: Operand
    sinks: Sequence[Operand]
    layer: ir.StringAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    kv_heads: ir.IntegerAttr


class LatentAttention(TsDialect.Operation, name="latent_attention"):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) over each row's own sequence.

    Stores latent[rows, r] and the rotated key k_rope[rows, d] of these rows in the latent cache of `layer`. A head's keys are
    its first rows of kv_b[heads (n + v), r] times the latent, followed by k_rope; its values are its other rows times the latent.
    Scores are scale x (q_nope, q_rope).k, causal. The result is [rows, heads, v].
    """

    verify_invariants = verify
    res: Result
    q_nope: Operand
    q_rope: Operand
    latent: Operand
    k_rope: Operand
    kv_b: Operand
    layer: ir.StringAttr
    scale: ir.FloatAttr


def _groups(name: str, count: int) -> dict[str, object]:
    """Fields of operands that may each be absent and each have a type of their own."""
    return {f"{name}{at}": Sequence[Operand] for at in range(count)}


class Recurrence(TsDialect.Operation, name="recurrence"):
    """Carries states of fixed size along each sequence: its rows in order, each with the state that the row before left.

    The body is one step, over one row of each of several sequences: arguments are the operands (first `rows` values of rows, then
    what is the same for all rows) and the states [rows, ...]; it ends in `ts.step` with the result and the new states. States are
    kept by `layer` and by sequence; at position 0 they are zero.
    """

    verify_invariants = verify
    res: Result
    __annotations__ |= _groups("operand", RECURRENCE_OPERANDS)
    layer: ir.StringAttr
    rows: ir.IntegerAttr
    body: ext.Region


class Step(TsDialect.Operation, name="step", traits=[ir.IsTerminatorTrait]):
    """Ends a recurrence's body with the rows' result and their new states."""

    out: Operand
    __annotations__ |= _groups("state", RECURRENT_STATES)


def recurrence(kind: ir.Type, operands: list[ir.Value], rows: int, layer: str) -> ir.Operation:
    """Build `ts.recurrence`, its body still without a block."""
    groups = [[operand] for operand in operands] + [[]] * (RECURRENCE_OPERANDS - len(operands))
    i64 = ir.IntegerType.get_signless(64)
    return Recurrence(kind, *groups, ir.StringAttr.get(layer), ir.IntegerAttr.get(i64, rows)).operation


def step(out: ir.Value, states: list[ir.Value]) -> ir.Operation:
    """Build `ts.step`."""
    return Step(out, *[[state] for state in states], *[[]] * (RECURRENT_STATES - len(states))).operation


class GatedActivation(TsDialect.Operation, name="gated_activation", traits=[ext.Pure]):
    """activation(gate) * up."""

    verify_invariants = verify
    res: Result
    gate: Operand
    up: Operand
    activation: ir.StringAttr


class Activation(TsDialect.Operation, name="activation", traits=[ext.Pure]):
    """An activation without a gate, by its kind; "relu2" is the square of relu (So et al. 2021)."""

    verify_invariants = verify
    res: Result
    x: Operand
    kind: ir.StringAttr


class Scale(TsDialect.Operation, name="scale", traits=[ext.Pure]):
    """x times a number."""

    verify_invariants = verify
    res: Result
    x: Operand
    factor: ir.FloatAttr


class Softcap(TsDialect.Operation, name="softcap", traits=[ext.Pure]):
    """cap * tanh(x / cap) (Gemma 2)."""

    verify_invariants = verify
    res: Result
    x: Operand
    cap: ir.FloatAttr


class MoeRoute(TsDialect.Operation, name="moe_route", traits=[ext.Pure]):
    """The `top_k` experts of each row and their weights, from logits[rows, experts].

    `scoring`: "softmax" over all experts, "softmax_selected" over the selected ones' logits, "sigmoid". `bias`[experts], if
    given, is added for the selection only (DeepSeek-V3, arXiv:2412.19437). With `groups` > 1, only experts of the best
    `top_groups` groups are selected; a group is judged by the sum of its best `group_best` scores. Weights are then divided by
    their sum (`normalize`) and multiplied by `scale`.
    """

    verify_invariants = verify
    indices: Result
    weights: Result
    logits: Operand
    bias: Sequence[Operand]
    top_k: ir.IntegerAttr
    scoring: ir.StringAttr
    normalize: ir.IntegerAttr
    scale: ir.FloatAttr
    groups: ir.IntegerAttr
    top_groups: ir.IntegerAttr
    group_best: ir.IntegerAttr


class MoeExperts(TsDialect.Operation, name="moe_experts", traits=[ext.Pure]):
    """Sum over each row's experts of weight * (down @ (activation(gate) * up) + down_bias), gate and up being the first and the
    second half of gate_up @ x + gate_up_bias. Weights are gate_up[experts, 2 i, h], down[experts, h, i].

    `activation` is one of gated_activation's, or "swiglu_clamped" (gpt-oss): gate * sigmoid(alpha * gate) * (up + 1), gate
    clamped from above and up from both sides by `limit`; or "silu_clamped" (Hunyuan 4): silu(gate) * up, clamped likewise.
    `alpha` and `limit` are 0 where they are not named here.

    `numbers`[experts], where given, says which of the model's experts these are: consecutive ones, and zeros behind the last that
    there is. Others add nothing. An attribute `experts` then says how many the model has.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    indices: Operand
    weights: Operand
    gate_up: Operand
    down: Operand
    gate_up_bias: Sequence[Operand]
    down_bias: Sequence[Operand]
    numbers: Sequence[Operand]
    activation: ir.StringAttr
    alpha: ir.FloatAttr
    limit: ir.FloatAttr


class Cast(TsDialect.Operation, name="cast", traits=[ext.Pure]):
    """The same values in the result's element type."""

    verify_invariants = verify
    res: Result
    x: Operand


class Add(TsDialect.Operation, name="add", traits=[ext.Pure]):
    verify_invariants = verify
    res: Result
    a: Operand
    b: Operand


class Mul(TsDialect.Operation, name="mul", traits=[ext.Pure]):
    verify_invariants = verify
    res: Result
    a: Operand
    b: Operand


class Reshape(TsDialect.Operation, name="reshape", traits=[ext.Pure]):
    """Same elements, rows kept: [rows, heads * d] <-> [rows, heads, d]."""

    verify_invariants = verify
    res: Result
    x: Operand


class Slice(TsDialect.Operation, name="slice", traits=[ext.Pure]):
    """A window of the last dimension of x[rows, n] or x[rows, heads, n], from column `start` on."""

    verify_invariants = verify
    res: Result
    x: Operand
    start: ir.IntegerAttr


class GatherRows(TsDialect.Operation, name="gather_rows", traits=[ext.Pure]):
    """The rows of x that need logits."""

    verify_invariants = verify
    res: Result
    x: Operand
    rows: Operand


class Repeat(TsDialect.Operation, name="repeat"):
    """Runs its body for layer index i = first, first + stride, ... (`count` times); the arguments are carried along.

    One body per distinct layer kind keeps the program, and the work of every pass, independent of depth.
    """

    verify_invariants = verify
    res: Sequence[Result]
    args: Sequence[Operand]
    first: ir.IntegerAttr
    count: ir.IntegerAttr
    stride: ir.IntegerAttr
    body: ext.Region


class Yield(TsDialect.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends a repeat's body with the carried values."""

    args: Sequence[Operand]


def load() -> None:
    """Register the dialect in the current context."""
    TsDialect.load()
