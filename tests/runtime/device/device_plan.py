"""A tiny plan for a device: embedding, one row added per layer, logits, argmax, of kernels that the fake driver computes."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenspeed.passes.sample_program import build_sample_program
from tokenspeed.plans.device_kernels import (
    CeilDivide,
    Computed,
    Constant,
    DeviceFunction,
    DeviceKernel,
    DevicePlan,
    KernelReceipt,
    Parameter,
    Pointer,
    Variant,
    Vendor,
)
from tokenspeed.plans.program import DTYPE_BYTES, Bucket, Buffer, Call, Program, Repeat, step_inputs
from tokenspeed.plans.recipe import Source
from tokenspeed.plans.schema import (
    KvGeometry,
    KvGroup,
    Manifest,
    MemoryPlan,
    Model,
    ProgramReference,
    Schedule,
    SourceTensor,
    Target,
    Weight,
)
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.dummy_weights import counter_array

from ...plans.sample_plan import sample_manifest
from .fake_driver import MACHINES, elf_image, entry_name

VOCABULARY, LAYERS, ROWS, SEQUENCES, BLOCK_TOKENS, BLOCKS = 32, 2, 8, 4, 4, 16
_BINARIES = ("embed", "add_row", "take_rows", "argmax")


def device_manifest(vendor: Vendor, **changes: Any) -> Manifest:
    """The manifest, its `entries` empty; `changes` replace whole fields."""
    base = sample_manifest()
    _, slots = build_sample_program(VOCABULARY, SEQUENCES, SEQUENCES, "f32")
    inputs = step_inputs(ROWS, SEQUENCES, 8)
    group = KvGroup(name="all", kind="paged", layers=tuple(range(LAYERS)), heads=1, head_dim=16, dtype="f32")
    per_block = 2 * LAYERS * BLOCK_TOKENS * 16 * 4
    model = {"vocabulary": VOCABULARY, "hidden_size": VOCABULARY, "layers": LAYERS, "max_context": 32}
    memory = MemoryPlan(
        weights=4 * VOCABULARY * VOCABULARY + LAYERS * 4 * VOCABULARY,
        constants=0,
        arena=step_program().buckets[-1].arena_bytes,
        inputs=_rounded(inputs),
        slots=_rounded(slots),
        kv=BLOCKS * per_block,
        communication=0,
        workspace=0,
        overhead=1 << 20,
    )
    given: dict[str, Any] = {
        "target": Target(name="fake", kind=vendor, features=(), row_padding="bucket"),
        "model": Model(**{**msgspec.structs.asdict(base.model), **model}),
        "programs": (
            ProgramReference(name="step", role="step", entry="programs/step.msgpack", rank=0, max_rows=ROWS),
            ProgramReference(name="sample", role="sample", entry="programs/sample.msgpack", rank=0, max_rows=SEQUENCES),
        ),
        "step_inputs": inputs,
        "slot_buffers": slots,
        "sources": (
            SourceTensor(name="embed", encoding="F32", shape=(VOCABULARY, VOCABULARY), bytes=4 * VOCABULARY**2),
            *(SourceTensor(name=f"row.{at}", encoding="F32", shape=(VOCABULARY,), bytes=4 * VOCABULARY) for at in range(LAYERS)),
        ),
        "weights": _weights(),
        "constants": (),
        "kv": KvGeometry(
            identity_tokens=64,
            block_tokens=BLOCK_TOKENS,
            blocks=BLOCKS,
            bytes_per_block=per_block,
            compatibility="k",
            groups=(group,),
        ),
        "schedule": Schedule(
            max_rows=ROWS, max_decode_rows=2, max_sequences=SEQUENCES, prefill_chunk=ROWS, max_waiting=4, traffic={}
        ),
        "memory": memory,
        "tokenizer": None,
        "goldens": (),
        "device": device_part(vendor),
    }
    return msgspec.structs.replace(base, **{**given, **changes})


def device_part(vendor: Vendor, **changes: Any) -> DevicePlan:
    width = Constant("i32", VOCABULARY)
    parameters: dict[str, tuple[Parameter, ...]] = {
        "embed": (*_pointers("ifiif"), Computed("rows"), width),
        "add_row": (Pointer(1, "f32", 16), Pointer(0, "f32", 16), Computed("rows"), width),
        "take_rows": (*_pointers("fif"), Computed("logit_rows"), width),
        "argmax": (*_pointers("fiii"), Computed("logit_rows"), width),
    }
    kernels = tuple(
        DeviceKernel(
            name=f"{name}.tile",
            entry=entry_name(binaries(vendor)[at], vendor),
            symbol=f"{name}_f32",
            warps=4,
            shared_bytes=0,
            parameters=parameters[name],
            grid=(CeilDivide("rows", 4), 1, 1),
            receipt=KernelReceipt(compiler="triton", version="3.6.0", registers=16, spills=0),
        )
        for at, name in enumerate(_BINARIES)
    )
    functions = (
        _function("embed", ("i32", "f32", "i32", "i32"), ("f32",)),
        _function("add_row", ("f32",), ("f32",)),
        _function("take_rows", ("f32", "i32"), ("f32",)),
        _function("argmax", ("f32", "i32"), ("i32", "i32")),
    )
    given: dict[str, Any] = {
        "vendor": vendor,
        "architecture": "sm_90a" if vendor == "cuda" else "gfx942",
        "memory_bytes": 1 << 30,
        "graph_rows": (2,),
        "functions": functions,
        "kernels": kernels,
    }
    return DevicePlan(**{**given, **changes})


def binaries(vendor: Vendor) -> tuple[bytes, ...]:
    return tuple(elf_image(MACHINES[vendor], at) for at in range(len(_BINARIES)))


def step_program() -> Program:
    return Program(
        name="step",
        rank=0,
        buffers=(Buffer("logits", "f32", ("logit_rows", VOCABULARY)), Buffer("hidden", "f32", ("rows", VOCABULARY))),
        views=(),
        body=(
            Call("device.embed", ("token_ids", "embedding", "last_tokens", "row_slots"), ("hidden",)),
            Repeat(0, LAYERS, 1, (Call("device.add_row", ("row.{i}",), ("hidden",), label="layers.{i}"),)),
            Call("device.take_rows", ("hidden", "logit_rows"), ("logits",)),
        ),
        buckets=(Bucket(2, 2, (0, 512), 768), Bucket(ROWS, SEQUENCES, (0, 512), 512 + ROWS * 4 * VOCABULARY)),
    )


def sample_program() -> Program:
    return Program(
        name="sample",
        rank=0,
        buffers=(Buffer("logits", "f32", ("logit_rows", VOCABULARY)), Buffer("tokens", "i32", ("logit_rows",))),
        views=(),
        body=(Call("device.argmax", ("logits", "logit_slots"), ("tokens", "last_tokens")),),
        buckets=(Bucket(2, 2, (0, 512), 576), Bucket(SEQUENCES, SEQUENCES, (0, 512), 576)),
    )


def write_device_plan(path: Path, vendor: Vendor, step: Program | None = None, **changes: Any) -> Path:
    entries = {
        "programs/step.msgpack": msgspec.msgpack.encode(step or step_program()),
        "programs/sample.msgpack": msgspec.msgpack.encode(sample_program()),
        **{entry_name(binary, vendor): binary for binary in binaries(vendor)},
    }
    write_plan(path, device_manifest(vendor, **changes), entries)
    return path


def expected_logits(token: int) -> np.ndarray:
    """Of a row with that token, with counter weights."""
    table = counter_array("embedding", (VOCABULARY, VOCABULARY), "f32").data
    rows = [counter_array(f"row.{layer}", (VOCABULARY,), "f32").data for layer in range(LAYERS)]
    return table[token] + rows[0] + rows[1]


def _function(name: str, inputs: Any, outputs: Any) -> DeviceFunction:
    return DeviceFunction(name=name, inputs=inputs, outputs=outputs, variants=(Variant(most=ROWS, kernel=f"{name}.tile"),))


def _pointers(types: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(at, "f32" if kind == "f" else "i32", 4) for at, kind in enumerate(types))


def _weights() -> tuple[Weight, ...]:
    return (
        Weight(name="embedding", shape=(VOCABULARY, VOCABULARY), dtype="f32", bytes=4 * VOCABULARY**2, recipe=Source("embed")),
        Weight(
            name="row.{i}",
            shape=(VOCABULARY,),
            dtype="f32",
            bytes=4 * VOCABULARY,
            recipe=Source("row.{i}"),
            layers=tuple(range(LAYERS)),
        ),
    )


def _rounded(items: Any) -> int:
    return sum(-(-prod(item.shape) * DTYPE_BYTES[item.dtype] // 64) * 64 for item in items)
