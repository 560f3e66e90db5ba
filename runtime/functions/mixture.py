"""Mixture of experts: which experts each row goes to, and the experts themselves, rows grouped by expert."""

from __future__ import annotations

import torch
from torch.nn import functional

from .base import Launch, Operands

_SCORINGS = ("softmax", "softmax_selected", "sigmoid")
_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu_clamped", "silu_clamped")


def moe_route(operands: Operands) -> Launch:
    """(logits[R, E][, bias[E]]) -> indices[R, k] i32, weights[R, k] f32 or the logits' type.

    Scores, in f32: `scoring` "softmax" over all E, "sigmoid", or "softmax_selected" (softmax over the k best logits). The k
    best of scores + bias are selected; with `groups` > 1, of the best `top_groups` groups only, each judged by the sum of its
    best `group_best` (scores + bias). Weights are the scores without bias, divided by their sum (`normalize`), times `scale`. The
    order of the k is not defined.
    """
    (logits, *rest), (indices, weights) = operands.take(1, 2, optional=1)
    bias = rest[0] if rest else None
    operands.typed(torch.int32, indices)
    floats = {torch.float32, torch.bfloat16, torch.float16}
    operands.require(
        {logits.dtype, weights.dtype, *(item.dtype for item in rest)} <= floats, "logits, bias and weights of floats"
    )
    scoring = operands.choice("scoring", _SCORINGS)
    top_k, normalize, scale = operands.integer("top_k"), operands.flag("normalize", False), operands.number("scale", 1.0)
    groups, top_groups = operands.integer("groups", 1), operands.integer("top_groups", 1)
    group_best = operands.integer("group_best", 2)
    operands.require(logits.ndim == 2 and 1 <= top_k <= logits.shape[1], "logits[R, E] and 1 to E experts")
    rows, experts = logits.shape
    for out in (indices, weights):
        operands.shaped(out, rows, top_k)
    if bias is not None:
        operands.shaped(bias, experts)
    operands.require(scoring != "softmax_selected" or (bias is None and groups == 1), "no bias or groups for softmax_selected")
    operands.require(groups >= 1 and experts % groups == 0 and 1 <= top_groups <= groups, "groups that divide the experts")
    of_group = experts // groups
    enough = groups == 1 or (1 <= group_best <= of_group and top_k <= top_groups * of_group)
    operands.require(enough, "enough experts in the groups that are kept")

    def finish(found: torch.Tensor, chosen: torch.Tensor) -> None:
        if normalize:
            found = found / found.sum(-1, keepdim=True)
        weights.copy_(found.mul_(scale) if scale != 1.0 else found)
        indices.copy_(chosen)

    def run_selected() -> None:
        best, chosen = logits.float().topk(top_k, -1)
        finish(best.softmax(-1), chosen)

    def run() -> None:
        values = logits.float()
        scores = values.sigmoid() if scoring == "sigmoid" else values.softmax(-1)
        choice = scores if bias is None else scores + bias
        if groups > 1:
            grouped = choice.view(rows, groups, of_group)
            judged = grouped.topk(group_best, -1).values.sum(-1)
            kept = torch.zeros_like(judged, dtype=torch.bool).scatter_(1, judged.topk(top_groups, -1).indices, True)
            choice = grouped.masked_fill(~kept.unsqueeze(2), -torch.inf).view(rows, experts)
        chosen = choice.topk(top_k, -1).indices
        finish(scores.gather(1, chosen), chosen)

    return run_selected if scoring == "softmax_selected" else run


