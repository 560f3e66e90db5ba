"""Families of which parts stay ATen and run through torch, row by row: their plans give transformers' logits all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .test_families import ALL_KINDS, check, compiled
from .test_families import quick as quick
from .tiny_models import build, save

_TOKENS: dict[str, Any] = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_HEADS: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 96}
_SIZES: dict[str, Any] = {**_TOKENS, **_HEADS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FALLBACKS: dict[str, dict[str, Any]] = {
    "gptj": {
        **_TOKENS,
        **_HEADS,
        "model_type": "gptj",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "rotary_dim": 8,
    },
    "bert": {**_SIZES, "model_type": "bert", "is_decoder": True, "max_position_embeddings": 256},
    "bloom": {**_TOKENS, "model_type": "bloom", "hidden_size": 96, "n_layer": 2, "n_head": 6},
    "biogpt": {**_SIZES, "model_type": "biogpt", "max_position_embeddings": 256},
    "diffllama": {
        **_SIZES,
        "model_type": "diffllama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "hrm": {
        **_SIZES,
        "model_type": "hrm_text",
        "head_dim": 16,
        "num_hidden_layers": 4,
        "num_layers_per_stack": 1,
        "H_cycles": 2,
        "L_cycles": 1,
        "max_position_embeddings": 256,
    },
}
"""One that writes its attention out, an encoder used as a decoder, one with alibi, one with positions counted behind an offset,
one with two attentions in each layer, one whose layers are run several times. All but the one with alibi are of the sizes of
their miniatures, so that they are traced once."""


@pytest.mark.parametrize("name", FALLBACKS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = build(FALLBACKS[name])
    directory = save(model, tmp_path / "model")
    found = compiled(directory, directory, model)
    assert "ts.aten" in str(found.state.module)
    check(found, ALL_KINDS)
