"""Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): shape rules and meaning of `ts.moe_route` and `ts.moe_experts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import attributes
from .mlir import ir

SCORINGS = ("softmax", "softmax_selected", "sigmoid")
EXPERT_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu_clamped", "silu_clamped")

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Routing:
    """Attributes of `ts.moe_route`."""

    top_k: int
    scoring: str
    normalize: bool
    scale: float
    groups: int
    top_groups: int
    group_best: int


def routing_of(operation: ir.Operation) -> Routing:
    numbers = {name: attributes.int_attribute(operation, name) for name in ("top_k", "groups", "top_groups", "group_best")}
    return Routing(
        scoring=attributes.text_attribute(operation, "scoring"),
        normalize=bool(attributes.int_attribute(operation, "normalize")),
        scale=attributes.float_attribute(operation, "scale"),
        **numbers,
    )


def route_shapes(operands: list[Shape], results: list[Shape]) -> str | None:
    logits, *bias = operands
    if len(logits) != 2 or len(bias) > 1:
        return f"expects logits[rows, experts] and at most one bias, got {operands}"
    if bias and bias[0] != logits[1:]:
        return f"bias is {bias[0]}, expected ({logits[1]},)"
    indices, weights = results
    fits = len(indices) == 2 and indices == weights and indices[0] == logits[0]
    return None if fits else f"results are {results}, expected twice [rows, top_k] for logits {logits}"


def route_attributes(operation: ir.Operation) -> str | None:
    found = routing_of(operation)
    experts = _size(operation.operands[0], 1)
    if _size(operation.results[0], 1) != found.top_k or not 1 <= found.top_k <= experts:
        return f"top_k is {found.top_k}, of {experts} experts, for results of {_size(operation.results[0], 1)} columns"
    if found.scoring not in SCORINGS:
        return f"scoring is {found.scoring!r}, expected one of {', '.join(SCORINGS)}"
    if found.scoring == "softmax_selected" and (len(operation.operands) > 1 or found.groups > 1):
        return "softmax_selected takes neither bias nor groups"
    if found.groups < 1 or experts % found.groups or not 1 <= found.top_groups <= found.groups:
        return f"{found.top_groups} of {found.groups} groups of {experts} experts"
    of_group = experts // found.groups
    if not 1 <= found.group_best <= of_group or found.top_k > found.top_groups * of_group:
        return f"groups of {of_group} experts are judged by their best {found.group_best}; {found.top_k} experts are wanted"
    return None


def experts_shapes(operands: list[Shape], results: list[Shape]) -> str | None:
    x, indices, weights, gate_up, down, *rest = operands
    biases, numbers = rest[: len(rest) // 2 * 2], rest[len(rest) // 2 * 2 :]
    if [len(shape) for shape in (x, indices, gate_up, down)] != [2, 2, 3, 3] or indices != weights or len(biases) not in (0, 2):
        return (
            "expects x[rows, h], indices and weights [rows, k], gate_up[e, 2 i, h], down[e, h, i], no or two biases, "
            f"numbers or none: {operands}"
        )
    experts, hidden, inner = down
    if gate_up != (experts, 2 * (inner or 0), hidden) or x[1] != hidden or x[0] != indices[0]:
        return f"gate_up {gate_up}, down {down} and x {x} do not fit together"
    if biases and biases != [gate_up[:2], (experts, hidden)]:
        return f"biases are {biases}, expected {gate_up[:2]} and {(experts, hidden)}"
    if numbers and numbers[0] != (experts,):
        return f"numbers are {numbers[0]}, of {experts} experts"
    return None if results[0] == x else f"result is {results[0]}, expected {x}"


def experts_attributes(operation: ir.Operation) -> str | None:
    name = attributes.text_attribute(operation, "activation")
    if numbers_of(operation) is not None and "experts" not in operation.attributes:
        return "has numbers of experts, but not how many the model has"
    return None if name in EXPERT_ACTIVATIONS else f"activation is {name!r}, expected one of {', '.join(EXPERT_ACTIVATIONS)}"


def numbers_of(operation: ir.Operation) -> ir.Value | None:
    """The numbers of the experts that `ts.moe_experts` has, None where it has all of the model's."""
    operands = list(operation.operands)
    return operands[-1] if len(operands) % 2 == 0 else None


