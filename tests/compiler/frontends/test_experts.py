"""What experts compute between their projections is found out from the modules themselves."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.frontends.experts import Gate, gated, recognise_experts
from transformers import GptOssConfig, HYV4Config, Qwen3MoeConfig
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.hy_v4.modeling_hy_v4 import HYV4Experts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts


def recognised(module: torch.nn.Module) -> Gate | None:
    recognise_experts(torch.nn.ModuleList([module]))
    return getattr(module, "tokenspeed_gate", None)


@pytest.mark.parametrize(("act", "name"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")])
def test_usual_experts(act: str, name: str) -> None:
    with torch.device("meta"):
        module = Qwen3MoeExperts(Qwen3MoeConfig(hidden_act=act))
    assert recognised(module) == Gate(name, interleaved=False)


def test_clamped_and_interleaved_experts() -> None:
    with torch.device("meta"):
        module = GptOssExperts(GptOssConfig())
    assert recognised(module) == Gate("swiglu_clamped", True, alpha=1.702, limit=7.0)
    module.alpha, module.limit = 1.5, 3.0
    assert recognised(module) == Gate("swiglu_clamped", True, alpha=1.5, limit=3.0)


def test_experts_clamped_before_a_plain_silu() -> None:
    with torch.device("meta"):
        module = HYV4Experts(HYV4Config(swiglu_limit=10.0))
    assert recognised(module) == Gate("silu_clamped", interleaved=False, limit=10.0)


@use_experts_implementation
class _Unknown(torch.nn.Module):
    def __init__(self, _config: object) -> None:
        super().__init__()

    def _apply_gate(self, columns: torch.Tensor) -> torch.Tensor:
        gate, up = columns.chunk(2, dim=-1)
        return torch.relu(gate) * up


def test_what_no_gate_computes_is_not_guessed() -> None:
    assert recognised(_Unknown(None)) is None


def test_gates_that_differ_past_the_clamp_only_are_told_apart() -> None:
    columns = torch.linspace(-12, 12, 40).view(2, 20)
    wide, narrow = (gated(columns, Gate("swiglu_clamped", False, 1.702, limit)) for limit in (11.0, 7.0))
    assert not torch.allclose(wide, narrow)
