"""GGUF files of the llama, qwen2 and qwen3 architectures: weights, configuration and tokenizer in one file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np

from ...plans.checkpoint import Checkpoint, CheckpointTensor
from ...plans.errors import ModelError
from .gguf_config import model_config
from .gguf_metadata import GgufMetadata, read_metadata
from .gguf_tokenizer import rebuild_tokenizer
from .model_source import PLAIN_ENCODINGS, ModelSource, Origin, open_weights, source_tensors
from .provenance import json_sha256, sha256

_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_PARAMETER = re.compile(r"model\.layers\.(\{i(?:\+\d+)?\}|\d+)\.([a-z_.]+)\.(weight|bias)")
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,6})\.([a-z_]+\.(?:weight|bias))")
_ROPE_FACTORS = "rope_freqs.weight"

SUPPORTED = ("llama", "qwen2", "qwen3")


def open_gguf(path: Path) -> ModelSource:
    """Raises ModelError for another architecture, settings that would change the model's arithmetic, or a damaged file."""
    metadata = read_metadata(path)
    arch = _architecture(metadata)
    checkpoint = open_weights(path)
    config = model_config(metadata, arch, checkpoint.tensors, _rope_factors(checkpoint))
    _require_known_tensors(checkpoint.tensors, config, path)
    tokenizer = rebuild_tokenizer(metadata)
    return ModelSource(
        name=metadata.get("general.name", str, path.stem),
        config=config,
        sources=source_tensors(checkpoint),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        inputs={
            "gguf_metadata": metadata.sha256,
            "config": json_sha256(config),
            "tokenizer": sha256(tokenizer.tokenizer_json),
            "chat_template": sha256(tokenizer.chat_template.encode()),
        },
        origin=_origins(config, interleaved=arch == "llama"),
        encodings=_readable({tensor.encoding for tensor in checkpoint.tensors.values()}),
    )


def _architecture(metadata: GgufMetadata) -> str:
    kind = metadata.get("general.type", str, "model")
    if kind != "model":
        raise ModelError("This GGUF file is not a model.", where=f"{metadata.path}, key general.type", expected="model", got=kind)
    parts = metadata.get("split.count", int, 1)
    if parts > 1:
        raise ModelError(
            "This GGUF file is one part of a split model.",
            where=str(metadata.path),
            expected="a single file",
            got=f"{parts} parts",
            fix="join them: llama-gguf-split --merge FIRST_PART OUTPUT",
        )
    arch = metadata.require("general.architecture", str)
    if arch not in SUPPORTED:
        raise ModelError(
            "This GGUF architecture is not supported.",
            where=f"{metadata.path}, key general.architecture",
            expected=", ".join(SUPPORTED),
            got=arch,
            fix="use the Hugging Face directory of this model",
        )
    return arch


def _require_known_tensors(tensors: Mapping[str, CheckpointTensor], config: Mapping[str, Any], path: Path) -> None:
    """A tensor that no parameter reads would be left out of the model silently."""
    whole, parts = {*_WHOLE.values(), _ROPE_FACTORS}, _used_parts(config)

    def used(name: str) -> bool:
        match = _LAYER_TENSOR.fullmatch(name)
        return name in whole or (match is not None and int(match[1]) < config["num_hidden_layers"] and match[2] in parts)

    unknown = sorted(name for name in tensors if not used(name))
    if unknown:
        raise ModelError(
            "The GGUF file has tensors that this architecture does not use.",
            where=str(path),
            expected=f"tensors of a plain {config['model_type']} model of {config['num_hidden_layers']} layers",
            got=", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
            fix="use the Hugging Face directory of this model",
        )


def _used_parts(config: Mapping[str, Any]) -> set[str]:
    """Names, without their layer, of the tensors that the transformers model of this configuration has in each layer."""
    attention, mlp = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
    parts = {f"{name}.weight" for name in ("attn_norm", "ffn_norm", *attention, *mlp)}
    if config["model_type"] == "qwen3":
        parts |= {"attn_q_norm.weight", "attn_k_norm.weight"}
    if config["model_type"] == "qwen2":
        parts |= {f"{name}.bias" for name in attention[:3]}
    if config.get("attention_bias"):
        parts |= {f"{name}.bias" for name in attention}
    if config.get("mlp_bias"):
        parts |= {f"{name}.bias" for name in mlp}
    return parts


def _rope_factors(checkpoint: Checkpoint) -> np.ndarray | None:
    tensor = checkpoint.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.encoding != "F32":
        raise ModelError("Rope factors are not float32.", where=f"tensor {_ROPE_FACTORS}", expected="F32", got=tensor.encoding)
    return np.frombuffer(checkpoint.read(_ROPE_FACTORS), np.float32).copy()


def _origins(config: Mapping[str, Any], *, interleaved: bool) -> Callable[[str], Origin]:
    """Parameter name to tensor name. `interleaved`: rows of q and k are stored pairwise for rope (the llama architecture)."""
    rope_heads: dict[str, int] = {}
    if interleaved:
        rope_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def origin(parameter: str) -> Origin:
        if parameter in _WHOLE:
            tied = parameter == "lm_head.weight" and config["tie_word_embeddings"]
            return Origin(_WHOLE["model.embed_tokens.weight" if tied else parameter])
        match = _LAYER_PARAMETER.fullmatch(parameter)
        part = _PARTS.get(match[2]) if match else None
        if match is None or part is None:
            raise ModelError(
                "A parameter of the model has no name in GGUF.",
                where=parameter,
                expected="a parameter of llama, mistral, qwen2 or qwen3",
                fix="use the Hugging Face directory of this model",
            )
        return Origin(f"blk.{match[1]}.{part}.{match[3]}", rope_heads.get(part))

    return origin


def _readable(encodings: set[str]) -> frozenset[str]:
    """Those of `encodings` that the gguf package can decode, found by decoding one block of zeros."""
    return PLAIN_ENCODINGS | {name for name in encodings - PLAIN_ENCODINGS if _decodes(name)}


def _decodes(encoding: str) -> bool:
    kind = gguf.GGMLQuantizationType.__members__.get(encoding)
    if kind is None or kind not in gguf.GGML_QUANT_SIZES:
        return False
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
