"""What the manifest and programs may not say; each refusal names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.integrity import check_manifest, check_program, ranks
from tokenspeed.plans.program import Bucket, Buffer, Call, Program, Repeat, View
from tokenspeed.plans.recipe import (
    Addend,
    Blocks,
    Cast,
    Concat,
    Dequantize,
    Part,
    Recipe,
    Slice,
    Source,
    Stack,
    Stretch,
    Transpose,
    UnpermuteRope,
)
from tokenspeed.plans.recipe_shapes import infer
from tokenspeed.plans.schema import Entry, KernelLibrary, KvGroup, Manifest
from tokenspeed.plans.weight_integrity import _check_parts
from tokenspeed.tests.plans.sample_plan import HIDDEN, sample_entries, sample_manifest, sample_program, sample_sampler

replace = msgspec.structs.replace


def sound_manifest() -> Manifest:
    sizes = {name: len(data) for name, data in sample_entries().items() if isinstance(data, bytes)}
    entries = tuple(Entry(name=name, size=sizes[name], sha256="0" * 64) for name in sorted(sizes))
    return sample_manifest(entries=entries)


def edited(value: Any, path: str, change: Any) -> Any:
    """`value` with the field at a dotted path replaced (numbers index tuples); `change` may be a function of the old value."""
    head, _, rest = path.partition(".")
    old = value[int(head)] if head.isdigit() else value[head] if isinstance(value, dict) else getattr(value, head)
    new = edited(old, rest, change) if rest else change(old) if callable(change) else change
    if head.isdigit():
        return (*value[: int(head)], new, *value[int(head) + 1 :])
    return value | {head: new} if isinstance(value, dict) else replace(value, **{head: new})


def test_the_sample_is_sound() -> None:
    manifest = sound_manifest()
    check_manifest(manifest)
    check_program(manifest, sample_program())
    check_program(manifest, sample_sampler())
    assert ranks(manifest) == 1


MANIFEST_CASES: list[tuple[str, Any, str]] = [
    ("format", (1, 9), "format"),
    ("functions_version", 0, "functions_version"),
    ("entries", lambda entries: entries[::-1], "entries"),
    ("entries", lambda entries: (*entries, entries[-1]), "entries"),
    ("entries.0.name", "../x", "entries"),
    ("entries.0.size", -1, "entries, constants/inv_freq: size"),
    ("entries.0.sha256", "F" * 64, "entries, constants/inv_freq: sha256"),
    ("target.name", "", "target"),
    ("mesh.0.size", 0, "mesh, tp: size"),
    ("mesh.0.size", 2, "programs"),
    ("model.vocabulary", 0, "model.vocabulary"),
    ("model.layers", 1 << 40, "model.layers"),
    ("model.end_tokens", (96,), "model.end_tokens"),
    ("model.begin_token", -1, "model.begin_token"),
    ("model.begin_token", None, "model.add_begin_token"),
    ("programs.0.entry", "programs/absent", "programs, step: entry"),
    ("programs.0.rank", 1, "programs, step: rank"),
    ("programs.0.others", (1,), "programs, step: rank"),
    ("programs.0.others", (0,), "programs, step: others"),
    ("programs.0.role", "sample", "programs"),
    ("programs.0.max_rows", 4, "programs, step, rank 0: max_rows"),
    ("programs.1.name", "step", "programs"),
    ("step_inputs.0.dtype", "i64", "step_inputs"),
    ("step_inputs.0.shape", (), "step_inputs, token_ids: shape"),
    ("step_inputs.0.shape", (4,), "step_inputs"),
    ("step_inputs", (), "step_inputs"),
    ("step_inputs", lambda inputs: (*inputs, replace(inputs[0], name="secret")), "step_inputs"),
    ("model.max_context", 129, "step_inputs, block_tables: shape"),
    ("schedule.max_rows", 16, "step_inputs, token_ids: shape"),
    ("schedule.max_sequences", 5, "step_inputs, logit_rows: shape"),
    ("schedule.max_decode_rows", 9, "schedule.max_decode_rows"),
    ("schedule.prefill_chunk", 0, "schedule.prefill_chunk"),
    ("schedule.max_waiting", -1, "schedule.max_waiting"),
    ("slot_buffers.0.name", "token_ids", "names of operands"),
    ("slot_buffers.0.name", "layers.1.qkv", "names of operands"),
    ("slot_buffers.0.name", "kv.k.1", "names of operands"),
    ("slot_buffers.0.shape", ("rows",), "slot_buffers, temperature: shape"),
    ("sources.0.shape", (96, 0), "sources, embed.weight: shape"),
    ("sources.0.shape", (1 << 30, 1 << 30), "sources, embed.weight: shape"),
    ("sources.0.bytes", 5, "sources, embed.weight: bytes"),
    ("sources.3.shape", (32, 33), "sources, blk.0.v: shape"),
    ("sources.0.digest", "0" * 64, "sources"),
    ("sources.0.chunks", ("0" * 64,), "sources, embed.weight: chunks"),
    ("sources.0.entry", "weights/absent", "sources, embed.weight: entry"),
    ("sources.0.entry", "ir/model.mlir", "sources, embed.weight: entry"),
    ("sources.1.name", "embed.weight", "sources"),
    ("weights.0.shape", (96, 16), "weights, embedding: bytes"),
    ("weights.0.bytes", 1, "weights, embedding: bytes"),
    ("weights.0.dtype", "i32", "weights, embedding: recipe"),
    ("weights.0.recipe", Source("absent"), "weights, embedding: recipe"),
    ("weights.0.recipe", Transpose(Source("embed.weight"), (1, 0)), "weights, embedding: recipe"),
    ("weights.0.layers", (0,), "weights, embedding: layers"),
    ("weights.1.layers", (), "weights, layers.{i}.qkv: layers"),
    ("weights.1.layers", (1, 0), "weights, layers.{i}.qkv: layers"),
    ("weights.1.layers", (0, 2), "weights, layers.{i}.qkv: layers"),
    ("sources.5.shape", (16, 64), "weights, layers.1.qkv: recipe"),
    ("sources.6.encoding", "Q4_0", "sources, blk.1.v: bytes"),
    ("constants.0.shape", (5,), "constants, inv_freq: entry"),
    ("constants.0.entry", "absent", "constants, inv_freq: entry"),
    ("kv.identity_tokens", 128, "kv.identity_tokens"),
    ("kv.block_tokens", 0, "kv.block_tokens"),
    ("kv.block_tokens", 24, "kv.block_tokens"),
    ("kv.blocks", 0, "kv.blocks"),
    ("kv.host_blocks", -1, "kv.host_blocks"),
    ("kv.host_blocks", 4, "performance.rates"),
    ("kv.bytes_per_block", 1, "kv.bytes_per_block"),
    ("kv.compatibility", "", "kv.compatibility"),
    ("kv.groups.0.kind", "latent", "kv.groups, all: heads"),
    ("kv.groups.0.window", 0, "kv.groups, all: window"),
    ("kv.groups.0.layers", (0, 4096), "kv.groups, all: layers"),
    ("kv.groups", lambda groups: (*groups, replace(groups[0], name="again")), "names of operands"),
    ("memory.kv", lambda size: size + 64, "memory.kv"),
    ("memory.weights", lambda size: size - 1, "memory.weights"),
    ("memory.inputs", lambda size: size + 4096, "memory.inputs"),
    ("memory.slots", 0, "memory.slots"),
    ("memory.constants", 1, "memory.constants"),
    ("memory.overhead", -1, "memory.overhead"),
    ("performance.rates", {}, "performance.rates"),
    ("performance.rates.compute.value", 0.0, "performance.rates.compute"),
    ("performance.step_costs", (), "performance.step_costs"),
    ("performance.step_costs", lambda costs: costs[::-1], "performance.step_costs"),
    ("performance.step_costs.0.flops", -1.0, "performance.step_costs, 1 rows"),
    ("performance.step_costs.0.instructions", 10**400, "performance.step_costs, 1 rows: instructions"),
    ("performance.step_costs.0.attention_share", 0.0, "performance.step_costs, 1 rows: attention_share"),
    ("performance.step_costs.0.products_share", 1.5, "performance.step_costs, 1 rows: products_share"),
    ("performance.step_costs.0.attention_rows", -1.0, "performance.step_costs, 1 rows"),
    ("performance.predictions.ttft_seconds", float("nan"), "performance.predictions"),
    ("tokenizer.entry", "absent", "tokenizer.entry"),
    ("tokenizer.chat_template_entry", "absent", "tokenizer.chat_template_entry"),
    ("goldens.0.entry", "absent", "goldens, layer: entry"),
]


@pytest.mark.parametrize(("path", "change", "where"), MANIFEST_CASES)
def test_manifest_contradictions(path: str, change: Any, where: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_manifest(edited(sound_manifest(), path, change))
    assert caught.value.where == where


Body = tuple[Call | Repeat, ...]


Names = tuple[str, ...]


def with_call(inputs: Names = ("token_ids",), outputs: Names = ("hidden",), function: str = "copy") -> Callable[[Body], Body]:
    return lambda body: (*body, Call(function, inputs, outputs))


def with_repeat(first: int, count: int, stride: int, *inputs: str) -> Callable[[Body], Body]:
    return lambda body: (*body, Repeat(first, count, stride, (Call("copy", inputs, ("hidden",)),)))


STEP8 = "program step, bucket of 8 rows"
PROGRAM_CASES: list[tuple[str, Any, str | None]] = [
    ("name", "other", "program other"),
    ("rank", 1, "program step: rank"),
    ("buffers.0.name", "logits", "program step: buffers and views"),
    ("buffers.0.shape", ("rows", -1), "program step, hidden: shape"),
    ("buffers.0.shape", ("rows", 1 << 60), "program step, hidden: shape"),
    ("buffers.0.shape", ("rows", 1 << 50), "program step, bucket of 1 rows, hidden: offset"),
    ("views.0.base", "q", "program step, q: base"),
    ("views.0.base", "token_ids", "program step, q: base"),
    ("views.0.strides", (96,), "program step, q: strides"),
    ("views.0.strides", (96, -1), "program step, q: strides"),
    ("views.0.offset", -1, "program step, q: offset"),
    ("views.2.offset", 65, "program step, bucket of 1 rows, v"),
    ("views.0.strides", (97, 1), None),
    ("views.2.strides", (97, 1), f"{STEP8}, v"),
    ("views.0.shape", ("rows", 97), "program step, bucket of 1 rows, q"),
    ("buckets", (), "program step: buckets"),
    ("buckets", lambda buckets: buckets[::-1], "program step: buckets"),
    ("buckets", lambda buckets: buckets[:1], "program step: buckets"),
    ("buckets.1.rows", 9, "program step, bucket of 9 rows: rows"),
    ("buckets.1.logit_rows", 5, f"{STEP8}: logit_rows"),
    ("buckets.1.offsets", (0, 1024), f"{STEP8}: offsets"),
    ("buckets.1.offsets", (0, 1024, 32), f"{STEP8}, logits: offset"),
    ("buckets.1.offsets", (-64, 1024, 4096), f"{STEP8}, hidden: offset"),
    ("buckets.1.offsets", (0, 1024, 4160), f"{STEP8}, logits: offset"),
    ("buckets.1.arena_bytes", 8256, f"{STEP8}: arena_bytes"),
    ("body", with_call(inputs=("absent",)), "program step, instruction 5 (copy): inputs"),
    ("body", with_call(inputs=("layers.{i}.qkv",)), "program step, instruction 5 (copy): inputs"),
    ("body", with_call(inputs=("layers.2.qkv",)), "program step, instruction 5 (copy): inputs"),
    ("body", with_call(inputs=("layers.1.qkv", "kv.v.1")), None),
    ("body", with_call(inputs=("kv.k.2",)), "program step, instruction 5 (copy): inputs"),
    ("body", with_call(outputs=()), "program step, instruction 5 (copy): outputs"),
    ("body", with_call(outputs=("embedding",)), "program step, instruction 5 (copy): outputs"),
    ("body", with_call(outputs=("token_ids",)), "program step, instruction 5 (copy): outputs"),
    ("body", with_call(outputs=("inv_freq",)), "program step, instruction 5 (copy): outputs"),
    ("body", with_call(outputs=("temperature",)), None),
    ("body", with_call(function="os.system('x')"), "program step, instruction 5 (os.system('x'))"),
    ("body", with_repeat(0, 1, 1, "layers.{i+1}.qkv"), None),
    ("body", with_repeat(0, 2, 1, "layers.{i+1}.qkv"), "program step, instruction 5 (copy): inputs"),
    ("body", with_repeat(1, 2, 1, "hidden"), "program step, repeat from layer 1"),
    ("body", with_repeat(0, 2, 1 << 60, "hidden"), "program step, repeat from layer 0: stride"),
    ("body", with_repeat(0, 0, 1, "hidden"), "program step, repeat from layer 0: count"),
    ("body", with_repeat(-1, 1, 1, "hidden"), "program step, repeat from layer -1: first"),
    ("body", with_repeat(0, 1 << 50, 1, "hidden"), "program step: body"),
]


@pytest.mark.parametrize(("path", "change", "where"), PROGRAM_CASES)
def test_program_contradictions(path: str, change: Any, where: str | None) -> None:
    program: Program = edited(sample_program(), path, change)
    if where is None:
        if path == "views.0.strides":  # still inside at 8 rows: q ends 64 elements before the buffer does
            assert 7 * 97 + HIDDEN <= 8 * 96
        check_program(sound_manifest(), program)
        return
    with pytest.raises(PlanError) as caught:
        check_program(sound_manifest(), program)
    assert caught.value.where == where


LIBRARY = KernelLibrary(entry="kernels/kernels.so", interface=1, kernels=("linear",), compiler="g++ 12")


def with_kernels(library: KernelLibrary | None = LIBRARY) -> Manifest:
    manifest = sound_manifest()
    entries = (*manifest.entries, Entry(name="kernels/kernels.so", size=1, sha256="0" * 64))
    return replace(manifest, kernels=library, entries=tuple(sorted(entries, key=lambda entry: entry.name)))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"entry": "kernels/other.so"}, "kernels.entry"),
        ({"entry": "decisions.json"}, "kernels.entry"),
        ({"interface": 0}, "kernels.interface"),
        ({"kernels": ("linear", "linear")}, "kernels.kernels"),
    ],
)
def test_kernel_library_contradictions(changes: dict[str, Any], where: str) -> None:
    check_manifest(with_kernels())
    with pytest.raises(PlanError) as refused:
        check_manifest(with_kernels(replace(LIBRARY, **changes)))
    assert refused.value.where == where


def test_native_calls_must_be_kernels_of_the_library() -> None:
    program = edited(sample_program(), "body.0.function", "native.linear")
    check_program(with_kernels(), program)
    for manifest in (with_kernels(None), with_kernels(replace(LIBRARY, kernels=("add",)))):
        with pytest.raises(PlanError, match="contradicts itself") as refused:
            check_program(manifest, program)
        assert "native.linear" in refused.value.where


def test_head_major_blocks_are_for_kernels_of_the_library_alone() -> None:
    manifest = with_kernels(replace(LIBRARY, kernels=("kv_write", "attention")))
    head_major = edited(manifest, "kv.groups.0.block_order", "head_major")
    check_manifest(head_major)
    ours = sample_program()
    for at, name in ((1, "kv_write"), (2, "attention")):
        with pytest.raises(PlanError, match="head_major") as refused:
            check_program(head_major, ours)
        assert refused.value.where == f"program step, {name}"
        ours = edited(ours, f"body.1.body.{at}.function", f"native.{name}")
    check_program(head_major, ours)
    check_program(manifest, sample_program())


def test_latents_have_one_block_order() -> None:
    group = KvGroup(name="latent", kind="latent", layers=(0, 1), heads=1, head_dim=64, dtype="f32", block_order="head_major")
    with pytest.raises(PlanError) as refused:
        check_manifest(edited(sound_manifest(), "kv.groups", (group,)))
    assert refused.value.where == "kv.groups, latent: block_order"


def test_block_types_need_panels() -> None:
    manifest = with_kernels()
    at = next(place for place, weight in enumerate(manifest.weights) if len(weight.shape) == 2)
    weight = manifest.weights[at]
    for changes in ({"dtype": "q8_0"}, {"prepack": "panel", "bytes": 1}, {"dtype": "q4_k", "prepack": "panel"}):
        weights = (*manifest.weights[:at], replace(weight, **changes), *manifest.weights[at + 1 :])
        with pytest.raises(PlanError) as refused:
            check_manifest(replace(manifest, weights=weights))
        assert weight.name in refused.value.where


def test_a_view_of_no_rows_is_empty_and_sound() -> None:
    program = sample_program()
    view = View("last", "logits", ("logit_rows", 96), 0, (96, 1))
    bucket = Bucket(1, 0, program.buckets[0].offsets, program.buckets[0].arena_bytes)
    check_program(sound_manifest(), replace(program, views=(*program.views, view), buckets=(bucket, *program.buckets)))


def test_a_static_buffer_is_sound() -> None:
    program = sample_program()
    buckets = tuple(replace(bucket, offsets=(*bucket.offsets, 0)) for bucket in program.buckets)
    check_program(sound_manifest(), replace(program, buffers=(*program.buffers, Buffer("fixed", "u8", (64,))), buckets=buckets))


SHAPES = {"a": ((4, 6), "F32"), "b": ((2, 6), "F32"), "h": ((4, 6), "BF16"), "e": ((4, 32), "Q4_1")}


def lookup(name: str) -> tuple[tuple[int, ...], str]:
    if name not in SHAPES:
        raise ValueError(f"no source {name!r}")
    return SHAPES[name]


@pytest.mark.parametrize(
    ("recipe", "result"),
    [
        (Source("a"), ((4, 6), "f32")),
        (Source("h"), ((4, 6), "bf16")),
        (Slice(Source("a"), 0, 1, 3), ((2, 6), "f32")),
        (Slice(Source("a"), 1, 1, 6, 2), ((4, 3), "f32")),
        (Stack((Source("a"), Source("a"), Source("a")), 1), ((4, 3, 6), "f32")),
        (Concat((Stack((Source("a"),), 0), Stack((Source("a"),), 0)), 1), ((1, 8, 6), "f32")),
        (Stack((Blocks(Source("e")), Blocks(Source("e"))), 0), ((2, 4, 32), "q4_1")),
        (Cast(Source("a"), "bf16"), ((4, 6), "bf16")),
        (Concat((Source("a"), Source("b")), 0), ((6, 6), "f32")),
        (Transpose(Source("a"), (1, 0)), ((6, 4), "f32")),
        (UnpermuteRope(Source("a"), 2), ((4, 6), "f32")),
        (Dequantize(Source("e")), ((4, 32), "f32")),
        (Part(Source("a"), "tp", 1, (Stretch(0, 6, 3),)), ((4, 3), "f32")),
        (Part(Source("a"), "tp", 0, (Stretch(0, 1, 1), Stretch(1, 4, 2, 2))), ((3, 6), "f32")),
        (Part(Blocks(Source("e")), "tp", 0, (Stretch(0, 4, 2),)), ((2, 32), "q4_1")),
        (Addend(Source("a"), "tp"), ((4, 6), "f32")),
    ],
)
def test_recipes_that_can_be_done(recipe: Recipe, result: Any) -> None:
    assert infer(recipe, lookup) == result


@pytest.mark.parametrize(
    "recipe",
    [
        Source("absent"),
        Source("e"),
        Slice(Source("a"), 2, 0, 1),
        Slice(Source("a"), -1, 0, 1),
        Slice(Source("a"), 0, 3, 3),
        Slice(Source("a"), 0, 0, 5),
        Slice(Source("a"), 0, 0, 4, 0),
        Stack((), 0),
        Stack((Source("a"), Source("b")), 0),
        Stack((Source("a"), Source("h")), 0),
        Stack((Source("a"), Source("a")), 3),
        Stack((Blocks(Source("e")), Blocks(Source("e"))), 2),
        Cast(Source("a"), "f8"),
        Concat((), 0),
        Concat((Source("a"), Source("b")), 1),
        Concat((Source("a"), Source("h")), 0),
        Transpose(Source("a"), (0, 0)),
        UnpermuteRope(Source("a"), 3),
        UnpermuteRope(Source("a"), 0),
        Part(Source("a"), "tp", 2, (Stretch(0, 6, 3),)),
        Part(Source("a"), "tp", 1, (Stretch(0, 5, 3),)),
        Part(Source("a"), "tp", 1, (Stretch(0, 4, 2), Stretch(3, 6, 2))),
        Part(Source("a"), "tp", 1, (Stretch(0, 6, 0),)),
        Part(Source("a"), "tp", 1, (Stretch(0, 6, 3, 0),)),
        Part(Source("a"), "tp", 1, ()),
        Part(Blocks(Source("e")), "tp", 1, (Stretch(0, 32, 16),)),
        Addend(Blocks(Source("e")), "tp"),
    ],
)
def test_recipes_that_cannot_be_done(recipe: Recipe) -> None:
    with pytest.raises(ValueError):
        infer(recipe, lookup)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Part(Source("embed.weight"), "ep", 0, (Stretch(0, 96, 96),)), "an axis of the mesh: tp"),
        (Addend(Source("embed.weight"), "dp"), "an axis of the mesh: tp"),
        (Part(Source("embed.weight"), "tp", 0, (Stretch(0, 96, 96, 2),)), "copies that divide 1 ranks"),
        (Part(Source("embed.weight"), "tp", 0, (Stretch(0, 48, 48), Stretch(48, 96, 49))), "48 of 48 entries"),
    ],
)
def test_parts_that_are_not_the_whole(recipe: Recipe, expected: str) -> None:
    with pytest.raises(PlanError) as refused:
        _check_parts(recipe, {"tp": 1}, "weights")
    assert expected in refused.value.expected


@given(size=st.integers(1, 60), ranks=st.integers(1, 9), copies=st.integers(1, 3))
def test_parts_of_all_ranks_are_the_whole(size: int, ranks: int, copies: int) -> None:
    """Each entry as often as there are copies, in order, whatever does not divide."""
    ranks *= copies
    stretch = Stretch(7, 7 + size, -(-size * copies // ranks), copies)
    _check_parts(Part(Source("a"), "tp", 0, (stretch,)), {"tp": ranks}, "weights")
    parts = [range(*stretch.of_rank(coordinate)) for coordinate in range(ranks)]
    assert all(len(part) <= stretch.size for part in parts)
    for copy in range(copies):
        assert [entry for part in parts[copy::copies] for entry in part] == list(range(7, 7 + size))


def test_a_recipe_too_deep_is_refused() -> None:
    recipe: Recipe = Source("embed.weight")
    for _ in range(40):
        recipe = Cast(recipe, "f32")
    with pytest.raises(PlanError, match="32 steps deep"):
        check_manifest(edited(sound_manifest(), "weights.0.recipe", recipe))
