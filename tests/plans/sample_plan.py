"""A small, valid plan for tests: two layers, one templated weight, a program with views and a repeat.

The functions it names need not exist; nothing here is ever run.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import msgspec
from tokenspeed.plans.entry_source import EntryData
from tokenspeed.plans.program import Bucket, Buffer, Call, Program, Repeat, View, step_inputs
from tokenspeed.plans.recipe import Cast, Concat, Dequantize, Source, Transpose
from tokenspeed.plans.schema import (
    Constant,
    CostRow,
    Decision,
    Golden,
    KvGeometry,
    KvGroup,
    Manifest,
    MemoryPlan,
    MeshAxis,
    Model,
    Performance,
    ProgramReference,
    Provenance,
    Rate,
    Schedule,
    SourceTensor,
    Target,
    TokenizerReference,
    Weight,
)
from tokenspeed.plans.writer import write_plan

LAYERS, HIDDEN, VOCABULARY, ROWS, SEQUENCES = 2, 32, 96, 8, 4


def sample_manifest(**changes: Any) -> Manifest:
    """The sample's manifest, its `entries` empty as `write_plan` wants them; `changes` replace whole fields."""
    return msgspec.structs.replace(_manifest(), **changes)


def sample_entries() -> dict[str, EntryData]:
    return {
        "programs/step.msgpack": msgspec.msgpack.encode(sample_program()),
        "programs/sample.msgpack": msgspec.msgpack.encode(sample_sampler()),
        "constants/inv_freq": struct.pack("<4f", 1.0, 0.1, 0.01, 0.001),
        "tokenizer/tokenizer.json": b'{"version": "1.0"}',
        "tokenizer/chat_template.jinja": b"{{ messages }}",
        "golden/layer.msgpack": b"\xa6golden",
        "ir/model.mlir": b"module {}\n",
        "decisions.json": msgspec.json.encode(sample_decisions()),
    }


def write_sample_plan(path: Path, *, entries: Mapping[str, EntryData | None] | None = None, **changes: Any) -> str:
    """Write the sample plan, with `entries` added or replaced (None removes) and manifest fields replaced; returns the id."""
    merged = {name: data for name, data in (sample_entries() | dict(entries or {})).items() if data is not None}
    return write_plan(path, sample_manifest(**changes), merged)


def sample_program() -> Program:
    """Embedding, two layers in a repeat (a merged projection seen through views, KV write), logits."""
    body = (
        Call("linear", ("hidden", "layers.{i}.qkv"), ("qkv",), label="layers.{i}.attention"),
        Call("kv_write", ("k", "v", "slot_mapping"), ("kv.k.{i}", "kv.v.{i}")),
        Call("attention", ("q", "kv.k.{i}", "kv.v.{i}", "block_tables", "inv_freq"), ("hidden",), {"scale": 0.25}),
    )
    return Program(
        name="step",
        rank=0,
        buffers=(
            Buffer("hidden", "f32", ("rows", HIDDEN)),
            Buffer("qkv", "f32", ("rows", 3 * HIDDEN)),
            Buffer("logits", "f32", ("logit_rows", VOCABULARY)),
        ),
        views=tuple(View(name, "qkv", ("rows", HIDDEN), at * HIDDEN, (3 * HIDDEN, 1)) for at, name in enumerate(("q", "k", "v"))),
        body=(
            Call("embedding", ("token_ids", "embedding"), ("hidden",)),
            Repeat(0, LAYERS, 1, body),
            Call("lm_head", ("hidden", "embedding", "logit_rows"), ("logits",)),
        ),
        buckets=(_step_bucket(1, 1), _step_bucket(ROWS, SEQUENCES)),
    )


def sample_sampler() -> Program:
    buffers = (Buffer("logits", "f32", ("logit_rows", VOCABULARY)), Buffer("tokens", "i32", ("logit_rows",)))
    return Program(
        name="sample",
        rank=0,
        buffers=buffers,
        views=(),
        body=(Call("sample", ("logits", "logit_slots", "temperature"), ("tokens",)),),
        buckets=(Bucket(SEQUENCES, SEQUENCES, (0, 4 * SEQUENCES * VOCABULARY), 4 * SEQUENCES * VOCABULARY + 64),),
    )


def sample_decisions() -> tuple[Decision, ...]:
    def decision(operation: str, kernel: str, times: int, seconds: float, bound: Any) -> Decision:
        return Decision(
            program="step",
            operation=operation,
            label="layers.{i}.attention",
            times=times,
            kernel=kernel,
            reason="least predicted time",
            runner_up="plain",
            rows=ROWS,
            predicted_seconds=seconds,
            runner_up_seconds=2 * seconds,
            bound=bound,
            roofline_share=0.5,
        )

    return decision("linear", "packed", LAYERS, 1e-5, "bandwidth"), decision("attention", "tiled", LAYERS, 2e-5, "compute")


def _step_bucket(rows: int, logit_rows: int) -> Bucket:
    hidden, qkv, logits = 4 * rows * HIDDEN, 4 * rows * 3 * HIDDEN, 4 * logit_rows * VOCABULARY
    return Bucket(rows, logit_rows, (0, hidden, hidden + qkv), hidden + qkv + logits)


