"""Blocks of experts that are written anew for tracing compute what the model's own code computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.chunked_attention import require_one_chunk
from tokenspeed.compiler.frontends.complex_pairs import complex_as_pairs
from tokenspeed.compiler.frontends.looped_experts import replace_looped_experts
from tokenspeed.compiler.frontends.selected_keys import leave_out_selection
from tokenspeed.plans.errors import ModelError
from torch import Tensor, nn
from transformers import AriaTextConfig, DbrxConfig, JetMoeConfig, Llama4TextConfig, LongcatFlashConfig, NemotronHConfig
from transformers.models.aria.modeling_aria import AriaTextMoELayer
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoA, JetMoeMoE
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

HIDDEN, INNER, EXPERTS, CHOSEN = 12, 20, 6, 3


def _jetmoe() -> JetMoeConfig:
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_key_value_heads": 2, "kv_channels": 4}
    return JetMoeConfig(**sizes, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN)


def _block(name: str) -> Any:
    if name == "jetmoe":
        return JetMoeMoE(_jetmoe())
    if name == "aria":
        config: Any = AriaTextConfig(
            hidden_size=HIDDEN, intermediate_size=INNER, moe_num_experts=EXPERTS, moe_topk=CHOSEN, num_attention_heads=2
        )
        return AriaTextMoELayer(config)
    if name == "dbrx":
        experts: dict[str, Any] = {
            "ffn_hidden_size": INNER,
            "moe_num_experts": EXPERTS,
            "moe_top_k": CHOSEN,
            "hidden_size": HIDDEN,
        }
        return DbrxFFN(DbrxConfig(d_model=HIDDEN, ffn_config=experts))
    config = Llama4TextConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, num_attention_heads=2
    )
    return Llama4TextMoe(config)


def _filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _first(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", ["jetmoe", "aria", "dbrx", "llama4"])
def test_a_block_computes_what_it_did(name: str) -> None:
    block, x = _filled(_block(name)), torch.randn(1, 7, HIDDEN, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = _first(block(x))
        replace_looped_experts(block)
        found = _first(block(x))
    torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


def test_projections_chosen_like_experts() -> None:
    block: Any = _filled(JetMoeMoA(_jetmoe()))
    x = torch.randn(1, 7, HIDDEN, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        queries, _, chosen = block.map(x)
        wanted = block.reduce(queries, chosen)
        replace_looped_experts(block)
        again, _, chosen = block.map(x)
        found = block.reduce(again, chosen)
    torch.testing.assert_close(again, queries)
    torch.testing.assert_close(found, wanted)


def test_pairs_turn_like_complex_numbers() -> None:
    def turned(x: Tensor, angle: Tensor) -> Tensor:
        wave = torch.polar(torch.ones_like(angle), angle) * 0.5
        return torch.view_as_real(torch.view_as_complex(x) * wave.unsqueeze(0)[:, :, :].to(x.device))

    x, angle = torch.randn(2, 3, 4, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    wanted = turned(x, angle)
    with complex_as_pairs():
        found = turned(x, angle)
    torch.testing.assert_close(found, wanted)


def test_a_context_of_several_chunks_is_refused() -> None:
    config = SimpleNamespace(model_type="m", attention_chunk_size=64, layer_types=["chunked_attention"])
    require_one_chunk(config, 64)
    with pytest.raises(ModelError, match="within chunks"):
        require_one_chunk(config, 65)


def test_a_context_that_leaves_keys_out_is_refused() -> None:
    attention: Any = nn.Module()
    attention.indexer = nn.Module()
    vars(attention.indexer)["index_topk"] = 32
    leave_out_selection(attention, 32)
    with pytest.raises(ModelError, match="all are selected"):
        leave_out_selection(attention, 33)


def test_experts_without_a_gate() -> None:
    config = NemotronHConfig(hidden_size=HIDDEN, moe_intermediate_size=INNER, n_routed_experts=EXPERTS)
    module: Any = _filled(NemotronHExperts(config))
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(1))
    best, indices = torch.randn(7, EXPERTS, generator=torch.Generator().manual_seed(2)).topk(CHOSEN)
    with torch.no_grad():
        expected = module(x, indices, best)
        replace_looped_experts(module)
        torch.testing.assert_close(module(x, indices, best), expected, rtol=1e-5, atol=1e-5)


def test_experts_beside_identities_give_what_they_gave() -> None:
    config = LongcatFlashConfig(hidden_size=8, expert_ffn_hidden_size=6, n_routed_experts=4, zero_expert_num=2)
    module = LongcatFlashExperts(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, weights = torch.randn(5, 8), torch.rand(5, 3)
    indices = torch.stack([torch.randperm(6)[:3] for _ in range(5)])
    with torch.no_grad():
        wanted = module(x, indices, weights)
        replace_looped_experts(torch.nn.ModuleList([module]))
        torch.testing.assert_close(module(x, indices, weights), wanted, rtol=1e-5, atol=1e-5)
