"""Rope that depends on the longest sequence is fixed at what transformers uses for sequences of the plan's context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.frozen_rope import freeze_rope
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from ...tiny_models import MORE_FAMILIES, ORIGINAL_MAXIMUM

LONGROPE = MORE_FAMILIES["phi3 longrope"]
DYNAMIC = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": ORIGINAL_MAXIMUM,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


class _Model(torch.nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        typed: Any = AutoConfig.for_model(**config)
        self.rotary = Phi3RotaryEmbedding(typed) if typed.model_type == "phi3" else LlamaRotaryEmbedding(typed)

    def tables(self, length: int) -> torch.Tensor:
        cos, sin = self.rotary(torch.zeros(1), torch.arange(length)[None])
        return torch.stack([cos, sin])


@pytest.mark.parametrize("config", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
@pytest.mark.parametrize("context", [ORIGINAL_MAXIMUM - 1, ORIGINAL_MAXIMUM, ORIGINAL_MAXIMUM + 1, 3 * ORIGINAL_MAXIMUM])
def test_frequencies_are_those_of_a_sequence_as_long_as_the_context(config: dict[str, Any], context: int) -> None:
    expected = _Model(config).tables(context)
    frozen = _Model(config)
    (name, frequencies), *others = freeze_rope(frozen, context).items()
    assert name == "rotary.inv_freq" and not others
    frozen.rotary.inv_freq.copy_(frequencies)
    torch.testing.assert_close(frozen.tables(context), expected)
    # and whatever the length of a sequence from then on
    torch.testing.assert_close(frozen.tables(9), expected[:, :, :9])


def test_other_rope_is_left_alone() -> None:
    model = _Model(DYNAMIC | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}})
    assert not freeze_rope(model, 100) and model.rotary.rope_type == "linear"
