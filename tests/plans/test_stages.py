"""Plans with stages: what a rank has of one, and every way in which stages may not fit together is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.explain_stages import stages as explained
from tokenspeed.plans.integrity import check_manifest, check_program
from tokenspeed.plans.perf_model import StepWork, predict_stages, step_seconds
from tokenspeed.plans.program import Call, Program, Repeat
from tokenspeed.plans.schema import Crossing, Manifest, MeshAxis, ProgramReference, Stage, StagePart
from tokenspeed.plans.stages import of_rank, performance_of, shifted, stage_of

from .sample_plan import HIDDEN, ROWS, SEQUENCES, sample_program
from .test_integrity import edited, sound_manifest

replace = msgspec.structs.replace
HIDDEN_STATE = Crossing(name="hidden", dtype="f32", shape=(HIDDEN,))


def staged() -> Manifest:
    """The sample with a layer on each of two ranks; the embedding is read by both."""
    whole = sound_manifest()
    layer = whole.memory.kv // 2
    embedding, of_layer = whole.weights[0].bytes, whole.weights[1].bytes
    memory = replace(whole.memory, weights=embedding + of_layer, kv=layer)
    found = [
        Stage(
            first=number,
            layers=1,
            weights=(StagePart(name="embedding"), StagePart(name="layers.{i}.qkv", layers=(number,))),
            groups=(StagePart(name="all", layers=(number,)),),
            states=(),
            receives=(HIDDEN_STATE,) if number else (),
            sends=() if number else (HIDDEN_STATE,),
            memory=memory,
            step_costs=whole.performance.step_costs,
            attention_flops_per_token_pair=128.0,
            kv_bytes_per_token=256.0,
        )
        for number in range(2)
    ]
    programs = (
        ProgramReference(name="first", role="step", entry="programs/step.msgpack", rank=0, max_rows=ROWS),
        ProgramReference(name="last", role="step", entry="programs/step.msgpack", rank=1, max_rows=ROWS),
        ProgramReference(name="sample", role="sample", entry="programs/sample.msgpack", rank=1, max_rows=SEQUENCES),
    )
    mesh = (MeshAxis(name="pp", size=2),)
    return replace(whole, mesh=mesh, programs=programs, stages=tuple(found), memory=memory, goldens=())


def step_of(number: int) -> Program:
    """The sample's step program as stage `number` has it."""
    call = Call("send", ("hidden",), (), {"axis": "pp", "value": "hidden"})
    if number:
        call = Call("receive", (), ("hidden",), {"axis": "pp", "value": "hidden"})
    sample = sample_program()
    body = tuple(replace(item, first=number, count=1) if isinstance(item, Repeat) else item for item in sample.body)
    return replace(sample, name=("first", "last")[number], rank=number, body=(call, *body) if number else (*body, call))


def test_the_sample_is_sound() -> None:
    manifest = staged()
    check_manifest(manifest)
    for number in range(2):
        check_program(manifest, step_of(number))


def test_a_rank_has_its_stage_alone() -> None:
    manifest = staged()
    assert [stage_of(manifest, rank) for rank in range(2)] == [0, 1]
    last = of_rank(manifest, 1)
    assert [weight.layers for weight in last.weights] == [(), (1,)] and last.kv.groups[0].layers == (1,)
    assert last.kv.bytes_per_block * 2 == manifest.kv.bytes_per_block and last.kv.blocks == manifest.kv.blocks
    assert [program.name for program in last.programs] == ["last", "sample"] and not last.stages
    assert of_rank(sound_manifest(), 0) == sound_manifest()
    assert [row["layers"] for row in explained(manifest)] == [1, 1] and not explained(sound_manifest())


def test_alike_stages_share_a_program() -> None:
    first = sample_program()
    later = shifted(first, "other", 3, 5)
    assert (later.name, later.rank) == ("other", 3)
    firsts = [[item.first for item in program.body if isinstance(item, Repeat)] for program in (first, later)]
    assert [at + 5 for at in firsts[0]] == firsts[1]


def test_stages_take_turns() -> None:
    """Two stages: a request takes what it takes of both, and twice as many are served."""
    manifest = staged()
    halves = [performance_of(manifest, stage) for stage in manifest.stages]
    alone = predict_stages(halves[:1], manifest.schedule, manifest.schedule.traffic)
    both = predict_stages(halves, manifest.schedule, manifest.schedule.traffic)
    rows, context = 2.0, 2 * 72.0
    assert both["tpot_seconds"] >= 2 * step_seconds(halves[0], StepWork(rows, context))
    assert both["output_tokens_per_second"] < alone["output_tokens_per_second"]