def all_experts(operation: ir.Operation) -> int:
    """How many experts the model has, of which the operation may have some."""
    held = _size(operation.operands[4], 0)
    return held if numbers_of(operation) is None else attributes.int_attribute(operation, "experts")


def rows_for(indices: Tensor, experts: int, ranks: int, place: int) -> Tensor:
    """Which rows go to experts of the rank at `place`, of `ranks` that share them out in order."""
    return (indices // -(-experts // ranks) == place).any(-1)


def _size(value: ir.Value, axis: int) -> int:
    kind = ir.RankedTensorType(value.type)
    return 0 if kind.is_dynamic_dim(axis) else kind.get_dim_size(axis)


def route(operation: ir.Operation, operands: Sequence[Tensor]) -> list[Tensor]:
    """(indices, weights) by the operation's attributes."""
    found = routing_of(operation)
    logits, *bias = operands
    if found.scoring == "softmax_selected":
        best, indices = logits.topk(found.top_k, -1)
        return [indices, _finished(best.softmax(-1), found)]
    scores = logits.sigmoid() if found.scoring == "sigmoid" else logits.softmax(-1)
    choice = scores + bias[0] if bias else scores
    if found.groups > 1:
        grouped = choice.unflatten(-1, (found.groups, -1))
        judged = grouped.topk(found.group_best, -1).values.sum(-1)
        kept = torch.zeros_like(judged).scatter(-1, judged.topk(found.top_groups, -1).indices, 1.0)
        choice = grouped.masked_fill(kept[..., None] == 0, -torch.inf).flatten(-2)
    indices = choice.topk(found.top_k, -1).indices
    return [indices, _finished(scores.gather(-1, indices), found)]


def _finished(weights: Tensor, routing: Routing) -> Tensor:
    if routing.normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * routing.scale


def experts(
    operation: ir.Operation,
    operands: Sequence[Tensor],
    linear: Callable[[int, int, Tensor], Tensor],
    bias: Callable[[int, int], Tensor],
    first: int | None = None,
) -> Tensor:
    """`operands` are x, indices, weights; `linear(operand, expert, x)` multiplies by one expert's part of a weight operand (3:
    gate_up, 4: down), `bias(operand, expert)` is its part of their biases (5 and 6). Only experts that are hit are asked for.
    `first` is the number of the first one, where there are others elsewhere.
    """
    x, indices, weights = operands
    biased = len(operation.operands) > 6
    out = torch.zeros_like(x)
    chosen = indices - (first or 0)
    for expert in chosen.unique().tolist():
        if first is not None and not 0 <= expert < _size(operation.operands[4], 0):
            continue
        rows, place = torch.where(chosen == expert)
        columns = linear(3, expert, x[rows])
        if biased:
            columns = columns + bias(5, expert)
        made = linear(4, expert, activated(operation, columns))
        if biased:
            made = made + bias(6, expert)
        out.index_add_(0, rows, made * weights[rows, place, None].to(x.dtype))
    return out


def activated(operation: ir.Operation, columns: Tensor) -> Tensor:
    """[rows, 2 i], gate columns first -> [rows, i]."""
    gate, up = columns.chunk(2, dim=-1)
    name = attributes.text_attribute(operation, "activation")
    if name == "silu":
        return functional.silu(gate) * up
    if name == "swiglu_clamped":
        alpha, limit = attributes.float_attribute(operation, "alpha"), attributes.float_attribute(operation, "limit")
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(alpha * gate)
    if name == "silu_clamped":
        limit = attributes.float_attribute(operation, "limit")
        return functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
    return functional.gelu(gate, approximate="tanh" if name == "gelu_tanh" else "none") * up
