"""A tiny plan for a device whose layers read what was written into their KV caches; a tier of blocks on the host."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenspeed.plans.device_kernels import (
    Computed,
    Constant,
    DeviceFunction,
    DeviceKernel,
    KernelReceipt,
    Pointer,
    Variant,
    Vendor,
)
from tokenspeed.plans.host_tier import HOST_LINK
from tokenspeed.plans.program import Bucket, Buffer, Call, Program, Repeat
from tokenspeed.plans.schema import KvGeometry, KvGroup, Rate
from tokenspeed.plans.writer import write_plan

from .device_plan import (
    BLOCK_TOKENS,
    BLOCKS,
    ROWS,
    SEQUENCES,
    VOCABULARY,
    binaries,
    device_manifest,
    device_part,
    entry_name,
    sample_program,
)
from .fake_driver import MACHINES, elf_image

LAYERS, COLUMNS = 4, 8
CACHE_BLOCK_BYTES = BLOCK_TOKENS * VOCABULARY * 4
_READ = ("block_tables", "sequence_starts", "context_lengths", "counts")


def cached_program() -> Program:
    """Each layer writes its rows into both of its caches, then adds to them all that their sequence has there."""
    body = (
        Call("device.write_cache", ("hidden", "slot_mapping"), ("kv.k.{i}",)),
        Call("device.write_cache", ("hidden", "slot_mapping"), ("kv.v.{i}",)),
        Call("device.read_cache", ("kv.k.{i}", *_READ), ("hidden",)),
        Call("device.read_cache", ("kv.v.{i}", *_READ), ("hidden",)),
    )
    return Program(
        name="step",
        rank=0,
        buffers=(Buffer("logits", "f32", ("logit_rows", VOCABULARY)), Buffer("hidden", "f32", ("rows", VOCABULARY))),
        views=(),
        body=(
            Call("device.embed", ("token_ids", "embedding", "last_tokens", "row_slots"), ("hidden",)),
            Repeat(0, LAYERS, 1, body),
            Call("device.take_rows", ("hidden", "logit_rows"), ("logits",)),
        ),
        buckets=(Bucket(2, 2, (0, 512), 768), Bucket(ROWS, SEQUENCES, (0, 512), 512 + ROWS * 4 * VOCABULARY)),
    )


def write_cached_plan(path: Path, vendor: Vendor, host_blocks: int) -> Path:
    base = device_manifest(vendor)
    group = KvGroup(name="all", kind="paged", layers=tuple(range(LAYERS)), heads=1, head_dim=VOCABULARY, dtype="f32")
    per_block = 2 * LAYERS * CACHE_BLOCK_BYTES
    kv = KvGeometry(
        identity_tokens=64,
        block_tokens=BLOCK_TOKENS,
        blocks=BLOCKS,
        bytes_per_block=per_block,
        compatibility="k",
        groups=(group,),
        host_blocks=host_blocks,
    )
    part, more = device_part(vendor), [elf_image(MACHINES[vendor], 90 + at) for at in range(2)]
    counted, width = Constant("i32", BLOCK_TOKENS), Constant("i32", VOCABULARY)
    parameters = {
        "write_cache": (Pointer(0, "f32", 4), Pointer(1, "i64", 4), Pointer(2, "f32", 4), Computed("rows"), width),
        "read_cache": (
            Pointer(0, "f32", 4),
            *(Pointer(at, "i32", 4) for at in range(1, 5)),
            Pointer(5, "f32", 4),
            *(Constant("i32", COLUMNS), counted, width),
        ),
    }
    types = {"write_cache": (("f32", "i64"), ("f32",)), "read_cache": (("f32", *["i32"] * 4), ("f32",))}
    kernels = tuple(
        DeviceKernel(
            name=f"{name}.tile",
            entry=entry_name(binary, vendor),
            symbol=f"{name}_f32",
            warps=4,
            shared_bytes=0,
            parameters=parameters[name],
            grid=(1, 1, 1),
            receipt=KernelReceipt(compiler="triton", version="3.6.0", registers=16, spills=0),
        )
        for name, binary in zip(parameters, more, strict=True)
    )
    functions = tuple(
        DeviceFunction(
            name=name, inputs=types[name][0], outputs=types[name][1], variants=(Variant(most=ROWS, kernel=f"{name}.tile"),)
        )
        for name in parameters
    )
    kept = ("embed", "take_rows", "argmax")
    device = msgspec.structs.replace(
        part,
        functions=(*(item for item in part.functions if item.name in kept), *functions),
        kernels=(*(item for item in part.kernels if item.name.removesuffix(".tile") in kept), *kernels),
    )
    link = Rate(value=1e9, unit="B/s", source="test", basis="nominal")
    manifest = msgspec.structs.replace(
        base,
        kv=kv,
        device=device,
        model=msgspec.structs.replace(base.model, layers=LAYERS),
        sources=base.sources[:1],
        weights=base.weights[:1],
        memory=msgspec.structs.replace(base.memory, kv=BLOCKS * per_block, weights=base.weights[0].bytes),
        performance=msgspec.structs.replace(base.performance, rates={**base.performance.rates, HOST_LINK: link}),
    )
    entries = {
        "programs/step.msgpack": msgspec.msgpack.encode(cached_program()),
        "programs/sample.msgpack": msgspec.msgpack.encode(sample_program()),
        **{entry_name(binary, vendor): binary for binary in (*binaries(vendor), *more)},
    }
    used = {kernel.entry for kernel in device.kernels}
    write_plan(path, manifest, {name: data for name, data in entries.items() if not name.startswith("kernels/") or name in used})
    return path
