"""Acceptance of recurrent models: a compiled plan gives transformers' logits, packed, in chunks and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.integrity import check_program
from tokenspeed.plans.program import Repeat
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.goldens import replay_goldens

from .recurrent_models import RECURRENT_MODELS
from .test_families import ALL_KINDS, check, compiled
from .tiny_models import build, remember_traces, save


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Traces are remembered, and one thread does for arrays this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen3_next", "rwkv"])
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config: dict[str, Any] = RECURRENT_MODELS[name]
    model = build(config)
    directory = save(model, tmp_path / "model")
    found = compiled(directory, directory, model)
    check(found, ALL_KINDS)
    check(found, ALL_KINDS)  # the slots hold other sequences' states by now: position 0 starts anew
    kv, memory = found.plan.manifest.kv, found.plan.manifest.memory
    assert kv.states and not kv.shares_prefixes and memory.states > 0
    _tampered_bodies_are_refused(found.plan)
    outcomes = replay_goldens(found.plan, None, lambda _phase: None)
    assert outcomes and all(outcome.passed for outcome in outcomes), outcomes


def _tampered_bodies_are_refused(plan: Plan) -> None:
    """A body of other functions, and one whose states are not those of its layer."""
    manifest, program = plan.manifest, plan.program("step")
    check_program(manifest, program)
    call = next(call for call in program.calls if call.function == "recurrence")
    body = str(call.attributes["body"])
    other = msgspec.structs.replace(call, outputs=(call.outputs[0], *call.outputs[:0:-1][1:], "kv.state.0.9"))
    unknown = msgspec.structs.replace(call, attributes={"body": body.replace("aten.", "other.")})
    for wrong in (other, unknown):
        items = tuple(
            msgspec.structs.replace(item, body=tuple(wrong if inner is call else inner for inner in item.body))
            if isinstance(item, Repeat)
            else item
            for item in program.body
        )
        with pytest.raises(PlanError):
            check_program(manifest, msgspec.structs.replace(program, body=items))
