"""GGUF files as model sources: configuration, names, recipes; compared with transformers' own models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import ModelSource, open_model
from tokenspeed.plans.digests import tensor_digest
from tokenspeed.plans.errors import ModelError
from tokenspeed.plans.recipe import Cast, Dequantize, Source, UnpermuteRope, sources
from tokenspeed.plans.recipe_shapes import infer
from transformers import AutoConfig, AutoModelForCausalLM

from .recipes import value_of
from .tiny_gguf import HEADS, HIDDEN, KV_HEADS, LAYERS, Tiny, byte_level_tokens, sentencepiece_tokens

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ENCODINGS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def opened(tmp_path: Path, tiny: Tiny) -> ModelSource:
    return open_model(tiny.write(tmp_path / "tiny.gguf"))


def module_of(source: ModelSource) -> torch.nn.Module:
    config = dict(copy.deepcopy(source.config))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp's converter lays out q and k rows of Hugging Face llama checkpoints."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_recipe(tmp_path: Path, arch: str, tied: bool) -> None:
    source = opened(tmp_path, Tiny(arch=arch, tied=tied))
    module, used = module_of(source), set()
    tensors = {tensor.name: tensor for tensor in source.sources or ()}
    for name, parameter in module.named_parameters():
        recipe = source.recipe(name, "bf16", tuple(parameter.shape))
        assert infer(recipe, lambda n: (tensors[n].shape, tensors[n].encoding)) == (tuple(parameter.shape), "bf16")
        used |= set(sources(recipe))
    assert used == tensors.keys()
    assert source.config["tie_word_embeddings"] is tied


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_templates_cover_all_layers(tmp_path: Path, arch: str) -> None:
    source = opened(tmp_path, Tiny(arch=arch))
    q, k = (HIDDEN, HIDDEN), (KV_HEADS * 16, HIDDEN)
    plain = Cast(Source("blk.{i}.attn_q.weight"), "f32")
    permuted = Cast(UnpermuteRope(Source("blk.{i}.attn_q.weight"), HEADS), "f32")
    assert source.recipe("model.layers.{i}.self_attn.q_proj.weight", "f32", q) == (permuted if arch == "llama" else plain)
    shifted = source.recipe("model.layers.{i+1}.self_attn.k_proj.weight", "f16", k)
    assert sources(shifted) == ("blk.{i+1}.attn_k.weight",)


def test_rows_come_back_in_hugging_face_order(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    q = random.standard_normal((HIDDEN, HIDDEN), dtype=np.float32)
    k = random.standard_normal((KV_HEADS * 16, HIDDEN), dtype=np.float32)
    extra = {"blk.1.attn_q.weight": interleaved(q, HEADS), "blk.1.attn_k.weight": interleaved(k, KV_HEADS)}
    source = opened(tmp_path, Tiny(extra=extra))
    assert source.checkpoint is not None
    for name, expected in (("q_proj", q), ("k_proj", k)):
        recipe = source.recipe(f"model.layers.1.self_attn.{name}.weight", "f32", expected.shape)
        np.testing.assert_array_equal(value_of(recipe, source.checkpoint).numpy(), expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    tiny = Tiny(arch="qwen3", encodings={"blk.0.ffn_up.weight": encoding})
    source = opened(tmp_path, tiny)
    assert source.checkpoint is not None
    name, shape = "model.layers.{i}.mlp.up_proj.weight", (96, HIDDEN)
    recipe = source.recipe(name, "f32", shape)  # the other layer is F32: one recipe serves both
    assert recipe == Cast(
        Source("blk.{i}.ffn_up.weight") if encoding in ("F16", "BF16") else Dequantize(Source("blk.{i}.ffn_up.weight")), "f32"
    )
    kind = gguf.GGMLQuantizationType[encoding]
    stored = gguf.quants.quantize(tiny.values["blk.0.ffn_up.weight"], kind)
    first = source.recipe(name.replace("{i}", "0"), "f32", shape)
    np.testing.assert_array_equal(value_of(first, source.checkpoint).numpy(), gguf.quants.dequantize(stored, kind))


def test_settings_reach_the_configuration(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "llama.rope.freq_base": 5e5}
    source = opened(tmp_path, Tiny(keys=keys))
    config = AutoConfig.for_model(**copy.deepcopy(source.config))
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers, config.num_key_value_heads) == (
        HIDDEN,
        16,
        LAYERS,
        KV_HEADS,
    )
    assert (config.rms_norm_eps, config.max_position_embeddings, config.eos_token_id) == (1e-5, 512, 2)
    assert config.vocab_size == len(byte_level_tokens().tokens)
    assert source.name == "Tiny"
    assert source.end_tokens == (2, 0)


def test_llama3_factor_tensor(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    inverse = 5e5 ** -(np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 * inverse / (2 * np.pi) - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    tiny = Tiny(keys={"llama.rope.freq_base": 5e5}, extra={"rope_freqs.weight": factors})
    assert opened(tmp_path, tiny).config["rope_scaling"] == scaling


def test_window_of_mistral(tmp_path: Path) -> None:
    source = opened(tmp_path, Tiny(keys={"llama.attention.sliding_window": 128}))
    assert (source.config["model_type"], source.config["sliding_window"]) == ("mistral", 128)
    assert AutoConfig.for_model(**copy.deepcopy(source.config)).sliding_window == 128
    assert isinstance(source.recipe("model.layers.{i}.self_attn.q_proj.weight", "f32", (HIDDEN, HIDDEN)), Cast)


def test_biases_of_llama(tmp_path: Path) -> None:
    extra = {
        f"blk.{i}.attn_{part}.bias": np.ones(size, np.float32)
        for i in range(LAYERS)
        for part, size in (("q", HIDDEN), ("k", KV_HEADS * 16), ("v", KV_HEADS * 16), ("output", HIDDEN))
    }
    source = opened(tmp_path, Tiny(extra=extra))
    assert source.config["attention_bias"]
    recipe = source.recipe("model.layers.{i}.self_attn.q_proj.bias", "f32", (HIDDEN,))
    assert recipe == Cast(UnpermuteRope(Source("blk.{i}.attn_q.bias"), HEADS), "f32")


def test_digests_and_provenance(tmp_path: Path) -> None:
    source = opened(tmp_path, Tiny())
    assert source.checkpoint is not None
    seen: list[tuple[int, int]] = []
    found = source.digests(lambda done, total: seen.append((done, total)))
    assert [tensor.name for tensor in found] == sorted(source.checkpoint.tensors)
    assert found[3].digest == tensor_digest([source.checkpoint.read(found[3].name)])
    assert seen[-1][0] == seen[-1][1] == sum(tensor.bytes for tensor in found)
    assert [tensor.name for tensor in source.digests(names=["output_norm.weight"])] == ["output_norm.weight"]
    again = open_model(tmp_path / "tiny.gguf")
    assert source.inputs == again.inputs
    assert source.inputs.keys() == {"gguf_metadata", "config", "tokenizer", "chat_template"}


@pytest.mark.parametrize(
    ("tiny", "named"),
    [
        (Tiny(arch="gemma2"), "llama, qwen2, qwen3"),
        (Tiny(keys={"llama.expert_count": 8}), "llama.expert_count"),
        (Tiny(keys={"llama.logit_scale": 0.5}), "llama.logit_scale"),
        (Tiny(keys={"llama.rope.dimension_count": 8}), "llama.rope.dimension_count"),
        (Tiny(keys={"llama.attention.head_count": [4, 4]}), "llama.attention.head_count"),
        (Tiny(arch="qwen2", keys={"qwen2.attention.sliding_window": 64}), "sliding_window"),
        (Tiny(keys={"split.count": 3}), "llama-gguf-split --merge"),
        (Tiny(keys={"general.type": "adapter"}), "adapter"),
        (Tiny(extra={"blk.0.attn_sinks.weight": np.ones(4, np.float32)}), "blk.0.attn_sinks.weight"),
        (Tiny(extra={"blk.1.attn_q_norm.weight": np.ones(16, np.float32)}), "blk.1.attn_q_norm.weight"),
        (Tiny(arch="qwen2", extra={"blk.0.attn_output.bias": np.ones(HIDDEN, np.float32)}), "blk.0.attn_output.bias"),
        (Tiny(extra={"blk.2.ffn_up.weight": np.ones((96, HIDDEN), np.float32)}), "blk.2.ffn_up.weight"),
        (Tiny(extra={"token_embd.weight": np.ones((8, HIDDEN), np.float32)}), "token_embd.weight"),
        (Tiny(extra={"rope_freqs.weight": np.full(8, 3.0, np.float32)}), "rope_freqs.weight"),
        (Tiny(tokens=byte_level_tokens("bloom")), "bloom"),
    ],
)
def test_refused_by_name(tmp_path: Path, tiny: Tiny, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, tiny)
    assert named in str(caught.value)


def test_recipes_that_cannot_be(tmp_path: Path) -> None:
    source = opened(tmp_path, Tiny(encodings={"blk.1.ffn_down.weight": "Q8_0"}))
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("model.layers.{i}.mlp.experts.gate_up_proj", "f32", (1,)), "no name in GGUF"),
        (("model.layers.{i}.self_attn.q_norm.weight", "f32", (16,)), "blk.0.attn_q_norm.weight"),
        (("model.layers.9.mlp.up_proj.weight", "f32", (96, HIDDEN)), "blk.9.ffn_up.weight"),
        (("model.norm.weight", "f32", (HIDDEN + 1,)), r"\[64\]"),
        (("model.norm.weight", "f64", (HIDDEN,)), "f64"),
    ]
    for arguments, named in cases:
        with pytest.raises(ModelError, match=named):
            source.recipe(*arguments)
    assert isinstance(source.recipe("model.layers.{i}.mlp.down_proj.weight", "f32", (HIDDEN, 96), layers=[0]), Cast)


def test_sentencepiece_model(tmp_path: Path) -> None:
    source = opened(tmp_path, Tiny(tokens=sentencepiece_tokens()))
    assert source.tokenizer is not None
    assert (source.tokenizer.begin_token, source.tokenizer.add_begin_token, source.tokenizer.end_tokens) == (1, True, (2,))


def test_smollm2_against_the_published_configuration(smollm2_path: Path) -> None:
    source = open_model(smollm2_path)
    examples = Path(__file__).parents[3] / "examples" / "configs"
    published = json.loads((examples / "smollm2-135m.json").read_text())
    for key in source.config.keys() & published.keys():
        assert source.config[key] == published[key], key
    module = module_of(source)
    for name, parameter in module.named_parameters():
        source.recipe(name, "bf16", tuple(parameter.shape))
    assert sum(parameter.numel() for parameter in module.parameters()) == 134_515_008
