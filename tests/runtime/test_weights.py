"""Weights: recipes, digests, refusals before a byte is read, counter weights, packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from tokenspeed.plans.counter_weights import counter_weight
from tokenspeed.plans.digests import tensor_digest
from tokenspeed.plans.errors import PlanError, WeightsError
from tokenspeed.plans.recipe import (
    Addend,
    Cast,
    Concat,
    Dequantize,
    Part,
    Quantize,
    Recipe,
    Slice,
    Source,
    Stack,
    Stretch,
    Transpose,
    UnpermuteRope,
)
from tokenspeed.plans.schema import SourceTensor, Weight
from tokenspeed.runtime import dummy_weights
from tokenspeed.runtime.dummy_weights import counter_array, dummy_array
from tokenspeed.runtime.host_arrays import HostArray, LibraryArray
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate
from tokenspeed.runtime.weights import Loaded, load_weights

from .llama_plan import Llama, MemoryPlan, plan_of, random_sources, write_safetensors

SHAPE = Llama(linear="linear_onednn")
SOURCES = random_sources(SHAPE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("weights") / "model.safetensors", SOURCES)


def stored(name: str, values: np.ndarray, encoding: str, shape: tuple[int, ...] | None = None) -> Stored:
    data = values.tobytes()
    source = SourceTensor(name=name, encoding=encoding, shape=shape or values.shape, bytes=len(data))
    return Stored(source, memoryview(data))


def bound(plan: MemoryPlan, **digests: str) -> MemoryPlan:
    """The plan bound to SOURCES, some digests replaced."""
    made = {name: tensor_digest([values.tobytes()]) for name, values in SOURCES.items()} | digests
    sources = tuple(msgspec.structs.replace(source, digest=made[source.name]) for source in plan.manifest.sources)
    return MemoryPlan(msgspec.structs.replace(plan.manifest, sources=sources), plan.programs, plan.entries)


def with_sources(plan: MemoryPlan, name: str, /, **changes: Any) -> MemoryPlan:
    sources = tuple(
        msgspec.structs.replace(source, **changes) if source.name == name else source for source in plan.manifest.sources
    )
    return MemoryPlan(msgspec.structs.replace(plan.manifest, sources=sources), plan.programs, plan.entries)


def array(loaded: Loaded) -> np.ndarray:
    assert isinstance(loaded, HostArray)
    return loaded.data


def test_a_checkpoint_gives_every_instance_and_progress(checkpoint: Path) -> None:
    progress: list[tuple[int, int]] = []
    plan = bound(plan_of(SHAPE))
    loaded = load_weights(plan, str(checkpoint), progress=lambda done, total: progress.append((done, total)))
    assert len(loaded) == 3 + 6 * SHAPE.layers
    total = sum(weight.bytes * max(1, len(weight.layers)) for weight in plan.manifest.weights)
    assert progress[-1] == (total, total) and len(progress) == len(loaded)
    assert np.array_equal(array(loaded["embedding"]), SOURCES["embed"])
    merged = np.concatenate([SOURCES[f"l1.{part}"] for part in "qkv"])
    packed = loaded["w1.qkv"]
    assert isinstance(packed, LibraryArray) and packed.tensor.is_mkldnn
    assert torch.equal(packed.tensor.to_dense(), torch.from_numpy(merged))


def test_needed_weights_alone_are_loaded(checkpoint: Path) -> None:
    assert set(load_weights(plan_of(SHAPE), str(checkpoint), {"w1.o", "kv.k.0", "final_norm"})) == {"w1.o", "final_norm"}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("l0.q", {"encoding": "BF16"}, "BF16"),
        ("l1.up", {"shape": (47, 32)}, "47"),
        ("norm", {"bytes": 64}, "64 bytes"),
        ("norm", {"name": "model.norm"}, "model.norm"),
    ],
)
def test_other_weights_are_refused_before_a_byte_is_read(
    checkpoint: Path, name: str, changes: dict[str, Any], expected: str
) -> None:
    plan = with_sources(plan_of(SHAPE), name, **changes)
    if "name" in changes:
        weights = tuple(
            msgspec.structs.replace(weight, recipe=Source("model.norm")) if weight.name == "final_norm" else weight
            for weight in plan.manifest.weights
        )
        plan = MemoryPlan(msgspec.structs.replace(plan.manifest, weights=weights), plan.programs, plan.entries)
    with (
        mock.patch("tokenspeed.runtime.weights.evaluate", side_effect=AssertionError("read")),
        pytest.raises(WeightsError) as refusal,
    ):
        load_weights(plan, str(checkpoint))
    error = refusal.value
    assert expected in error.expected + error.where and error.got and error.fix


def test_a_wrong_digest_names_the_tensor(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"l1\.o") as refusal:
        load_weights(bound(plan_of(SHAPE), **{"l1.o": "0" * 64}), str(checkpoint))
    assert refusal.value.got == tensor_digest([SOURCES["l1.o"].tobytes()])


def test_bundled_weights_come_from_the_plan() -> None:
    plan = plan_of(SHAPE)
    sources = tuple(msgspec.structs.replace(source, entry=f"weights/{source.name}") for source in plan.manifest.sources)
    entries = plan.entries | {f"weights/{name}": values.tobytes() for name, values in SOURCES.items()}
    bundled = MemoryPlan(msgspec.structs.replace(plan.manifest, sources=sources), plan.programs, entries)
    loaded = load_weights(bound(bundled), None)
    assert np.array_equal(array(loaded["final_norm"]), SOURCES["norm"])
    entries["weights/norm"] = b"short"
    with pytest.raises(PlanError, match="wrong size"):
        load_weights(bundled, None)


def test_no_weights_at_all_is_told() -> None:
    with pytest.raises(WeightsError, match="--weights PATH"):
        load_weights(plan_of(SHAPE), None)


def test_counter_and_dummy_weights() -> None:
    plan = plan_of(SHAPE)
    loaded = load_weights(plan, "counter")
    assert np.array_equal(array(loaded["w1.in_norm"]), counter_weight("w1.in_norm", (32,)))
    assert np.array_equal(array(loaded["embedding"]), counter_weight("embedding", (96, 32)))
    with mock.patch.object(dummy_weights, "_BLOCK_ELEMENTS", 96):
        exact = torch.from_numpy(counter_weight("w", (10, 32)))
        assert torch.equal(counter_array("w", (10, 32), "f32").tensor, exact)
        repeated = dummy_array("w", (10, 32), "bf16").tensor
        assert torch.equal(repeated, exact[:3].repeat(4, 1)[:10].bfloat16())


VALUES = np.arange(48, dtype=np.float32).reshape(8, 6)
PLAIN = {"a": stored("a", VALUES, "F32"), "l3.a": stored("l3.a", -VALUES, "F32")}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Source("a"), VALUES),
        (Slice(Source("a"), 1, 2, 5), VALUES[:, 2:5]),
        (Slice(Source("a"), 1, 1, 6, 2), VALUES[:, 1:6:2]),
        (Slice(Source("a"), 0, 0, 7, 3), VALUES[0:7:3]),
        (Stack((Source("a"), Slice(Source("a"), 0, 0, 8)), 1), np.stack([VALUES, VALUES], 1)),
        (
            Cast(Concat((Stack((Source("a"), Source("a")), 0), Stack((Source("a"), Source("l3.a")), 0)), 1), "i32"),
            np.concatenate([np.stack([VALUES, VALUES]), np.stack([VALUES, -VALUES])], 1).astype(np.int32),
        ),
        (Cast(Source("a"), "i32"), VALUES.astype(np.int32)),
        (Concat((Source("a"), Slice(Source("a"), 0, 0, 2)), 0), np.concatenate([VALUES, VALUES[:2]])),
        (Transpose(Source("a"), (1, 0)), VALUES.T),
        (UnpermuteRope(Source("a"), 2), VALUES[[0, 2, 1, 3, 4, 6, 5, 7]]),
        (Dequantize(Source("a")), VALUES),
    ],
)
def test_recipes(recipe: Recipe, expected: np.ndarray) -> None:
    found = evaluate(recipe, PLAIN, None, "w")
    assert np.array_equal(found.data, expected) and str(found.data.dtype) == str(expected.dtype)


def test_templates_name_the_layer() -> None:
    assert np.array_equal(evaluate(Source("l{i+1}.a"), PLAIN, 2, "w").data, -VALUES)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16])
def test_quantised_sources_are_decoded(kind: GGMLQuantizationType) -> None:
    values = np.random.default_rng(0).standard_normal((1500, 64)).astype(np.float32)
    encoded = quantize(values, kind)
    found = evaluate(Dequantize(Source("q")), {"q": stored("q", encoded, kind.name, (1500, 64))}, None, "w")
    assert np.abs(found.data - values).max() < {"Q8_0": 0.02, "Q4_1": 0.25, "BF16": 0.02}[kind.name]


@pytest.mark.parametrize(
    "recipe",
    [
        Source("missing"),
        Source("q"),
        Slice(Source("a"), 0, 4, 9),
        Slice(Source("a"), 7, 0, 1),
        Slice(Source("a"), 0, 4, 2),
        Slice(Source("a"), 0, 0, 4, 0),
        Stack((), 0),
        Stack((Source("a"), Slice(Source("a"), 0, 0, 2)), 0),
        Cast(Source("a"), "f8"),
        Concat((), 0),
        Concat((Source("a"), Slice(Source("a"), 1, 0, 2)), 0),
        Transpose(Source("a"), (0, 0)),
        UnpermuteRope(Source("a"), 3),
        UnpermuteRope(Source("a"), 0),
    ],
)
def test_recipes_that_cannot_be_done_are_refused(recipe: Recipe) -> None:
    given = PLAIN | {"q": stored("q", np.zeros(80, np.uint8), "Q4_1", (4, 32))}
    with pytest.raises(PlanError, match="layers"):
        evaluate(recipe, given, None, "layers.0.w")


def test_a_recipe_that_gives_another_shape_is_refused(checkpoint: Path) -> None:
    plan = plan_of(SHAPE)
    wrong = Weight(name="final_norm", shape=(16,), dtype="f32", bytes=64, recipe=Source("norm"))
    plan = MemoryPlan(msgspec.structs.replace(plan.manifest, weights=(wrong,)), plan.programs, plan.entries)
    with pytest.raises(PlanError, match="final_norm"):
        load_weights(plan, str(checkpoint))


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        (Concat((Cast(Source("l0.q"), "bf16"), Cast(Source("l0.k"), "bf16")), 0), "f32"),
        (Concat((Cast(Source("l0.q"), "bf16"), Cast(Cast(Source("l0.k"), "f16"), "bf16")), 0), "bf16"),
        (Cast(Source("l0.q"), "bf16"), "f32"),
        (Slice(Cast(Source("l0.q"), "bf16"), 0, 0, 16), "bf16"),
    ],
)
def test_packing_takes_values_as_they_are(checkpoint: Path, recipe: Recipe, dtype: str) -> None:
    plan, rows = plan_of(SHAPE), sum(SOURCES[name].shape[0] for name in {"l0.q", "l0.k"} if name in str(recipe))
    shape = (16 if isinstance(recipe, Slice) else rows, SOURCES["l0.q"].shape[1])
    weight = Weight(name="w", shape=shape, dtype="q8_0", bytes=1, recipe=Quantize(recipe, "q8_0"), prepack="panel")
    plan = MemoryPlan(msgspec.structs.replace(plan.manifest, weights=(weight,)), plan.programs, plan.entries)
    with mock.patch("tokenspeed.runtime.weights._panel") as panel:
        load_weights(plan, str(checkpoint))
    made = panel.call_args.args[0]
    assert (made.dtype, made.data.shape) == (dtype, shape)


def test_the_parts_of_a_rank() -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    sources = {"a": stored("a", values, "F32")}
    # two ranks share each part of the first stretch; the last part of the second ends in zeros
    cut = Part(Source("a"), "tp", 0, (Stretch(0, 4, 2, 2), Stretch(4, 10, 2)))
    expected = {0: [0, 1, 4, 5], 1: [0, 1, 6, 7], 2: [2, 3, 8, 9]}
    for coordinate, rows in expected.items():
        found = evaluate(cut, sources, None, "a", {"tp": coordinate})
        np.testing.assert_array_equal(found.data, values[rows])
    found = evaluate(cut, sources, None, "a", {"tp": 3})
    np.testing.assert_array_equal(found.data, np.concatenate([values[[2, 3]], np.zeros((2, 2), np.float32)]))


def test_a_part_of_a_sum_is_on_the_first_rank() -> None:
    values = np.arange(3, dtype=np.float32)
    sources = {"a": stored("a", values, "F32")}
    for coordinate, expected in enumerate((values, np.zeros(3, np.float32))):
        found = evaluate(Cast(Addend(Source("a"), "tp"), "f32"), sources, None, "a", {"tp": coordinate, "ep": 1})
        np.testing.assert_array_equal(found.data, expected)
