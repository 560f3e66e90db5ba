"""The one attention operation of traces, and the hook by which transformers' models call it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from ...plans.errors import ModelError
from .causality import NotCausal
from .key_biases import with_biases_of_keys

ATTENTION_NAME = "tokenspeed"
_NO_EFFECT = {"dropout", "position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}
_NO_EFFECT |= {"indices"}  # of selected keys: `selected_keys` has made sure that all are
"""Options of attention that change nothing here: positions come in through rope, dropout is off."""

_library = torch.library.Library("tokenspeed", "DEF")
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? sinks, float scale, int window, float softcap, int layer) -> Tensor"
)


@torch.library.register_fake("tokenspeed::attention")
def _attention_shape(q: torch.Tensor, _k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.impl("tokenspeed::attention", "CPU")
def _attention_of_one_sequence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    _layer: int,
) -> torch.Tensor:
    """Causal attention over one whole sequence, for the proof of raising. q, k, v: [1, heads, tokens, head_dim]."""
    tokens, groups = q.shape[2], q.shape[1] // k.shape[1]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    visible = (distance >= 0) & ((distance < window) if window else True)
    scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, tokens, 1)], -1)
    out = scores.softmax(-1)[..., :tokens] @ v.repeat_interleave(groups, 1)
    return out.transpose(1, 2).contiguous()


def attention_hook(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface as the operation, [1, tokens, heads, head_dim], and no weights.

    Raises NotCausal for attention that sees ahead, ModelError for an option that is not supported.
    """
    if options.pop("is_causal", None) is False or not getattr(module, "is_causal", True):
        raise NotCausal("attention that is not causal cannot be generated with", where=type(module).__name__)
    for name in sorted(options.keys() - _NO_EFFECT):
        if options[name] is not None:
            raise ModelError(f"attention uses {name}, which is not supported yet", where=type(module).__name__)
    if query.shape[1] % key.shape[1]:
        raise ModelError(
            "query heads cannot be shared out over the key/value heads",
            where="config.json, field num_key_value_heads",
            expected=f"a divisor of {query.shape[1]}",
            got=str(key.shape[1]),
            fix="correct config.json",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = getattr(module, "layer_idx", 0)
    window, cap = int(sliding_window or 0), float(softcap or 0.0)
    query, key, scale = with_biases_of_keys(module, query, key, attention_mask, float(scale))
    return torch.ops.tokenspeed.attention(query, key, value, s_aux, scale, window, cap, layer), None


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layer: int) -> torch.Tensor:
    """The operation on queries, keys and values, [1, heads, tokens, head_dim], without window, softcap or sinks."""
    return torch.ops.tokenspeed.attention(q, k, v, None, scale, 0, 0.0, layer)


AttentionInterface.register(ATTENTION_NAME, attention_hook)
