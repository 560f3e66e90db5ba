"""A llama-shaped plan made by hand, a plan object without a file, and the model computed plainly in float64."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from tokenspeed.passes.sample_program import build_sample_program
from tokenspeed.plans.program import DTYPE_BYTES, Bucket, Buffer, Call, Program, Repeat, View, step_inputs
from tokenspeed.plans.recipe import Concat, Source
from tokenspeed.plans.schema import (
    Constant,
    KvGeometry,
    KvGroup,
    Manifest,
    Model,
    ProgramReference,
    Schedule,
    SourceTensor,
    Target,
    Weight,
)

from ..plans.sample_plan import sample_manifest

Linear = Literal["linear", "linear_onednn"]


@dataclass(frozen=True)
class Llama:
    layers: int = 2
    hidden: int = 32
    intermediate: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    vocabulary: int = 96
    max_rows: int = 16
    sequences: int = 4
    blocks: int = 32
    block_tokens: int = 4
    linear: Linear = "linear"
    row_padding: Literal["exact", "bucket"] = "exact"
    buckets: tuple[tuple[int, int], ...] = ((4, 4), (16, 4))

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def manifest(self) -> Manifest:
        _, slots = build_sample_program(self.vocabulary, self.sequences, self.sequences, "f32")
        inputs = step_inputs(self.max_rows, self.sequences, self.blocks)
        per_block = 2 * self.layers * self.block_tokens * self.kv_heads * self.head_dim * 4
        base = sample_manifest()
        arena = max(bucket.arena_bytes for program in (self.program(), self.sample()) for bucket in program.buckets)
        model = {"vocabulary": self.vocabulary, "hidden_size": self.hidden, "layers": self.layers}
        group = KvGroup(
            name="all", kind="paged", layers=tuple(range(self.layers)), heads=self.kv_heads, head_dim=self.head_dim, dtype="f32"
        )
        changes: dict[str, Any] = {
            "target": Target(name="cpu", kind="cpu", features=(), row_padding=self.row_padding),
            "model": Model(**{**msgspec.structs.asdict(base.model), **model}),
            "programs": (
                ProgramReference(name="step", role="step", entry="step", rank=0, max_rows=self.max_rows),
                ProgramReference(name="sample", role="sample", entry="sample", rank=0, max_rows=self.sequences),
            ),
            "step_inputs": inputs,
            "slot_buffers": slots,
            "sources": self.sources(),
            "weights": self.weights(),
            "constants": (Constant(name="inv_freq", dtype="f32", shape=(self.head_dim // 2,), entry="inv_freq"),),
            "kv": KvGeometry(
                identity_tokens=64,
                block_tokens=self.block_tokens,
                blocks=self.blocks,
                bytes_per_block=per_block,
                compatibility="k",
                groups=(group,),
            ),
            "schedule": Schedule(
                max_rows=self.max_rows,
                max_decode_rows=self.sequences,
                max_sequences=self.sequences,
                prefill_chunk=self.max_rows,
                max_waiting=4,
                traffic={},
            ),
            "memory": msgspec.structs.replace(base.memory, arena=arena),
        }
        return msgspec.structs.replace(base, **changes)

    def sources(self) -> tuple[SourceTensor, ...]:
        return tuple(
            SourceTensor(name=name, encoding="F32", shape=shape, bytes=4 * prod(shape))
            for name, shape in self.source_shapes().items()
        )

    def source_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden, self.intermediate
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocabulary, hidden), "norm": (hidden,)}
        for i in range(self.layers):
            shapes |= {f"l{i}.q": (q, hidden), f"l{i}.k": (kv, hidden), f"l{i}.v": (kv, hidden), f"l{i}.o": (hidden, q)}
            shapes |= {f"l{i}.gate": (inner, hidden), f"l{i}.up": (inner, hidden), f"l{i}.down": (hidden, inner)}
            shapes |= {f"l{i}.in_norm": (hidden,), f"l{i}.post_norm": (hidden,)}
        return shapes

    def weights(self) -> tuple[Weight, ...]:
        layers = tuple(range(self.layers))
        packed: Literal["none", "onednn"] = "onednn" if self.linear == "linear_onednn" else "none"

        def weight(name: str, shape: tuple[int, ...], parts: tuple[str, ...], prepack: Literal["none", "onednn"]) -> Weight:
            sources = tuple(Source(part) for part in parts)
            recipe = sources[0] if len(sources) == 1 else Concat(sources, 0)
            of = layers if "{i}" in name else ()
            return Weight(name=name, shape=shape, dtype="f32", bytes=4 * prod(shape), recipe=recipe, layers=of, prepack=prepack)

        hidden, inner, q = self.hidden, self.intermediate, self.heads * self.head_dim
        return (
            weight("embedding", (self.vocabulary, hidden), ("embed",), "none"),
            weight("head", (self.vocabulary, hidden), ("embed",), packed),
            weight("final_norm", (hidden,), ("norm",), "none"),
            weight("w{i}.qkv", (self.qkv, hidden), ("l{i}.q", "l{i}.k", "l{i}.v"), packed),
            weight("w{i}.o", (hidden, q), ("l{i}.o",), packed),
            weight("w{i}.gate_up", (2 * inner, hidden), ("l{i}.gate", "l{i}.up"), packed),
            weight("w{i}.down", (hidden, inner), ("l{i}.down",), packed),
            weight("w{i}.in_norm", (hidden,), ("l{i}.in_norm",), "none"),
            weight("w{i}.post_norm", (hidden,), ("l{i}.post_norm",), "none"),
        )

    def sample(self) -> Program:
        return build_sample_program(self.vocabulary, self.sequences, self.sequences, "f32")[0]

    def program(self) -> Program:
        heads, kv, dim, hidden, inner = self.heads, self.kv_heads, self.head_dim, self.hidden, self.intermediate
        buffers = (
            Buffer("logits", "f32", ("logit_rows", self.vocabulary)),
            Buffer("tokens", "i32", ("rows",)),
            Buffer("hidden", "f32", ("rows", hidden)),
            Buffer("normed", "f32", ("rows", hidden)),
            Buffer("delta", "f32", ("rows", hidden)),
            Buffer("cos", "f32", ("rows", dim)),
            Buffer("sin", "f32", ("rows", dim)),
            Buffer("qkv", "f32", ("rows", self.qkv)),
            Buffer("turned", "f32", ("rows", heads, dim)),
            Buffer("attended", "f32", ("rows", heads, dim)),
            Buffer("gate_up", "f32", ("rows", 2 * inner)),
            Buffer("active", "f32", ("rows", inner)),
            Buffer("last", "f32", ("logit_rows", hidden)),
        )
        views = (
            View("q", "qkv", ("rows", heads, dim), 0, (self.qkv, dim, 1)),
            View("k", "qkv", ("rows", kv, dim), heads * dim, (self.qkv, dim, 1)),
            View("v", "qkv", ("rows", kv, dim), (heads + kv) * dim, (self.qkv, dim, 1)),
            View("attended_flat", "attended", ("rows", heads * dim), 0, (heads * dim, 1)),
            View("gate", "gate_up", ("rows", inner), 0, (2 * inner, 1)),
            View("up", "gate_up", ("rows", inner), inner, (2 * inner, 1)),
        )
        step = ("sequence_starts", "context_lengths", "block_tables", "counts")
        caches = ("kv.k.{i}", "kv.v.{i}")
        norm: dict[str, Any] = {"eps": 1e-5, "cast_before_weight": True}
        body = (
            Call("rms_norm", ("hidden", "w{i}.in_norm"), ("normed",), norm),
            Call(self.linear, ("normed", "w{i}.qkv"), ("qkv",)),
            Call("rope_kv_write", ("q", "k", "v", "cos", "sin", "slot_mapping"), ("turned", *caches)),
            Call("attention", ("turned", *caches, *step), ("attended",), {"scale": dim**-0.5}),
            Call(self.linear, ("attended_flat", "w{i}.o"), ("delta",)),
            Call("add_rms_norm", ("delta", "hidden", "w{i}.post_norm"), ("hidden", "normed"), norm),
            Call(self.linear, ("normed", "w{i}.gate_up"), ("gate_up",)),
            Call("gated_activation", ("gate", "up"), ("active",), {"activation": "silu"}),
            Call(self.linear, ("active", "w{i}.down"), ("delta",)),
            Call("add", ("hidden", "delta"), ("hidden",)),
        )
        whole = (
            Call("take_last_tokens", ("token_ids", "row_slots", "last_tokens"), ("tokens",)),
            Call("embedding", ("tokens", "embedding"), ("hidden",)),
            Call("rope_table", ("positions", "inv_freq"), ("cos", "sin"), {"scaling": 1.0, "layout": "half"}),
            Repeat(0, self.layers, 1, body),
            Call("rms_norm", ("hidden", "final_norm"), ("normed",), norm),
            Call("gather_rows", ("normed", "logit_rows"), ("last",)),
            Call(self.linear, ("last", "head"), ("logits",)),
        )
        return Program("step", 0, buffers, views, whole, tuple(_bucket(buffers, *sizes) for sizes in self.buckets))


def _bucket(buffers: tuple[Buffer, ...], rows: int, logit_rows: int) -> Bucket:
    symbols = {"rows": rows, "logit_rows": logit_rows}
    offsets, end = [], 0
    for buffer in buffers:
        offsets.append(end)
        elements = prod(symbols[extent] if isinstance(extent, str) else extent for extent in buffer.shape)
        end += -(-elements * DTYPE_BYTES[buffer.dtype] // 64) * 64
    return Bucket(rows, logit_rows, tuple(offsets), end)


@dataclass
class MemoryPlan:
    """A plan that was never a file: what `PlanSource` asks for."""

    manifest: Manifest
    programs: dict[str, Program]
    entries: dict[str, bytes] = field(default_factory=dict)

    def entry(self, name: str) -> memoryview:
        return memoryview(self.entries[name])

    def bundled(self, name: str) -> tuple[memoryview, Callable[[], None]]:
        return self.entry(name), lambda: None

    def program(self, name: str) -> Program:
        return self.programs[name]


def plan_of(shape: Llama, **changes: Any) -> MemoryPlan:
    frequencies = 10000.0 ** (-np.arange(shape.head_dim // 2, dtype=np.float32) * 2 / shape.head_dim)
    return MemoryPlan(
        msgspec.structs.replace(shape.manifest(), **changes),
        {"step": shape.program(), "sample": shape.sample()},
        {"inv_freq": frequencies.astype("<f4").tobytes()},
    )


def head_major(kv: KvGeometry) -> KvGeometry:
    """The same caches with each block's heads one after the other."""
    groups = tuple(msgspec.structs.replace(group, block_order="head_major") for group in kv.groups)
    return msgspec.structs.replace(kv, groups=groups)


