"""Tracing: layer kinds, constants and ties of real transformers models, and one clear error for what cannot be traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends import trace as tracing
from tokenspeed.compiler.frontends.attention_operation import attention_hook
from tokenspeed.compiler.frontends.causality import NotCausal
from tokenspeed.compiler.frontends.trace import TracedModel
from tokenspeed.plans.errors import ModelError

from ...tiny_models import FAMILIES, build, family_config, traced

LLAMA = FAMILIES["llama"]


def kinds(config: dict[str, Any]) -> tuple[int, ...]:
    """Kinds without the export, which is what takes time."""
    with tracing.quiet():
        model = tracing._build(config, "f32")
        _, found, _ = tracing._keep_one_layer_per_kind(model, model.config, every_layer=False)
    return found


def qwen2(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in FAMILIES["qwen2"].items() if name != "layer_types"} | changes


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA | {"num_hidden_layers": 40}, (0,) * 40),
        (FAMILIES["mistral"], (0, 0, 0)),
        (FAMILIES["qwen2"], (0, 1, 0, 1, 1)),
        (qwen2(max_window_layers=2), (0, 0, 1, 1, 1)),
        (qwen2(max_window_layers=5), (0,) * 5),
        (qwen2(use_sliding_window=False), (0,) * 5),
        (FAMILIES["qwen3"] | {"num_hidden_layers": 1}, (0,)),
    ],
)
def test_layers_are_grouped_by_what_they_do(config: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert kinds(config) == expected


def test_every_layer_may_be_kept() -> None:
    with tracing.quiet():
        model = tracing._build(LLAMA, "f32")
        layers, found, _ = tracing._keep_one_layer_per_kind(model, model.config, every_layer=True)
    assert (layers.path, layers.beside, found) == ("model.layers", (), (0, 1, 2))


def test_parameters_are_those_of_the_whole_model_tied_ones_once() -> None:
    model, found = build(LLAMA), traced(family_config("llama"), "f32")
    assert found.parameters == {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert found.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found.architecture == "LlamaForCausalLM" and found.layers_path == "model.layers"
    assert traced(family_config("qwen3"), "f32").ties == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_constants_are_what_transformers_computes(name: str) -> None:
    model, found = build(FAMILIES[name]), traced(family_config(name), "f32")
    expected = dict(model.named_buffers())
    assert found.constants.keys() == expected.keys()
    for path, value in found.constants.items():
        assert torch.equal(value, expected[path]), path
        assert value.device.type == "cpu"


def test_llama3_scaling_is_in_the_frequencies() -> None:
    scaled = traced(family_config("llama"), "f32").constants["model.rotary_emb.inv_freq"]
    ratio = scaled / 10000.0 ** (-torch.arange(8) / 8)
    assert ratio[0] == 1 and 1 / 8 < ratio[1] < 1 and torch.allclose(ratio[2:], torch.tensor(1 / 8)), "all three ranges of it"


def test_sizes_left_out_are_filled_in_with_transformers_defaults() -> None:
    with tracing.quiet():
        typed = tracing._build({"model_type": "mistral", "num_hidden_layers": 1}, "f32").config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", lambda *_arguments, **_options: _Exported())
        found: TracedModel = tracing.trace({"model_type": "mistral", "num_hidden_layers": 1}, "f32")
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "sliding_window"):
        assert found.config[name] == getattr(typed, name) is not None


class _Exported:
    """A graph of one attention."""

    def __init__(self) -> None:
        self.graph = torch.fx.Graph()
        self.graph.output(self.graph.call_function(torch.ops.tokenspeed.attention.default))

    def run_decompositions(self, _table: object) -> _Exported:
        return self


BROKEN: tuple[tuple[dict[str, Any], str], ...] = (
    (LLAMA | {"model_type": "lama"}, "model type 'lama' is not a causal language model"),
    (LLAMA | {"model_type": "vit"}, "model type 'vit' is not a causal language model"),
    (LLAMA | {"hidden_size": "64"}, "cannot build a llama model"),
    (LLAMA | {"hidden_size": -64}, "cannot build a llama model"),
    (LLAMA | {"num_attention_heads": 0}, "cannot build a llama model"),
    (LLAMA | {"num_key_value_heads": 0}, "cannot build a llama model"),
    (LLAMA | {"num_hidden_layers": None}, "cannot build a llama model"),
    (LLAMA | {"num_key_value_heads": 3}, "query heads cannot be shared out"),
    (LLAMA | {"vocab_size": 0}, "a parameter of the model has no elements"),
    (LLAMA | {"num_hidden_layers": 0}, "does not say how many layers"),
    (LLAMA | {"hidden_act": "softsign?"}, "cannot build a llama model"),
    (LLAMA | {"pad_token_id": 10_000}, "cannot build a llama model"),
    (LLAMA | {"rope_parameters": {"rope_type": "none"}}, "cannot build a llama model"),
    ({"model_type": "gemma3"}, "a gemma3 configuration does not say how many layers"),
)


@pytest.mark.parametrize(("config", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_wrong_configurations_are_one_clear_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        tracing.trace(config, "f32")
    error = refused.value
    assert message in error.what and "config.json" in error.where and error.got and error.fix
    assert "\n" not in error.got and len(error.got) < 400


class _Attention(torch.nn.Module):
    is_causal: bool


@pytest.mark.parametrize(
    ("options", "causal", "message"),
    [
        ({"position_bias": torch.zeros(4)}, True, "position_bias"),
        ({}, False, "not causal"),
    ],
)
def test_attention_that_is_not_ours_is_refused(options: dict[str, Any], causal: bool, message: str) -> None:
    module = _Attention()
    module.is_causal = causal
    q = torch.zeros(1, 4, 3, 8)
    with pytest.raises(ModelError, match=message):
        attention_hook(module, q, q, q, None, scaling=1.0, **options)


def test_bidirectional_configurations_are_refused() -> None:
    with pytest.raises(NotCausal, match="sees some behind it"):
        tracing.trace(FAMILIES["qwen3"] | {"is_causal": False}, "f32")


def test_attention_of_the_trace_is_causal_with_windows() -> None:
    """The operator that the proof runs: row i sees rows i - window + 1 to i."""
    q, k = torch.zeros(1, 2, 6, 4), torch.zeros(1, 1, 6, 4)
    v = torch.arange(6.0)[None, None, :, None].expand(1, 1, 6, 4)
    for window, expected in ((0, [0, 0.5, 1, 1.5, 2, 2.5]), (3, [0, 0.5, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 4, 5])):
        out = torch.ops.tokenspeed.attention(q, k, v, None, 1.0, window, 0.0, 0)
        assert out.shape == (1, 6, 2, 4)
        torch.testing.assert_close(out[0, :, 0, 0], torch.tensor(expected, dtype=torch.float32))


def test_attention_of_the_trace_has_soft_caps_and_sinks() -> None:
    """One head, one visible key: its share is that of its capped score beside the sink."""
    q, k, v = torch.full((1, 1, 1, 4), 2.0), torch.full((1, 1, 1, 4), 3.0), torch.ones(1, 1, 1, 4)
    capped = 5.0 * torch.tanh(torch.tensor(0.5 * 24.0 / 5.0))
    for sink, softcap, score in ((11.0, 0.0, 12.0), (4.0, 5.0, capped)):
        out = torch.ops.tokenspeed.attention(q, k, v, torch.tensor([sink]), 0.5, 0, softcap, 0)
        torch.testing.assert_close(out[0, 0, 0], torch.sigmoid(torch.as_tensor(score - sink)).expand(4))