CASES: list[tuple[str, Any, str]] = [
    ("stages", lambda stages: stages[:1], "stages"),
    ("stages", (), "stages"),
    ("stages", lambda stages: stages[::-1], "stages, 0: first"),
    ("mesh", (MeshAxis(name="tp", size=2),), "stages"),
    ("mesh", (MeshAxis(name="tp", size=1), MeshAxis(name="pp", size=2)), "mesh"),
    ("stages.0.first", 1, "stages, 0: first"),
    ("stages.0.layers", 2, "stages, 1: first"),
    ("stages.1.layers", 2, "stages"),
    ("stages.0.sends", (), "stages, 0: sends"),
    ("stages.1.receives", (), "stages, 1: receives"),
    ("stages.1.receives", lambda found: (*found, *found), "stages, 1: receives"),
    ("stages.1.receives.0.shape", (HIDDEN, 2), "stages, 1: receives"),
    ("stages.1.receives.0.dtype", "bf16", "stages, 1: receives"),
    ("stages.1.receives.0.name", "other", "stages, 1: receives"),
    ("stages.1.sends", (HIDDEN_STATE,), "stages, 1: sends"),
    ("stages.0.receives", (HIDDEN_STATE,), "stages, 0: receives"),
    ("stages.0.weights", lambda parts: parts[:1], "stages: weights, layers.{i}.qkv"),
    ("stages.0.weights.1.layers", (0, 1), "stages: weights, layers.{i}.qkv"),
    ("stages.0.weights.1.layers", (), "stages: weights of stage 0, layers.{i}.qkv: layers"),
    ("stages.0.weights.0.name", "absent", "stages: weights of stage 0, absent"),
    ("stages.1.groups", (), "stages: groups, all"),
    ("stages.1.groups.0.layers", (0,), "stages: groups, all"),
    ("stages.1.memory.weights", 1, "stages, 1, memory.weights"),
    ("stages.0.memory.kv", 64, "stages, 0, memory.kv"),
    ("stages.1.step_costs.0.flops", -1.0, "stages, 1, performance.step_costs, 1 rows"),
    ("memory.workspace", 0, "memory"),
    ("programs.1.rank", 0, "programs"),
    ("programs.2.rank", 0, "programs"),
    ("programs.0.others", (1,), "programs, first: ranks"),
    ("programs.1.shift", -1, "programs, last: shift"),
]


@pytest.mark.parametrize(("path", "change", "where"), CASES)
def test_contradictions(path: str, change: Any, where: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_manifest(edited(staged(), path, change))
    assert caught.value.where == where


PROGRAM_CASES: list[tuple[int, Any]] = [
    (0, lambda body: body[:-1]),
    (0, lambda body: (*body, body[-1])),
    (1, lambda body: body[1:]),
    (1, lambda body: (*body, Call("send", ("hidden",), (), {"axis": "pp", "value": "hidden"}))),
    (0, lambda body: (*body[:-1], replace(body[-1], attributes={"axis": "tp", "value": "hidden"}))),
    (0, lambda body: (*body[:-1], replace(body[-1], attributes={"axis": "pp", "value": "other"}))),
    (0, lambda body: (*body[:-1], replace(body[-1], inputs=("logits",)))),
    (0, lambda body: (*body[:-1], replace(body[-1], inputs=("token_ids",)))),
    (0, lambda body: (*body[:-1], Repeat(0, 1, 1, (body[-1],)))),
]


@pytest.mark.parametrize(("number", "change"), PROGRAM_CASES)
def test_programs_cross_where_their_stage_says(number: int, change: Any) -> None:
    program = step_of(number)
    with pytest.raises(PlanError):
        check_program(staged(), replace(program, body=change(program.body)))


def test_programs_reach_nothing_of_another_stage() -> None:
    program = step_of(0)
    body = tuple(replace(item, first=1) if isinstance(item, Repeat) else item for item in program.body)
    with pytest.raises(PlanError) as caught:
        check_program(staged(), replace(program, body=body))
    assert "inputs" in caught.value.where
