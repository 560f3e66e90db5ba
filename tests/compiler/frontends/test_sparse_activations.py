"""Sparse activations whose cut-off is a number give what the model's own code gives."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.sparse_activations import fix_sparsity
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP


def test_the_cut_off_is_the_models_own() -> None:
    config = Gemma3nTextConfig(
        hidden_size=8, intermediate_size=64, num_hidden_layers=2, num_kv_shared_layers=0, activation_sparsity_pattern=[0.9, 0.0]
    )
    sparse, dense = (Gemma3nTextMLP(config, layer) for layer in range(2))
    x = torch.randn(3, 64)
    wanted = sparse._gaussian_topk(x)
    fix_sparsity(torch.nn.ModuleList([sparse, dense]))
    torch.testing.assert_close(sparse._gaussian_topk(x), wanted)
    assert "_gaussian_topk" not in vars(dense)
