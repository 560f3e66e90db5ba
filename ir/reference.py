"""The meaning of every `ts` operation, in plain torch, and an interpreter over whole modules.

Slow and exact: it proves raising and fusion against the traced model, and makes the golden outputs of a plan in float64.
Rounding to the model's element type is left out on purpose when `dtype` is wider than the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from . import mixture
from . import module as modules
from .aten_reference import run_aten
from .latent import attend
from .mlir import ir
from .placements import GROUPS
from .recurrence import States, recur
from .rows import evaluate, rows_after
from .sharding import CHANGES
from .types import shape_of


class Weights(Protocol):
    """Where weights come from; `name` has its layer index filled in."""

    def full(self, name: str) -> Tensor: ...

    def linear(self, x: Tensor, name: str, index: int | None = None) -> Tensor:
        """x[rows, k] times the transposed weight, or entry `index` of its first dimension; may stream the weight."""
        ...

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows `index` of a two-dimensional weight."""
        ...

    def part(self, name: str, index: int) -> Tensor:
        """Entry `index` of the first dimension."""
        ...


@dataclass
class StepRows:
    """One step's flat rows: `sequences` gives each sequence's key and its row range; rows of one sequence are consecutive
    positions."""

    token_ids: Tensor
    positions: Tensor
    sequences: Sequence[tuple[int, int, int]]
    logit_rows: Tensor


Cache = dict[tuple[int, int], tuple[Tensor, Tensor]]


