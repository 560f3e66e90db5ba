"""Attention to distances, written as attention to positions."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.frontends.causality import NotCausal
from tokenspeed.compiler.frontends.relative_positions import replace_relative_attention
from tokenspeed.plans.errors import ModelError
from torch import Tensor
from transformers import XLNetConfig, XLNetLMHeadModel


def model(attn_type: str, clamp_len: int = -1) -> XLNetLMHeadModel:
    torch.manual_seed(2)
    config = XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=24, attn_type=attn_type, clamp_len=clamp_len)
    return XLNetLMHeadModel(config).eval()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, _layer: int) -> Tensor:
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return found.transpose(1, 2)


def test_logits_are_those_of_the_model() -> None:
    made, ids = model(attn_type="uni"), torch.randint(0, 50, (1, 11))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
        wanted = made(input_ids=ids).logits
        replace_relative_attention(made, attend)
        found = made(input_ids=ids, position_ids=torch.arange(11)[None]).logits
    assert (found - wanted).abs().max() < 1e-4


def test_a_model_of_both_directions_is_refused() -> None:
    with pytest.raises(NotCausal, match="not causal"):
        replace_relative_attention(model(attn_type="bi"), attend)


def test_distances_that_are_cut_off_are_refused() -> None:
    with pytest.raises(ModelError, match="cut off"):
        replace_relative_attention(model(attn_type="uni", clamp_len=4), attend)
