"""GGUF files for llama.cpp from a Hugging Face directory of a llama or qwen3 model: BF16, Q8_0, Q4_0, embeddings included.

Made by the `gguf` package alone. All matrices have the one encoding, norms are float32, the head is the embedding. No
vocabulary is written: the comparison speaks in token ids.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors import safe_open

from .checkpoints import configuration

ENCODINGS = {"bf16": GGMLQuantizationType.BF16, "int8": GGMLQuantizationType.Q8_0, "int4": GGMLQuantizationType.Q4_0}
_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def gguf_file(directory: Path, precision: str) -> Path:
    """The file beside `directory` for `precision` (a key of ENCODINGS), made when it is not there."""
    target = directory.with_name(f"{precision}.gguf")
    if not target.is_file():
        partial = target.with_suffix(".partial")
        _write(directory, ENCODINGS[precision], partial)
        partial.rename(target)
    return target


def _write(directory: Path, encoding: GGMLQuantizationType, target: Path) -> None:
    config = configuration(directory)
    architecture = _ARCHITECTURES[config["model_type"]]
    writer = GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    _add_header(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    with safe_open(directory / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            values = tensors.get_tensor(name).float().numpy()
            if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                values = _interleaved(values, heads)
            kind = encoding if values.ndim == 2 else GGMLQuantizationType.F32
            found = names.get_name(name, try_suffixes=(".weight",))
            assert found is not None, name
            writer.add_tensor(found, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_header(writer: GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """(heads, 2, half) rows to (heads, half, 2): llama.cpp rotates neighbouring rows of a llama model, Hugging Face halves."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
