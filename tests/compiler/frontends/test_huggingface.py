"""Hugging Face directories and bare configurations as model sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from tokenspeed.compiler.frontends.gguf_tokenizer import rebuild_tokenizer
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.plans.errors import ModelError
from tokenspeed.plans.recipe import Cast, Source
from transformers import AutoConfig, AutoModelForCausalLM

from .recipes import value_of
from .test_gguf_tokenizer import metadata_of
from .tiny_gguf import byte_level_tokens

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(byte_level_tokens().tokens),
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def directory(path: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """A model directory; `files` by name with "__" for the dot: text, bytes, or a value to write as JSON."""
    path.mkdir(exist_ok=True)
    for name, content in {"config__json": CONFIG if config is None else config, **files}.items():
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def weights(config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**dict(config)), dtype=dtype)
    tied = config.get("tie_word_embeddings", False)
    return {
        name: value.detach().clone() for name, value in module.state_dict().items() if not (tied and name == "lm_head.weight")
    }


def tokenizer_json() -> bytes:
    return rebuild_tokenizer(metadata_of(byte_level_tokens())).tokenizer_json


def test_parameters_are_tensors_of_the_same_name(tmp_path: Path) -> None:
    tensors = weights()
    save_file(tensors, directory(tmp_path / "tiny") / "model.safetensors")
    source = open_model(tmp_path / "tiny")
    assert source.checkpoint is not None and source.sources is not None
    assert {tensor.name for tensor in source.sources} == tensors.keys()
    for name, value in tensors.items():
        recipe = source.recipe(name, "f32", tuple(value.shape))
        assert recipe == Cast(Source(name), "f32")
        assert torch.equal(value_of(recipe, source.checkpoint), value.float())
    template = source.recipe("model.layers.{i}.mlp.up_proj.weight", "bf16", (48, 32))
    assert template == Cast(Source("model.layers.{i}.mlp.up_proj.weight"), "bf16")
    assert source.name == "tiny"
    assert all(tensor.digest for tensor in source.digests())


def test_shards(tmp_path: Path) -> None:
    tensors, path = weights(), directory(tmp_path / "tiny")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, path / file)
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {tensor.name for tensor in open_model(path).sources or ()} == set(names)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        open_model(path)


def test_head_that_is_absent(tmp_path: Path) -> None:
    silent = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    save_file(weights(), directory(tmp_path / "silent", silent) / "model.safetensors")
    assert open_model(tmp_path / "silent").config["tie_word_embeddings"] is True
    save_file(weights(), directory(tmp_path / "untied", CONFIG | {"tie_word_embeddings": False}) / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        open_model(tmp_path / "untied").recipe("lm_head.weight", "f32", (CONFIG["vocab_size"], 32))


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    tensors = weights()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory(tmp_path / "tiny") / "model.safetensors")
    source = open_model(tmp_path / "tiny")
    with pytest.raises(ModelError, match="F8_E4M3"):
        source.recipe("model.norm.weight", "f32", (32,))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        source.recipe("model.layers.{i}.mlp.up_proj.weight", "f32", (48, 32))
    with pytest.raises(ModelError, match=r"\[48, 32\]"):
        source.recipe("model.layers.{i}.mlp.gate_proj.weight", "f32", (32, 48))


def test_layers_of_configurations_with_other_names(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8}
    tensors = {f"transformer.h.{i}.ln_1.weight": torch.ones(8 + (i == 1)) for i in range(2)}
    save_file(tensors, directory(tmp_path / "tiny", config) / "model.safetensors")
    source = open_model(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"transformer\.h\.1\.ln_1"):
        source.recipe("transformer.h.{i}.ln_1.weight", "f32", (8,))
    assert source.recipe("transformer.h.{i}.ln_1.weight", "f32", (8,), layers=[0])
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.ln_2"):
        source.recipe("transformer.h.{i}.ln_2.weight", "f32", (8,))


def test_shape_only(tmp_path: Path) -> None:
    source = open_model(directory(tmp_path / "shapes", tokenizer__json=tokenizer_json()))
    assert source.sources is None and source.checkpoint is None and source.tokenizer is not None
    assert source.recipe("lm_head.weight", "bf16", (1, 2)) == Cast(Source("lm_head.weight"), "bf16")
    assert source.digests() == ()
    assert any("shape-only" in note for note in source.notes)
    bare = open_model(tmp_path / "shapes" / "config.json")
    assert bare.name == "shapes" and bare.tokenizer is None and bare.end_tokens == (2,)
    named = directory(tmp_path / "other", llama__json=CONFIG) / "llama.json"
    assert open_model(named).name == "llama"
    assert open_model(named).inputs == {"config": hashlib.sha256(named.read_bytes()).hexdigest()}


def test_hub_cache_name(tmp_path: Path) -> None:
    path = tmp_path / "models--org--tiny" / "snapshots" / "0123abcd"
    path.parent.mkdir(parents=True)
    assert open_model(directory(path)).name == "org/tiny"


def test_tokenizer_files(tmp_path: Path) -> None:
    settings = {
        "bos_token": "<|im_start|>",
        "eos_token": {"content": "<|im_end|>", "special": True},
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        "add_bos_token": True,
    }
    files = {
        "tokenizer__json": tokenizer_json(),
        "tokenizer_config__json": settings,
        "generation_config__json": {"eos_token_id": [0, 2]},
    }
    source = open_model(directory(tmp_path / "tiny", **files))
    tokenizer = source.tokenizer
    assert tokenizer is not None
    assert tokenizer.tokenizer_json == files["tokenizer__json"]
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert (tokenizer.end_tokens, tokenizer.begin_token, tokenizer.add_begin_token) == ((0, 2), 1, True)
    assert tokenizer.chat_template == "D"
    assert source.inputs.keys() == {"config", "generation_config", "tokenizer", "tokenizer_config"}
    (tmp_path / "tiny" / "chat_template.jinja").write_text("J", encoding="utf-8")
    again = open_model(tmp_path / "tiny").tokenizer
    assert again is not None and again.chat_template == "J"


def test_begin_token_from_the_post_processor(tmp_path: Path) -> None:
    plain = Tokenizer.from_buffer(tokenizer_json())
    for adds in (False, True):
        if adds:
            plain.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
        files = {
            "tokenizer__json": plain.to_str(),
            "tokenizer_config__json": {"bos_token": "<|im_start|>", "add_bos_token": None},
        }
        tokenizer = open_model(directory(tmp_path / f"tiny-{adds}", **files)).tokenizer
        assert tokenizer is not None and tokenizer.add_begin_token is adds


def test_no_tokenizer_is_a_note(tmp_path: Path) -> None:
    assert any("No tokenizer.json" in note for note in open_model(directory(tmp_path / "a")).notes)
    assert any("tokenizer.model" in note for note in open_model(directory(tmp_path / "b", tokenizer__model=b"x")).notes)


@pytest.mark.parametrize(
    ("config", "files", "named"),
    [
        ({}, {}, "model_type"),
        ({"model_type": "lama"}, {}, "llama"),
        ({"model_type": "brand_new", "auto_map": {"AutoModelForCausalLM": "modeling.Brand"}}, {}, "auto_map"),
        (CONFIG | {"quantization_config": {"quant_method": "gptq"}}, {}, "gptq"),
        (CONFIG, {"pytorch_model__bin": b"x"}, "pickle"),
        (CONFIG, {"model__safetensors": b"x"}, "model.safetensors"),
        (CONFIG, {"config__json": "{"}, "not JSON"),
        (CONFIG, {"config__json": "[]"}, "a JSON object"),
        (CONFIG, {"tokenizer__json": "{}"}, "tokenizer.json"),
        (CONFIG, {"tokenizer__json": tokenizer_json(), "tokenizer_config__json": {"eos_token": "<nowhere>"}}, "<nowhere>"),
        (CONFIG, {"generation_config__json": "nope"}, "generation_config.json"),
    ],
)
def test_refused_by_name(tmp_path: Path, config: dict[str, Any], files: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_model(directory(tmp_path / "tiny", config, **files))
    assert named in str(caught.value)


def test_known_type_with_extra_code_is_read_without_it(tmp_path: Path) -> None:
    assert open_model(directory(tmp_path / "tiny", CONFIG | {"auto_map": {"AutoConfig": "x.Y"}})).config["model_type"] == "llama"


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    for path, named in (
        (tmp_path / "empty", "config.json"),
        (tmp_path / "absent", "no model"),
        (tmp_path / "model.safetensors", "directory"),
    ):
        with pytest.raises(ModelError, match=named):
            open_model(path)


def test_the_language_model_of_a_configuration_of_several_parts(tmp_path: Path) -> None:
    text = {**CONFIG, "model_type": "qwen3_5_text", "eos_token_id": None}
    whole = {"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 1}, "eos_token_id": 7}
    assert open_model(directory(tmp_path / "a", whole)).config == text | {"eos_token_id": 7}
    other = {"model_type": "gemma3", "text_config": {**CONFIG, "model_type": "gemma3_text"}}
    assert open_model(directory(tmp_path / "b", other)).config == other, "whose causal LM is another class"
