"""Adapters for each language: those of one are called."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenspeed.compiler.frontends.language_adapters import choose_language_adapters
from transformers import XmodConfig
from transformers.models.xmod.modeling_xmod import XmodOutput


@pytest.mark.parametrize("before", [False, True], ids=["residual", "normed-residual"])
@pytest.mark.parametrize("norm", ["own", "reused", "none"])
def test_the_adapter_of_the_language_gives_what_the_module_gives(norm: str, before: bool) -> None:
    config = XmodConfig(
        hidden_size=8,
        intermediate_size=8,
        adapter_reduction_factor=2,
        languages=["a", "b"],
        adapter_layer_norm=norm == "own",
        adapter_reuse_layer_norm=norm == "reused",
        ln_before_adapter=before,
    )
    torch.manual_seed(1)
    module = XmodOutput(config).eval()
    x = torch.randn(1, 3, 8)
    chosen = copy.deepcopy(module)
    choose_language_adapters(chosen, "b")
    with torch.no_grad():
        wanted = module(x, x, torch.ones(1))
        assert torch.equal(chosen(x, x, torch.zeros(1)), wanted)
        choose_language_adapters(module, None)
        assert torch.equal(module(x, x, torch.ones(1)), wanted)
