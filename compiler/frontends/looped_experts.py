"""Experts that a model runs one after the other, on the rows that chose each: the same, written without looking at the choice.

Which rows an expert gets depends on the data, which cannot be traced. Blocks are recognised by what they hold. Where their
experts are two stacked projections they call `tokenspeed::experts`; elsewhere all experts are computed for each row and the
chosen ones kept: slower, and right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .experts import call_experts, known_gate


def replace_looped_experts(model: nn.Module) -> None:
    """Give every such block of the model a forward pass that can be traced."""
    for module in list(model.modules()):
        for holds, replace in _BLOCKS:
            if all(hasattr(module, name) for name in holds):
                replace(module)
                break


def _set(module: nn.Module, name: str, method: Callable[..., Any]) -> None:
    vars(module)[name] = method


def _chosen(router: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and gates [rows, chosen] of a router that takes the softmax of the best logits."""
    best, indices = router.layer(x).float().topk(router.top_k, dim=1)
    return indices, torch.softmax(best, dim=1).type_as(x)


def _replace_parallel_block(module: Any) -> None:
    """Feed-forward experts of [experts, out, in] projections that are given rows in the order of their experts (JetMoE)."""

    def apply(columns: Tensor) -> Tensor:
        return module.activation(columns.chunk(2, -1)[0]) * columns.chunk(2, -1)[1]

    gate = known_gate(module, apply)

    def forward(layer_input: Tensor) -> Tensor:
        x = layer_input.reshape(-1, layer_input.shape[-1])
        indices, gates = _chosen(module.router, x)
        found = call_experts(gate, x, indices, gates, module.input_linear.weight, module.output_linear.weight, transposed=False)
        return found.view(layer_input.shape) + module.bias

    _set(module, "forward", forward)


def _replace_attention_experts(module: Any) -> None:
    """Query and output projections that are chosen like experts (JetMoE): all are computed, the chosen ones kept."""

    def project(layer_input: Tensor) -> tuple[Tensor, None, tuple[Tensor, Tensor]]:
        batch, length, width = layer_input.shape
        x = layer_input.reshape(-1, width)
        indices, gates = _chosen(module.router, x)
        weight = module.input_linear.weight
        every = functional.linear(x, weight.reshape(-1, width)).view(-1, weight.shape[0], weight.shape[1])
        kept = every.gather(1, indices[:, :, None].expand(-1, -1, weight.shape[1]))
        return kept.view(batch, length, module.top_k, -1), None, (indices, gates)

    def reduce(layer_input: Tensor, chosen: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, count, width = layer_input.shape
        indices, gates = chosen
        weight = module.output_linear.weight
        x = layer_input.reshape(-1, count, width)
        every = functional.linear(x, weight.reshape(-1, width)).view(-1, count, weight.shape[0], weight.shape[1])
        kept = every.gather(2, indices[:, :, None, None].expand(-1, -1, 1, weight.shape[1])).squeeze(2)
        return (kept * gates[:, :, None]).sum(1).view(batch, length, -1) + module.bias

    _set(module, "map", project)
    _set(module, "reduce", reduce)


def _replace_grouped_experts(module: Any) -> None:
    """Experts of [experts, in, out] projections that are given rows in the order of their experts (Aria)."""

    def apply(columns: Tensor) -> Tensor:
        return functional.silu(columns.chunk(2, -1)[0]) * columns.chunk(2, -1)[1]

    gate = known_gate(module, apply)

    def forward(hidden_states: Tensor, router_logits: Tensor) -> Tensor:
        indices, weights = module.route_tokens_to_experts(router_logits)
        return call_experts(gate, hidden_states, indices, weights, module.fc1.weight, module.fc2.weight, transposed=True)

    _set(module, "forward", forward)


def _replace_flat_experts(module: Any) -> None:
    """Experts whose projections are [experts * inner, hidden] (DBRX): one that was not chosen has the weight zero."""
    experts, inner = module.num_experts, module.ffn_hidden_size

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, module.hidden_size)
        none = torch.zeros(x.shape[0], experts, dtype=x.dtype, device=x.device)
        weights = none.scatter(1, top_k_index, top_k_weights.to(x.dtype))
        made = module.mlp.activation_fn(functional.linear(x, module.mlp.w1)) * functional.linear(x, module.mlp.v1)
        weighted = made.view(-1, experts, inner) * weights[:, :, None]
        return (weighted.view(-1, experts * inner) @ module.mlp.w2).view(hidden_states.shape)

    _set(module, "forward", forward)