@dataclass
class Interpreter:
    """Runs a module's step function; keeps each sequence's keys, values and recurrent states between steps.

    `instantiate(template, index)` fills a layer index into a name. `truncate` runs every repeat once (its first index).
    """

    weights: Weights
    constants: dict[str, Tensor]
    instantiate: Callable[[str, int], str]
    dtype: torch.dtype
    truncate: bool = False
    cache: Cache = field(default_factory=dict)
    states: States = field(default_factory=dict)
    exchange: Callable[[str, Tensor], list[Tensor]] = lambda _axis, x: [x]
    """What the ranks along a mesh axis have, in order, this one among them; alone unless given (ir/spmd_reference.py)."""
    received: list[Tensor] = field(default_factory=list)
    """What the stage before this one sent and this one has still to receive, in order."""
    sent: list[Tensor] = field(default_factory=list)
    """What this stage of a pipeline sent, in order."""
    place: Mapping[str, int] = field(default_factory=dict)
    """This rank's coordinates."""
    counts: dict[ir.Value, str] = field(default_factory=dict)
    """How many rows values have (ir/rows.py)."""

    def step(self, module: ir.Module, rows: StepRows) -> Tensor:
        """Logits [logit rows, vocabulary] of one step; of a stage that is not the last, nothing: an empty tensor."""
        values: dict[ir.Value, Any] = {}
        self.counts = {}
        returned = self._block(modules.step_block(module), values, rows, 0)
        return returned[0] if returned else torch.empty(0)

    def _block(self, block: ir.Block, values: dict[ir.Value, Any], rows: StepRows, index: int) -> list[Tensor]:
        for view in block.operations:
            operation = view.operation
            if operation.name in {"ts.yield", "func.return"}:
                return [values[value] for value in operation.operands]
            results = self._operation(operation, values, rows, index)
            for result, value in zip(operation.results, results, strict=True):
                values[result] = value
                if result not in self.counts:
                    self.counts[result] = rows_after(operation, self.counts)
        return []

    def _operation(
        self, operation: ir.Operation, values: dict[ir.Value, Any], rows: StepRows, index: int
    ) -> Sequence[Tensor | str]:
        name = operation.name
        if name == "ts.repeat":
            return self._repeat(operation, values, rows)
        if name == "ts.input":
            return [getattr(rows, modules.text_attribute(operation, "sym"))]
        if name == "ts.constant":
            return [self.constants[modules.text_attribute(operation, "sym")]]
        if name == "ts.weight":
            return [self.instantiate(modules.text_attribute(operation, "sym"), index)]
        if name == "ts.receive":
            return [self.received.pop(0)]
        operands = [values[value] for value in operation.operands]
        if name == "ts.send":
            self.sent.append(operands[0])
            return []
        if name == "ts.linear":
            out = self.weights.linear(operands[0], operands[1])
            return [out + self.weights.full(operands[2]) if len(operands) > 2 else out]
        if name == "ts.embedding":
            return [self.weights.rows(operands[1], operands[0].long())]
        if name == "ts.moe_experts":
            numbered = mixture.numbers_of(operation) is not None
            first = int(self.weights.full(operands[-1])[0]) if numbered else None
            return [
                mixture.experts(
                    operation,
                    operands[:3],
                    lambda at, expert, x: self.weights.linear(x, operands[at], expert),
                    lambda at, expert: self.weights.part(operands[at], expert),
                    first,
                )
            ]
        operands = [self.weights.full(value) if isinstance(value, str) else value for value in operands]
        if name == "ts.recurrence":
            layer = int(self.instantiate(modules.text_attribute(operation, "layer"), index))
            return [recur(operation, operands, rows.sequences, rows.positions, self.states, layer, self.dtype)]
        if name in _STATEFUL:
            layer = int(self.instantiate(modules.text_attribute(operation, "layer"), index))
            return _STATEFUL[name](operation, operands, rows, self.cache, layer)
        if name in CHANGES:
            return [self._change(operation, operands, rows)]
        if name == "ts.aten":
            return [run_aten(operation, operands, self.dtype)]
        return REFERENCE[name](operation, operands, self.dtype)

    def _change(self, operation: ir.Operation, operands: Sequence[Tensor], rows: StepRows) -> Tensor:
        """Of a value's placement."""
        axis, x = modules.text_attribute(operation, "axis"), operands[0]
        if operation.name != "ts.take_part":
            parts = self.exchange(axis, x)
            if operation.name == "ts.all_gather":
                return self._gathered(operation, parts, rows)
            if operation.name == "ts.dispatch":
                others = ~_rows_for(operation, operands[1], self.place.get(axis, 0))
                return self._gathered(operation, parts, rows).masked_fill(others[:, None], torch.nan)
            if operation.name == "ts.combine":
                hit = [_rows_for(operation, operands[1], at)[:, None] for at in range(len(parts))]
                parts = [part.masked_fill(~own, 0) for part, own in zip(parts, hit, strict=True)]
            x = torch.stack(parts).sum(0)
        if operation.name == "ts.all_reduce":
            return x
        dimension, ranks = (modules.int_attribute(operation, name) for name in ("dimension", "ranks"))
        if axis == GROUPS and not dimension:
            count = evaluate(rows_after(operation, self.counts), len(rows.token_ids), len(rows.logit_rows))
            return x.narrow(0, self.place.get(axis, 0) * (len(x) // ranks), count)
        size = -(-x.shape[dimension] // ranks)
        missing = [0, 0] * (x.dim() - dimension - 1) + [0, size * ranks - x.shape[dimension]]
        return functional.pad(x, missing).narrow(dimension, self.place.get(axis, 0) * size, size)

    def _gathered(self, operation: ir.Operation, parts: list[Tensor], rows: StepRows) -> Tensor:
        dimension = modules.int_attribute(operation, "dimension")
        if modules.text_attribute(operation, "axis") == GROUPS and not dimension:
            return _even(parts)
        whole, count = torch.cat(parts, dimension), rows_after(operation, self.counts)
        return whole if dimension else whole[: evaluate(count, len(rows.token_ids), len(rows.logit_rows))]

    def _repeat(self, operation: ir.Operation, values: dict[ir.Value, Any], rows: StepRows) -> list[Tensor]:
        carried = [values[value] for value in operation.operands]
        first, stride = modules.int_attribute(operation, "first"), modules.int_attribute(operation, "stride")
        body = modules.body_of(operation)
        for group in (body.arguments, operation.results):
            self.counts |= {held: self.counts[given] for held, given in zip(group, operation.operands, strict=True)}
        for turn in range(1 if self.truncate else modules.int_attribute(operation, "count")):
            for argument, value in zip(body.arguments, carried, strict=True):
                values[argument] = value
            carried = self._block(body, values, rows, first + turn * stride)
        return carried


def _even(parts: Sequence[Tensor]) -> Tensor:
    """Rows of groups behind each other, filled up to the same number of each with what is not to matter."""
    longest = max(map(len, parts))
    return torch.cat([functional.pad(part, [0, 0] * (part.dim() - 1) + [0, longest - len(part)], value=1) for part in parts])


def _rows_for(operation: ir.Operation, indices: Tensor, place: int) -> Tensor:
    experts, ranks = (modules.int_attribute(operation, name) for name in ("experts", "ranks"))
    return mixture.rows_for(indices, experts, ranks, place)


def rms_norm(x: Tensor, weight: Tensor, eps: float, one_plus_weight: bool) -> Tensor:
    scale = weight + 1.0 if one_plus_weight else weight
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    return scaled if bias is None else scaled + bias


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary embedding of the first cos.shape[1] features of x[rows, heads, head_dim]: half-split pairs, or neighbours."""
    rotary, rest = x[..., : cos.shape[1]], x[..., cos.shape[1] :]
    if interleaved:
        # the pairs' first members, then their second ones: half-split order
        rotary = rotary.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    first, second = rotary.chunk(2, dim=-1)
    turned = rotary * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
    if interleaved:
        turned = turned.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float = 0.0, sinks: Tensor | None = None
) -> Tensor:
    """q[new, heads, d] are the last positions of k, v[context, kv_heads, d]; sinks[heads]. Parameters as of `ts.attention`."""
    new, context, groups = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(context - new, context)[:, None] - torch.arange(context)[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, new, 1)], dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :context], values)


def _norm_attributes(operation: ir.Operation) -> tuple[float, bool]:
    return modules.float_attribute(operation, "eps"), bool(modules.int_attribute(operation, "one_plus_weight"))


def _add_rms_norm(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    x, residual, weight = operands
    total = x + residual
    return [total, rms_norm(total, weight, *_norm_attributes(operation))]


def _rope_table(operation: ir.Operation, operands: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    positions, frequencies = operands
    angles = positions.to(dtype)[:, None] * frequencies.to(dtype)[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    scaling = modules.float_attribute(operation, "scaling")
    return [angles.cos() * scaling, angles.sin() * scaling]


def _interleaved(operation: ir.Operation) -> bool:
    return bool(modules.int_attribute(operation, "interleaved"))


def _gated_activation(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    gate, up = operands
    return [ACTIVATIONS[modules.text_attribute(operation, "activation")](gate) * up]


def _layer_norm(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    x, weight, *bias = operands
    return [layer_norm(x, weight, bias[0] if bias else None, modules.float_attribute(operation, "eps"))]


def _softcap(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    cap = modules.float_attribute(operation, "cap")
    return [cap * torch.tanh(operands[0] / cap)]


def _slice(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    start, width = modules.int_attribute(operation, "start"), shape_of(operation.results[0])[-1]
    return [operands[0][..., start : start + (width or 0)]]


def _reshape(operation: ir.Operation, operands: list[Tensor], _dtype: torch.dtype) -> list[Tensor]:
    return [operands[0].reshape(-1, *(size or 0 for size in shape_of(operation.results[0])[1:]))]


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    return x.split([-(-len(x) // 2), len(x) // 2])


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}

Reference = Callable[[ir.Operation, list[Tensor], torch.dtype], list[Tensor]]

REFERENCE: dict[str, Reference] = {
    "ts.rms_norm": lambda op, x, _: [rms_norm(x[0], x[1], *_norm_attributes(op))],
    "ts.add_rms_norm": _add_rms_norm,
    "ts.layer_norm": _layer_norm,
    "ts.rope_table": _rope_table,
    "ts.rope": lambda op, x, _: [rope(*x, interleaved=_interleaved(op))],
    "ts.gated_activation": _gated_activation,
    "ts.activation": lambda op, x, _: [ACTIVATIONS[modules.text_attribute(op, "kind")](x[0])],
    "ts.scale": lambda op, x, _: [x[0] * modules.float_attribute(op, "factor")],
    "ts.softcap": _softcap,
    "ts.moe_route": lambda op, x, _: mixture.route(op, x),
    "ts.cast": lambda _op, x, _: x,
    "ts.add": lambda _op, x, _: [x[0] + x[1]],
    "ts.mul": lambda _op, x, _: [x[0] * x[1]],
    "ts.reshape": _reshape,
    "ts.slice": _slice,
    "ts.take_rows": lambda op, x, _: [_halves(x[0])[modules.int_attribute(op, "half")]],
    "ts.join_rows": lambda _op, x, _: [torch.cat(x)],
    "ts.gather_rows": lambda _op, x, _: [x[0][x[1].long()]],
}


def _store(rows: StepRows, cache: Cache, layer: int, k: Tensor, v: Tensor) -> None:
    for key, start, stop in rows.sequences:
        new = k[start:stop], v[start:stop]
        old = cache.get((layer, key))
        cache[layer, key] = new if old is None else (torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]]))


def _attend(operation: ir.Operation, q: Tensor, sinks: list[Tensor], rows: StepRows, cache: Cache, layer: int) -> Tensor:
    scale, window = modules.float_attribute(operation, "scale"), modules.int_attribute(operation, "window")
    options = scale, window, modules.float_attribute(operation, "softcap"), sinks[0] if sinks else None
    return torch.cat([causal_attention(q[start:stop], *cache[layer, key], *options) for key, start, stop in rows.sequences])


def _attention(operation: ir.Operation, operands: list[Tensor], rows: StepRows, cache: Cache, layer: int) -> list[Tensor]:
    q, k, v, *sinks = operands
    _store(rows, cache, layer, k, v)
    return [_attend(operation, q, sinks, rows, cache, layer)]


def _rope_kv_write(operation: ir.Operation, operands: list[Tensor], rows: StepRows, cache: Cache, layer: int) -> list[Tensor]:
    q, k, v, cos, sin = operands
    _store(rows, cache, layer, rope(k, cos, sin, _interleaved(operation)), v)
    return [rope(q, cos, sin, _interleaved(operation))]


def _cached_attention(operation: ir.Operation, operands: list[Tensor], rows: StepRows, cache: Cache, layer: int) -> list[Tensor]:
    q, *sinks = operands
    return [_attend(operation, q, sinks, rows, cache, layer)]


def _latent_attention(operation: ir.Operation, operands: list[Tensor], rows: StepRows, cache: Cache, layer: int) -> list[Tensor]:
    q_nope, q_rope, latent, k_rope, kv_b = operands
    scale = modules.float_attribute(operation, "scale")
    _store(rows, cache, layer, latent, k_rope)
    return [
        torch.cat(
            [
                attend(
                    q_nope[start:stop],
                    q_rope[start:stop],
                    *cache[layer, key],
                    kv_b,
                    lambda q, k, v: causal_attention(q, k, v, scale, 0),
                )
                for key, start, stop in rows.sequences
            ]
        )
    ]


_STATEFUL: dict[str, Callable[[ir.Operation, list[Tensor], StepRows, Cache, int], list[Tensor]]] = {
    "ts.attention": _attention,
    "ts.rope_kv_write": _rope_kv_write,
    "ts.cached_attention": _cached_attention,
    "ts.latent_attention": _latent_attention,
}