def random_sources(shape: Llama, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)

    def values(extents: tuple[int, ...]) -> np.ndarray:
        drawn = (
            generator.standard_normal(extents) / extents[-1] ** 0.5 if len(extents) > 1 else generator.uniform(0.5, 1.5, extents)
        )
        return drawn.astype(np.float32)

    return {name: values(extents) for name, extents in shape.source_shapes().items()}


ENCODINGS = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    header, position = {}, 0
    for name, values in tensors.items():
        end = position + values.nbytes
        header[name] = {"dtype": ENCODINGS[str(values.dtype)], "shape": list(values.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values()))
    return path


def exact_logits(shape: Llama, sources: Mapping[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits of every position of one sequence, [tokens, vocabulary], in float64."""
    weights = {name: torch.from_numpy(values).double() for name, values in sources.items()}
    count, dim, group = len(tokens), shape.head_dim, shape.heads // shape.kv_heads
    frequencies = 10000.0 ** (-torch.arange(dim // 2).double() * 2 / dim)
    angles = (torch.arange(count).double()[:, None] * frequencies).repeat(1, 2)[:, None, :]
    hidden_pairs = torch.ones(count, count).triu(1).bool()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    def rope(x: torch.Tensor) -> torch.Tensor:
        turned = torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1)
        return x * angles.cos() + turned * angles.sin()

    x = weights["embed"][tokens]
    for i in range(shape.layers):
        w = {name.split(".")[1]: value for name, value in weights.items() if name.startswith(f"l{i}.")}
        y = norm(x, w["in_norm"])
        q, k, v = ((y @ w[name].t()).view(count, -1, dim) for name in "qkv")
        q, k = rope(q).transpose(0, 1), rope(k).repeat_interleave(group, 1).transpose(0, 1)
        scores = (q @ k.transpose(1, 2) * dim**-0.5).masked_fill(hidden_pairs, -torch.inf).softmax(-1)
        attended = (scores @ v.repeat_interleave(group, 1).transpose(0, 1)).transpose(0, 1).reshape(count, -1)
        x = x + attended @ w["o"].t()
        y = norm(x, w["post_norm"])
        x = x + (torch.nn.functional.silu(y @ w["gate"].t()) * (y @ w["up"].t())) @ w["down"].t()
    return (norm(x, weights["norm"]) @ weights["embed"].t()).numpy()
