"""Tiny GGUF files made on the spot: any supported architecture, tensor types, tokenizer kind, extra keys and tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 2, 64, 4, 2, 16, 96
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, we'll see; THEY'RE not here.",
    "def add(a, b):\n    return a + b\n\n\nclass Thing:\n\tpass  # 3.14159",
    "你好，世界。今天天气很好。 日本語のテキスト 한국어 텍스트 Привет, мир! é è ü 🎉🎉 👩‍💻",
    'a  b   c    d \n\n \t x=1;y=22;z=333 {"key": [1, 2, 3]} </tag> https://example.org/a?b=c',
]


@dataclass
class Tokens:
    """Tables as GGUF stores them, `model` and `pre` among the settings."""

    tokens: list[str]
    types: list[int]
    settings: dict[str, Any]
    merges: list[str] | None = None
    scores: list[float] | None = None


@cache
def _trained() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Vocabulary in order of id, and merges, of a byte-level BPE trained on the corpus above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    saved = json.loads(tokenizer.to_str())["model"]["merges"]
    return tuple(text for text, _ in tokens), tuple(" ".join(merge) for merge in saved)


def byte_level_tokens(pre: str | None = "smollm", **settings: Any) -> Tokens:
    tokens, merges = _trained()
    types = [3 if text in SPECIAL else 1 for text in tokens]
    known = {"model": "gpt2", "bos_token_id": 1, "eos_token_id": 2} | ({"pre": pre} if pre else {})
    return Tokens([*tokens, "<tool_call>"], [*types, 4], known | settings, merges=list(merges))


def sentencepiece_tokens(**settings: Any) -> Tokens:
    """Byte tokens and pieces from the corpus, with distinct scores: single characters lowest, frequent pairs highest."""
    characters = sorted({character for line in _CORPUS for character in line.replace(" ", "▁")} - set("🎉👩💻"))
    pieces = [
        "▁t",
        "he",
        "▁the",
        "in",
        "▁a",
        "er",
        "re",
        "▁re",
        "ur",
        "urn",
        "return",
        "▁return",
        "▁▁",
        "▁▁▁▁",
        "12",
        "123",
        "th",
        "▁th",
    ]
    pieces += [
        "ow",
        "ro",
        "row",
        "own",
        "rown",
        "▁b",
        "▁brown",
        "▁brow",
        "ick",
        "ic",
        "qu",
        "▁qu",
        "uick",
        "ui",
        "quick",
        "▁quick",
    ]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces, *characters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(characters))]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) + len(characters))]
    known = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return Tokens(tokens, types, known | settings, scores=scores)


@dataclass
class Tiny:
    """What to write. `encodings` maps a tensor's name to its type (F32 else); `values` are what the tensors hold."""

    arch: str = "llama"
    tokens: Tokens = field(default_factory=byte_level_tokens)
    keys: dict[str, Any] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    tied: bool = True
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.arch)
        for key, value in {**self._keys(), **self.keys}.items():
            _add(writer, key, value)
        self._add_tokens(writer)
        self.values = self._tensors() | self.extra
        for name, value in self.values.items():
            kind = gguf.GGMLQuantizationType[self.encodings.get(name, "F32")]
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _keys(self) -> dict[str, Any]:
        arch = self.arch
        return {
            "general.name": "Tiny",
            f"{arch}.block_count": LAYERS,
            f"{arch}.context_length": 512,
            f"{arch}.embedding_length": HIDDEN,
            f"{arch}.feed_forward_length": FEED_FORWARD,
            f"{arch}.attention.head_count": HEADS,
            f"{arch}.attention.head_count_kv": KV_HEADS,
            f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{arch}.rope.freq_base": 10000.0,
            **({f"{arch}.attention.key_length": HEAD_DIM} if arch == "qwen3" else {}),
        }

    def _add_tokens(self, writer: gguf.GGUFWriter) -> None:
        tables = self.tokens
        for key, value in tables.settings.items():
            _add(writer, f"tokenizer.ggml.{key}", value)
        writer.add_array("tokenizer.ggml.tokens", tables.tokens)
        writer.add_array("tokenizer.ggml.token_type", tables.types)
        if tables.merges is not None:
            writer.add_array("tokenizer.ggml.merges", tables.merges)
        if tables.scores is not None:
            writer.add_array("tokenizer.ggml.scores", tables.scores)

    def _tensors(self) -> dict[str, np.ndarray]:
        random, q, kv = np.random.default_rng(7), HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (len(self.tokens.tokens), HIDDEN),
            "output_norm.weight": (HIDDEN,),
        }
        if not self.tied:
            shapes["output.weight"] = (len(self.tokens.tokens), HIDDEN)
        for i in range(LAYERS):
            layer: dict[str, tuple[int, ...]] = {
                "attn_norm.weight": (HIDDEN,),
                "attn_q.weight": (q, HIDDEN),
                "attn_k.weight": (kv, HIDDEN),
                "attn_v.weight": (kv, HIDDEN),
                "attn_output.weight": (HIDDEN, q),
                "ffn_norm.weight": (HIDDEN,),
                "ffn_gate.weight": (FEED_FORWARD, HIDDEN),
                "ffn_up.weight": (FEED_FORWARD, HIDDEN),
                "ffn_down.weight": (HIDDEN, FEED_FORWARD),
            }
            if self.arch == "qwen2":
                layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
            if self.arch == "qwen3":
                layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
            shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
