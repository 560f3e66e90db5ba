"""Attention to the distance of keys (XLNet, Transformer-XL), as attention of wider heads to keys that know their position.

A score has a part for the content of a key and one for its distance: a product of the query with weights times the sines and
cosines of the distance. These are sums of products of sines and cosines of the two positions, so that what belongs to the
query's position can go into the query, and what belongs to the key's into the key. Heads become as wide as the model and a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.xlnet.modeling_xlnet import XLNetModelOutput

from ...plans.errors import ModelError
from .causality import NotCausal

Attend = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
"""Causal attention of queries, keys and values [1, heads, tokens, ...], by scale and layer: [1, tokens, heads, values' width]."""


def replace_relative_attention(model: nn.Module, attend: Attend) -> None:
    """Give models with such attention a forward pass of one causal stream, `attend` for the attention in it.

    Raises NotCausal for a configuration that sees both directions, ModelError for one whose distances are not the plain ones.
    """
    for module in model.modules():
        if hasattr(module, "relative_positional_encoding") and hasattr(module, "word_embedding"):
            _replace_model(module, attend)


def _replace_model(model: Any, attend: Attend) -> None:
    if model.attn_type != "uni":
        raise NotCausal(
            "attention that is not causal cannot be generated with",
            where="config.json, field attn_type",
            expected="uni",
            got=str(model.attn_type),
            fix="choose a model that was trained from left to right",
        )
    if model.clamp_len > 0 or model.bi_data or model.same_length:
        raise ModelError(
            "distances of tokens that are cut off, or that go both ways, are not supported",
            where="config.json, fields clamp_len, bi_data and same_length",
            expected="-1, false and false",
            got=f"{model.clamp_len}, {model.bi_data} and {model.same_length}",
        )

    def forward(input_ids: Tensor, position_ids: Tensor, **_: object) -> XLNetModelOutput:
        hidden = model.word_embedding(input_ids)
        turns = _turns(position_ids, model.d_model).to(hidden.dtype)
        for layer in model.layer:
            hidden = layer(hidden, None, None, None, turns, None)[0]
        return XLNetModelOutput(last_hidden_state=hidden)  # pyright: ignore[reportArgumentType]

    vars(model)["forward"] = forward
    for number, layer in enumerate(model.layer):
        _replace_attention(layer.rel_attn, attend, number)


def _turns(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, [1, 1, tokens, width], of positions [1, tokens] turned by each frequency."""
    frequencies = 1 / torch.pow(10000, torch.arange(0, width, 2.0, device=positions.device) / width)
    angles = positions.float()[:, None, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def _replace_attention(module: Any, attend: Attend, number: int) -> None:
    heads, width = module.n_head, module.d_head

    def projected(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight.reshape(weight.shape[0], heads * width)).view(1, -1, heads, width)

    def forward(h: Tensor, _g: object, _mask: object, _mask_g: object, turns: Tensor, *_: object, **_named: object) -> Any:
        q, k, v = (projected(h, weight) for weight in (module.q, module.k, module.v))
        # [heads, tokens, head] x [heads, head, model]: what the query makes of each sine and cosine of a distance
        made = (q + module.r_r_bias).transpose(1, 2) @ module.r.permute(1, 2, 0)
        of_sine, of_cosine = made.chunk(2, -1)
        sine, cosine = turns.chunk(2, -1)
        for_cosine, for_sine = of_sine * sine + of_cosine * cosine, of_cosine * sine - of_sine * cosine
        query = torch.cat([(q + module.r_w_bias).transpose(1, 2), for_cosine, for_sine], -1)
        place = torch.cat([cosine, sine], -1).expand(1, heads, -1, -1)
        found = attend(query, torch.cat([k.transpose(1, 2), place], -1), v.transpose(1, 2), module.scale, number)
        out = found.reshape(1, -1, heads * width) @ module.o.reshape(-1, heads * width).T
        return module.layer_norm(out + h), None

    vars(module)["forward"] = forward
