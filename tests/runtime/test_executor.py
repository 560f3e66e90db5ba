"""The executor on a hand-made two-layer llama: against float64, however the tokens are cut into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tokenspeed.plans.errors import PlanError, TokenspeedError, UsageError
from tokenspeed.plans.program import Buffer, Call, Program, View
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.executor_interface import RowsFailed
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.host_placement import HostPlacement
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.step import CommonSize, StepBatch, empty_step
from tokenspeed.runtime.static_memory import StaticMemory

from .llama_plan import Llama, MemoryPlan, exact_logits, head_major, plan_of, random_sources, write_safetensors

BLOCKS = 8
NOTHING = np.empty(0, np.int32)
SOURCES = random_sources(Llama())
FIRST, SECOND = [5, 17, 3, 90, 41, 8, 8, 60, 2, 33, 71], [1, 2, 3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_safetensors(tmp_path_factory.mktemp("weights") / "model.safetensors", SOURCES))


def load(weights: str, **shape: Any) -> PlanExecutor:
    return load_executor(plan_of(Llama(**shape)), weights, None, lambda _phase: None)


def batch_of(*rows: Rows, all_logits: bool = False) -> StepBatch:
    return fixed_batch(rows, BLOCKS, Llama.block_tokens, all_logits)


def host_memory(executor: PlanExecutor) -> StaticMemory:
    placement = executor._placement
    assert isinstance(placement, HostPlacement)
    return placement.memory


def admit(executor: PlanExecutor, slot: int, prompt: list[int], **settings: Any) -> None:
    parameters = SamplingParameters(max_tokens=99, **{"temperature": 0.0, **settings})
    executor.admit(slot, parameters, (), np.array(prompt, np.int32), NOTHING)


@pytest.mark.parametrize("linear", ["linear", "linear_onednn"])
@pytest.mark.parametrize("row_padding", ["exact", "bucket"])
def test_packed_prefill_chunks_and_decode_give_the_same_logits(weights: str, linear: str, row_padding: str) -> None:
    first, second = (exact_logits(Llama(), SOURCES, tokens) for tokens in (FIRST, SECOND))
    executor = load(weights, linear=linear, row_padding=row_padding)
    packed = executor.logits_for(batch_of(Rows(0, 0, FIRST[:9]), Rows(1, 0, SECOND[:6])))
    assert np.abs(packed - [first[8], second[5]]).max() < 1e-5
    # the same by chunks: a decode row beside a chunk, then decode rows alone
    executor = load(weights, linear=linear, row_padding=row_padding)
    executor.logits_for(batch_of(Rows(0, 0, FIRST[:4])))
    mixed = executor.logits_for(batch_of(Rows(0, 4, FIRST[4:5]), Rows(1, 0, SECOND[:3])))
    assert np.abs(mixed - [first[4], second[2]]).max() < 1e-5
    for step in range(4):
        rows = [Rows(1, 3 + step, [SECOND[3 + step]]), Rows(0, 5 + step, [FIRST[5 + step]])]
        logits = executor.logits_for(batch_of(*rows))
        assert np.abs(logits - [second[3 + step], first[5 + step]]).max() < 1e-5


@pytest.mark.parametrize("row_padding", ["exact", "bucket"])
def test_run_feeds_sampled_tokens_back(weights: str, row_padding: str) -> None:
    executor = load(weights, row_padding=row_padding)
    admit(executor, 0, FIRST)
    admit(executor, 1, SECOND, logprobs=3)
    result = executor.run(batch_of(Rows(0, 0, FIRST), Rows(1, 0, SECOND[:5])))
    assert result.logprobs[0] is None
    made = [int(result.tokens[0])]
    for step in range(5):
        made.append(int(executor.run(batch_of(Rows(0, len(FIRST) + step, [-1]))).tokens[0]))
    for index, token in enumerate(made):
        assert token == exact_logits(Llama(), SOURCES, FIRST + made[:index])[-1].argmax()
    exact = exact_logits(Llama(), SOURCES, SECOND[:5])[-1]
    logprobs = exact - np.log(np.exp(exact).sum())
    told = result.logprobs[1]
    assert told is not None and told.token == result.tokens[1] == exact.argmax()
    assert told.logprob == pytest.approx(logprobs.max(), abs=1e-5)
    assert [token for token, _ in told.top] == np.argsort(-logprobs)[:3].tolist()


def test_a_step_without_logits_runs(weights: str) -> None:
    executor = load(weights)
    admit(executor, 0, FIRST)
    batch = batch_of(Rows(0, 0, FIRST[:8]))
    empty = np.empty(0, np.int32)
    prefill = msgspec.structs.replace(batch, logit_rows=empty, logit_slots=empty, logit_request_ids=())
    assert len(executor.run(prefill).tokens) == 0
    logits = executor.logits_for(batch_of(Rows(0, 8, FIRST[8:])))
    assert np.abs(logits[0] - exact_logits(Llama(), SOURCES, FIRST)[-1]).max() < 1e-5


@pytest.mark.parametrize("row_padding", ["exact", "bucket"])
def test_steps_may_be_padded_to_what_other_groups_have(weights: str, row_padding: str) -> None:
    """Steps without rows too; neither changes what sequences have in their caches, nor what slots sampled last."""
    executor = load(weights, row_padding=row_padding)
    admit(executor, 0, FIRST)
    first = executor.start(batch_of(Rows(0, 0, FIRST)), CommonSize(len(FIRST) + 3, 2, decode=False))()
    assert len(executor.start(empty_step(1), CommonSize(7, 2, decode=False))().tokens) == 0
    assert len(executor.start(empty_step(2), CommonSize(1, 1, decode=True))().tokens) == 0
    second = executor.start(batch_of(Rows(0, len(FIRST), [-1])), CommonSize(2, 2, decode=True))()
    made = [int(first.tokens[0]), int(second.tokens[0])]
    for index, token in enumerate(made):
        assert token == exact_logits(Llama(), SOURCES, FIRST + made[:index])[-1].argmax()


def test_steady_state_allocates_nothing_and_moves_nothing(weights: str) -> None:
    executor = load(weights)
    for slot in range(3):
        admit(executor, slot, SECOND)
    executor.run(batch_of(*[Rows(slot, 0, SECOND[:3]) for slot in range(3)]))

    def decode(position: int) -> None:
        executor.run(batch_of(*[Rows(slot, position, [-1]) for slot in range(3)]))

    def pointers() -> dict[str, int]:
        memory = host_memory(executor)
        arrays = {"arena": memory.arena, **memory.inputs, **memory.state}
        return {name: array.data.ctypes.data for name, array in arrays.items()}

    decode(3)
    before, scratch, made = pointers(), executor.scratch_bytes, len(executor._expansions._decode)
    for position in range(4, 20):
        decode(position)
    assert pointers() == before and executor.scratch_bytes == scratch
    assert len(executor._expansions._decode) == made and executor.breakdown.steps == 18


def test_rows_that_are_not_finite_fail_alone(weights: str) -> None:
    executor = load(weights)
    for slot in (0, 1):
        admit(executor, slot, SECOND)
    clean = executor.run(batch_of(Rows(0, 0, SECOND), Rows(1, 0, FIRST[:5]))).tokens
    host_memory(executor).state["kv.v.0"].data[BLOCKS:] = np.nan
    with pytest.raises(RowsFailed) as failure:
        executor.run(batch_of(Rows(0, 0, SECOND), Rows(1, 1, FIRST[1:5])))
    assert failure.value.request_ids == ("1",)
    assert failure.value.result is not None and failure.value.result.tokens[0] == clean[0]


def test_truncated_repeats_run_the_first_layer_and_load_no_other(weights: str, tmp_path: Path) -> None:
    needed = {name: values for name, values in SOURCES.items() if not name.startswith("l1.")}
    path = write_safetensors(tmp_path / "one.safetensors", needed)
    executor = load_executor(plan_of(Llama()), str(path), None, lambda _phase: None, truncate_repeats=True)
    logits = executor.logits_for(batch_of(Rows(0, 0, FIRST)))
    assert np.abs(logits[0] - exact_logits(Llama(layers=1), SOURCES, FIRST)[-1]).max() < 1e-5
    assert "kv.k.1" not in host_memory(executor).state


def test_a_step_that_no_bucket_holds_is_refused(weights: str) -> None:
    executor = load(weights, buckets=((4, 4),), max_rows=4)
    with pytest.raises(UsageError, match="larger than any bucket"):
        executor.run(batch_of(Rows(0, 0, SECOND)))


def test_phases_are_reported_in_order(weights: str) -> None:
    phases: list[str] = []
    load_executor(plan_of(Llama()), weights, None, phases.append)
    assert phases == ["memory", "weights", "programs"]


def changed(plan: MemoryPlan, **fields: Any) -> MemoryPlan:
    plan.programs["step"] = msgspec.structs.replace(plan.programs["step"], **fields)
    return plan


def with_call(call: Call) -> MemoryPlan:
    plan = plan_of(Llama())
    return changed(plan, body=(*plan.programs["step"].body, call))


def with_view(view: View) -> MemoryPlan:
    plan = plan_of(Llama())
    return changed(plan, views=(*plan.programs["step"].views, view), body=(Call("scale", ("bad",), ("bad",), {"factor": 1.0}),))


def with_offset(offset: int) -> MemoryPlan:
    plan = plan_of(Llama())
    buckets = tuple(
        msgspec.structs.replace(bucket, offsets=(*bucket.offsets[:2], offset, *bucket.offsets[3:]))
        for bucket in plan.programs["step"].buckets
    )
    return changed(plan, buckets=buckets)


def with_moved_logits() -> MemoryPlan:
    plan = plan_of(Llama())
    program: Program = plan.programs["step"]
    buckets = tuple(msgspec.structs.replace(b, offsets=(64, *b.offsets[1:])) for b in program.buckets)
    return changed(plan, buckets=buckets)


@pytest.mark.parametrize(
    "plan",
    [
        with_call(Call("os.system", ("hidden",), ("hidden",))),
        with_call(Call("scale", ("nowhere",), ("hidden",), {"factor": 1.0})),
        with_call(Call("scale", ("hidden",), ("embedding",), {"factor": 1.0})),
        with_call(Call("copy", ("token_ids",), ("positions",))),
        with_call(Call("scale", ("hidden",), ("normed",))),
        with_view(View("bad", "hidden", ("rows", 33), 0, (32, 1))),
        with_view(View("bad", "hidden", ("rows", 32), 1, (32, 1))),
        with_view(View("bad", "hidden", ("rows", 32), -1, (32, 1))),
        with_view(View("bad", "hidden", ("rows", 32), 0, (-32, 1))),
        with_view(View("bad", "hidden", ("rows", 32), 0, (32,))),
        with_view(View("bad", "nowhere", ("rows", 32), 0, (32, 1))),
        with_offset(1 << 40),
        with_offset(-64),
        with_offset(4),
        with_moved_logits(),
        plan_of(Llama(), functions_version=2),
        plan_of(Llama(), kv=head_major(Llama().manifest().kv)),
        plan_of(Llama(), slot_buffers=(Buffer("last_tokens", "i32", (4,)),)),
    ],
)
def test_hostile_programs_are_refused_at_load(plan: MemoryPlan, weights: str) -> None:
    with pytest.raises(PlanError) as refusal:
        load_executor(plan, weights, None, lambda _phase: None)
    assert isinstance(refusal.value, TokenspeedError) and refusal.value.fix


def test_inference_needs_no_gradients(weights: str) -> None:
    executor = load(weights)
    with torch.enable_grad():
        logits = executor.logits_for(batch_of(Rows(0, 0, SECOND)))
    assert isinstance(logits, np.ndarray)
