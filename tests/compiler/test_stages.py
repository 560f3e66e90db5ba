"""A whole compile of a pipeline: what stages share, what each has, and what all have in common."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.plans.errors import MemoryPlanError, UsageError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.stages import of_stage
from tokenspeed.plans.writer import write_plan

from ..tiny_models import FAMILIES, remember_traces


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(FAMILIES["llama"] | {"num_hidden_layers": 4, "architectures": ["LlamaForCausalLM"]}))
    return path


def compiled(config: Path, parallel: str, memory: int | None = None) -> Plan:
    options = CompileOptions(
        dtype="f32", max_context=128, max_sequences=8, prefill_chunk=16, parallel=parallel, kernels="library", memory=memory
    )
    with pytest.MonkeyPatch.context() as patch, context():
        remember_traces(patch)
        state = compile_model(open_model(config), options, lambda _phase, _state: None)
    assert state.manifest is not None
    write_plan(config.with_name("plan.bin"), state.manifest, state.entries)
    return Plan.open(config.with_name("plan.bin"))


def test_stages_in_the_middle_share_a_program(config: Path) -> None:
    with compiled(config, "pp=4") as plan:
        plan.verify_all()
        manifest = plan.manifest
        entries = {program.name: (program.entry, program.shift) for program in manifest.programs}
        assert entries["step.stage2"] == ("programs/step.stage1.msgpack", 1)
        assert len({entry for entry, _ in entries.values()}) == 4, "three step programs for four stages, and the sample program"
        assert [(stage.first, stage.layers) for stage in manifest.stages] == [(number, 1) for number in range(4)]
        assert {program.name: program.ranks for program in manifest.programs} == {
            "step.stage0": (0,),
            "step.stage1": (1,),
            "step.stage2": (2,),
            "step.stage3": (3,),
            "sample": (3,),
        }
        parts = [of_stage(manifest, number) for number in range(4)]
        reading = [number for number, part in enumerate(parts) if any("embed" in weight.name for weight in part.weights)]
        assert reading == [0, 3], "tied embeddings are on both ends"
        assert {part.kv.bytes_per_block * 4 for part in parts} == {manifest.kv.bytes_per_block}
        assert manifest.memory == max((part.memory for part in parts), key=lambda memory: memory.total)


def test_blocks_are_those_that_every_stage_has_room_for(config: Path) -> None:
    with compiled(config, "pp=2", memory=1 << 29) as plan:
        stages = [of_stage(plan.manifest, number) for number in range(2)]
        assert max(stage.memory.total for stage in stages) <= 1 << 29
        left = min((1 << 29) - stage.memory.total for stage in stages)
        assert left < stages[0].kv.bytes_per_block


def test_refusals(config: Path) -> None:
    with pytest.raises(UsageError, match="too few borders"):
        compiled(config, "pp=5")
    with pytest.raises(MemoryPlanError):
        compiled(config, "pp=2", memory=1 << 16)