def moe_experts(operands: Operands) -> Launch:
    """(x[R, H], indices[R, k] i32, weights[R, k], gate_up[E, 2 I, H], down[E, H, I][, gate_up_bias[E, 2 I], down_bias[E, H]][,
    numbers[E] i32]) -> [R, H]: the sum over a row's experts of weight * (down @ (activation(gate) * up) + down_bias), where gate
    and up are the first and second I of gate_up @ x + gate_up_bias. Sums over experts are in f32.

    `activation` "silu", "gelu", "gelu_tanh", "swiglu_clamped": gate * sigmoid(alpha * gate) * (up + 1), gate clamped from
    above and up from both sides by `limit`, or "silu_clamped": silu(gate) * up, clamped likewise. Where there are `numbers`,
    these are the model's experts from the first of the numbers on, and others add nothing.
    """
    (x, indices, weights, gate_up, down, *biases), (out,) = operands.take(5, 1, optional=3)
    numbers = biases.pop() if len(biases) % 2 else None
    _check(operands, biases, numbers)
    before = 0 if numbers is None else int(numbers[0])
    activation = operands.choice("activation", _ACTIVATIONS)
    alpha, limit = operands.number("alpha", 0.0), operands.number("limit", 0.0)
    rows, top_k = indices.shape
    experts, hidden, inner = down.shape
    context = operands.context
    # an expert gets a row at most once, so at most `rows` rows at a time
    gathered = context.scratch("expert rows", x.dtype, rows * hidden).view(rows, hidden)
    columns = context.scratch("expert columns", x.dtype, rows * 2 * inner).view(rows, 2 * inner)
    made = context.scratch("expert results", x.dtype, rows * hidden).view(rows, hidden)
    total = out if out.dtype == torch.float32 else context.scratch("expert sums", torch.float32, out.numel()).view(out.shape)
    up_weights, down_weights = gate_up.transpose(1, 2), down.transpose(1, 2)
    flat, factors = indices.view(-1), weights.view(-1)

    def gated(count: int) -> torch.Tensor:
        gate, up = columns[:count, :inner], columns[:count, inner:]
        if activation == "silu_clamped":
            gate.clamp_(max=limit)
            up.clamp_(-limit, limit)
        if activation in {"silu", "silu_clamped"}:
            return functional.silu(gate, inplace=True).mul_(up)
        if activation == "swiglu_clamped":
            gate.clamp_(max=limit)
            up.clamp_(-limit, limit).add_(1)
            return gate.mul_(torch.sigmoid(gate * alpha)).mul_(up)
        return torch.ops.aten.gelu_(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)

    def expert(number: int, pairs: torch.Tensor) -> None:
        chosen, count = pairs // top_k, len(pairs)
        torch.index_select(x, 0, chosen, out=gathered[:count])
        torch.mm(gathered[:count], up_weights[number], out=columns[:count])
        if biases:
            columns[:count].add_(biases[0][number])
        result = torch.mm(gated(count), down_weights[number], out=made[:count])
        if biases:
            result.add_(biases[1][number])
        total.index_add_(0, chosen, result.float() * factors[pairs].float().unsqueeze(1))

    def run() -> None:
        total.zero_()
        order = torch.argsort(flat, stable=True)
        start = 0
        for number, count in enumerate(torch.bincount(flat, minlength=before + experts).tolist()):
            if count and 0 <= number - before < experts:
                expert(number - before, order[start : start + count])
            start += count
        if total is not out:
            out.copy_(total)

    return run


def _check(operands: Operands, biases: list[torch.Tensor], numbers: torch.Tensor | None) -> None:
    (x, indices, weights, gate_up, down), (out,) = operands.inputs[:5], operands.outputs
    operands.floating(x, gate_up, down, out, *biases)
    operands.typed(torch.int32, indices)
    operands.require(weights.dtype in {x.dtype, torch.float32}, "weights of x's type or f32")
    shaped = x.ndim == 2 and indices.ndim == 2 and indices.shape == weights.shape and len(indices) == len(x)
    operands.require(shaped and out.shape == x.shape, "x[R, H], indices and weights [R, k], and an output like x")
    experts = gate_up.ndim == down.ndim == 3 and down.shape[1] == x.shape[1]
    operands.require(experts, "gate_up[E, 2 I, H] and down[E, H, I]")
    operands.shaped(gate_up, down.shape[0], 2 * down.shape[2], x.shape[1])
    operands.require(len(biases) in (0, 2), "both biases or none")
    if biases:
        operands.shaped(biases[0], *gate_up.shape[:2])
        operands.shaped(biases[1], *down.shape[:2])
    if numbers is not None:
        operands.typed(torch.int32, numbers)
        operands.shaped(numbers, down.shape[0])
    operands.require(indices.is_contiguous() and weights.is_contiguous(), "dense indices and weights")