def _manifest() -> Manifest:
    inputs = step_inputs(ROWS, SEQUENCES, 8)
    sources, weights = _sources(), _weights()
    kv_block = 2 * LAYERS * 16 * 2 * 16 * 4
    return Manifest(
        format=(1, 0),
        minimum_runtime="0.1.0",
        functions_version=1,
        provenance=Provenance(
            compiler_version="0.1.0",
            compiler_digest="c0ffee",
            inputs={"config.json": "5e1f"},
            options={"max-context": "128"},
            libraries={"numpy": "2.0"},
        ),
        target=Target(name="cpu-avx2", kind="cpu", features=("avx2", "fma"), row_padding="exact"),
        mesh=(MeshAxis(name="tp", size=1),),
        model=Model(
            name="sample-model",
            model_type="llama",
            architecture="LlamaForCausalLM",
            vocabulary=VOCABULARY,
            hidden_size=HIDDEN,
            layers=LAYERS,
            max_context=128,
            dtype="f32",
            parameters=9216,
            end_tokens=(2,),
            begin_token=1,
            add_begin_token=True,
        ),
        programs=(
            ProgramReference(name="step", role="step", entry="programs/step.msgpack", rank=0, max_rows=ROWS),
            ProgramReference(name="sample", role="sample", entry="programs/sample.msgpack", rank=0, max_rows=SEQUENCES),
        ),
        step_inputs=inputs,
        slot_buffers=(Buffer("temperature", "f32", (SEQUENCES,)),),
        sources=sources,
        weights=weights,
        constants=(Constant(name="inv_freq", dtype="f32", shape=(4,), entry="constants/inv_freq"),),
        kv=KvGeometry(
            identity_tokens=64,
            block_tokens=16,
            blocks=32,
            bytes_per_block=kv_block,
            compatibility="ab" * 32,
            groups=(KvGroup(name="all", kind="paged", layers=tuple(range(LAYERS)), heads=2, head_dim=16, dtype="f32"),),
        ),
        schedule=Schedule(
            max_rows=ROWS,
            max_decode_rows=SEQUENCES,
            max_sequences=SEQUENCES,
            prefill_chunk=ROWS,
            max_waiting=16,
            traffic={"prompt_tokens": 64.0, "cached_fraction": 0.5, "output_tokens": 16.0, "concurrency": 4.0},
        ),
        memory=MemoryPlan(
            weights=sum(weight.bytes * (len(weight.layers) or 1) for weight in weights),
            constants=16,
            arena=8192,
            inputs=sum(prod(item.shape) * (8 if item.dtype == "i64" else 4) for item in inputs),
            slots=4 * SEQUENCES,
            kv=32 * kv_block,
            communication=0,
            workspace=1 << 20,
            overhead=1 << 20,
        ),
        performance=_performance(),
        tokenizer=TokenizerReference(
            entry="tokenizer/tokenizer.json",
            chat_template_entry="tokenizer/chat_template.jinja",
            special_tokens={"end": "</s>"},
        ),
        goldens=(Golden(name="layer", entry="golden/layer.msgpack", weights="counter"),),
        entries=(),
    )


def _sources() -> tuple[SourceTensor, ...]:
    def f32(name: str, *shape: int) -> SourceTensor:
        return SourceTensor(name=name, encoding="F32", shape=shape, bytes=4 * prod(shape))

    found = [f32("embed.weight", VOCABULARY, HIDDEN)]
    for layer in range(LAYERS):
        found += [f32(f"blk.{layer}.q", HIDDEN, HIDDEN), f32(f"blk.{layer}.k", HIDDEN, HIDDEN)]
        encoded = HIDDEN * HIDDEN // 32 * 20  # Q4_1: blocks of 32 elements in 20 bytes
        found.append(SourceTensor(name=f"blk.{layer}.v", encoding="Q4_1", shape=(HIDDEN, HIDDEN), bytes=encoded))
    return tuple(found)


def _weights() -> tuple[Weight, ...]:
    value = Transpose(Dequantize(Source("blk.{i}.v")), (1, 0))
    merged = Concat((Cast(Source("blk.{i}.q"), "f32"), Source("blk.{i}.k"), value), 0)
    return (
        Weight(
            name="embedding",
            shape=(VOCABULARY, HIDDEN),
            dtype="f32",
            bytes=4 * VOCABULARY * HIDDEN,
            recipe=Source("embed.weight"),
        ),
        Weight(
            name="layers.{i}.qkv",
            shape=(3 * HIDDEN, HIDDEN),
            dtype="f32",
            bytes=12 * HIDDEN * HIDDEN,
            recipe=merged,
            layers=tuple(range(LAYERS)),
        ),
    )


def _performance() -> Performance:
    def rate(value: float, unit: str) -> Rate:
        return Rate(value=value, unit=unit, source="test", basis="nominal")

    return Performance(
        rates={"compute": rate(1e12, "FLOP/s"), "bandwidth": rate(1e11, "B/s"), "dispatch": rate(1e-6, "s")},
        step_costs=(
            CostRow(rows=1, flops=2e6, weight_bytes=4e6, activation_bytes=1e3, instructions=10),
            CostRow(rows=8, flops=16e6, weight_bytes=4e6, activation_bytes=8e3, instructions=10),
        ),
        attention_flops_per_token_pair=256.0,
        kv_bytes_per_token=512.0,
        predictions={"ttft_seconds": 0.001, "tpot_seconds": 0.0001, "output_tokens_per_second": 1e4},
    )