def _replace_scaled_inputs(module: Any) -> None:
    """Experts that are given the row times its score, zero where it did not choose them (Llama 4)."""

    def forward(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states.reshape(-1, module.hidden_dim)
        scores, logits = module.router(x)
        experts = module.experts
        gate, up = torch.bmm(x[None] * scores.transpose(0, 1)[:, :, None], experts.gate_up_proj).chunk(2, dim=-1)
        routed = torch.bmm(up * experts.act_fn(gate), experts.down_proj)
        return module.shared_expert(x) + routed.sum(0), logits

    _set(module, "forward", forward)


def _replace_ungated_experts(module: Any) -> None:
    """Experts of two projections with an activation alone between them (Nemotron-H): one not chosen has the weight zero.

    up_proj: [experts, inner, hidden]; down_proj: [experts, hidden, inner].
    """
    experts, inner, hidden = module.up_proj.shape

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        none = torch.zeros(hidden_states.shape[0], experts, dtype=top_k_weights.dtype, device=hidden_states.device)
        weights = none.scatter(1, top_k_index, top_k_weights)
        made = module.act_fn(functional.linear(hidden_states, module.up_proj.reshape(experts * inner, hidden)))
        weighted = made.view(-1, experts, inner) * weights[:, :, None]
        down = module.down_proj.transpose(1, 2).reshape(experts * inner, hidden)
        return (weighted.view(-1, experts * inner).to(hidden_states.dtype) @ down).view(hidden_states.shape)

    _set(module, "forward", forward)


def _replace_experts_beside_identities(module: Any) -> None:
    """Experts of which the last ones hand the row on as it is (LongCat Flash): one that was not chosen has the weight zero.

    gate_up_proj: [experts and identities, 2 inner, hidden]; down_proj: [experts, hidden, inner].
    """
    experts, hidden, inner = module.down_proj.shape

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        none = torch.zeros(hidden_states.shape[0], module.total_experts, dtype=top_k_weights.dtype, device=hidden_states.device)
        weights = none.scatter(1, top_k_index, top_k_weights)
        columns = functional.linear(hidden_states, module.gate_up_proj[:experts].reshape(experts * 2 * inner, hidden))
        gate, up = columns.view(-1, experts, 2 * inner).chunk(2, dim=-1)
        weighted = (module.act_fn(gate) * up * weights[:, :experts, None]).view(-1, experts * inner)
        made = weighted.to(hidden_states.dtype) @ module.down_proj.transpose(1, 2).reshape(experts * inner, hidden)
        return made + (hidden_states * weights[:, experts:].sum(-1, keepdim=True)).to(hidden_states.dtype)

    _set(module, "forward", forward)


_BLOCKS: tuple[tuple[tuple[str, ...], Callable[[Any], None]], ...] = (
    (("input_linear", "output_linear", "router", "bias", "map", "reduce"), _replace_attention_experts),
    (("input_linear", "output_linear", "router", "bias", "activation"), _replace_parallel_block),
    (("up_proj", "down_proj", "act_fn", "num_experts"), _replace_ungated_experts),
    (("gate_up_proj", "down_proj", "identity_expert", "total_experts"), _replace_experts_beside_identities),
    (("fc1", "fc2", "route_tokens_to_experts"), _replace_grouped_experts),
    (("mlp", "ffn_hidden_size", "num_experts"), _replace_flat_experts),
    (("router", "experts", "shared_expert", "hidden_dim", "top_k"), _replace_scaled_inputs),
)
"""What a block holds, and what its forward pass is replaced with."""
