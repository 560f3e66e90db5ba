"""`--parallel auto`: every mesh is weighed, no layout beats its bound, and the best that fits is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tokenspeed.compiler import choose_mesh as choosing
from tokenspeed.compiler.choose_mesh import Setting, choose_mesh, meshes
from tokenspeed.compiler.frontends.import_aten import import_model
from tokenspeed.compiler.frontends.trace import trace
from tokenspeed.compiler.memory import COMMUNICATION
from tokenspeed.ir import module as modules
from tokenspeed.passes.partition import partition
from tokenspeed.passes.placing.costs import Prices
from tokenspeed.passes.placing.pins import Pin, Pins
from tokenspeed.passes.raise_aten import raise_aten
from tokenspeed.passes.schedule import TrafficProfile, schedule, workloads
from tokenspeed.plans.errors import MemoryPlanError
from tokenspeed.plans.explain import candidates
from tokenspeed.plans.mesh import groups_of, stages_of
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.targets.registry import find_target

MIXTURE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "head_dim": 128,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 32, "num_experts_per_tok": 4,
    "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    machine = find_target("h200")
    limits = schedule(TrafficProfile(concurrency=32), 4096, 64, 2048, whole_tiles=True)
    with modules.context():
        raised = str(raise_aten(import_model(trace(MIXTURE, "bf16", context=4096)), "qwen3_moe"))
        yield Setting(
            parse=lambda: modules.parse(raised),
            machine=machine,
            dtype="bf16",
            limits=limits,
            max_context=4096,
            prices=lambda mesh: Prices(
                machine, workloads(limits, stages_of(mesh) * groups_of(mesh)), 2048.0, machine.memory_bytes
            ),
            pins=Pins(),
            memory=machine.memory_bytes,
            stored=1.0,
            kv_dtype=None,
            native=True,
        )


def spelled(mesh: tuple[MeshAxis, ...]) -> str:
    return ",".join(f"{axis.name}={axis.size}" for axis in mesh)


def test_all_meshes_of_some_devices() -> None:
    dense = {spelled(mesh) for mesh in meshes(4, experts=False, pinned=False)}
    assert {"tp=4", "dp=2,tp=2", "dp=4"} <= dense and not any("ep" in mesh for mesh in dense)
    assert {"ep=4", "ep=2,tp=2", "dp=2,ep=2"} <= {spelled(mesh) for mesh in meshes(4, experts=True, pinned=False)}
    assert "dp=4" not in {spelled(mesh) for mesh in meshes(4, experts=False, pinned=True)}
    assert [spelled(mesh) for mesh in meshes(1, experts=True, pinned=False)] == ["tp=1"]


def test_no_layout_is_better_than_its_bound(setting: Setting) -> None:
    whole = setting.parse()
    partition(whole, choosing.ONE_RANK)
    alone = choosing._work(whole, setting)
    for mesh in meshes(4, experts=True, pinned=False):
        bound, found = choosing._bound(mesh, alone, setting), choosing._searched(mesh, setting)
        assert found.basis == "searched" and found.tokens and bound.tokens
        assert found.output_tokens_per_second <= bound.output_tokens_per_second * 1.001, spelled(mesh)
        assert found.weight_bytes >= bound.weight_bytes * 0.999 and found.tokens <= bound.tokens * 1.001, spelled(mesh)


def test_the_best_that_fits_is_taken(setting: Setting) -> None:
    mesh, weighed = choose_mesh(setting, 4)
    assert weighed[0].mesh == mesh and weighed[0].basis == "searched"
    assert {spelled(item.mesh) for item in weighed} == {spelled(each) for each in meshes(4, experts=True, pinned=False)}
    best = max(choosing._worth(item) for item in weighed if item.basis == "searched")
    assert choosing._worth(weighed[0]) >= best / 1.01
    assert all(choosing._worth(item) <= best for item in weighed if item.basis == "bound")
    assert candidates(weighed).row_count == len(weighed)


def test_what_does_not_fit_is_said(setting: Setting) -> None:
    """Two thirds of the weights, beside what every rank takes: no rank has room for a copy."""
    whole = setting.parse()
    partition(whole, choosing.ONE_RANK)
    weights = int(choosing._work(whole, setting).weights)
    small = replace(setting, memory=COMMUNICATION + setting.machine.overhead_bytes + weights * 2 // 3)
    mesh, weighed = choose_mesh(small, 4)
    assert all(axis.name != "dp" or axis.size < 4 for axis in mesh)
    assert any(item.basis == "does not fit" and "leave no room" in item.reason for item in weighed)
    with pytest.raises(MemoryPlanError, match="however it is laid out") as refused:
        choose_mesh(replace(setting, memory=1 << 30), 4)
    assert "on each of 4" in refused.value.got


def test_pins_are_about_meshes_that_cut_weights(setting: Setting) -> None:
    _, weighed = choose_mesh(replace(setting, pins=Pins((Pin("*", "cut"),))), 2)
    assert {spelled(item.mesh) for item in weighed} >= {"tp=2", "ep=2"} and "dp=2" not in map(
        spelled, [item.mesh for item in weighed]
    )
