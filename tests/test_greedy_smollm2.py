"""The real model: greedy tokens of a compiled plan are those of transformers on the same GGUF file, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.tokenizer import Tokenizer
from transformers import AutoModelForCausalLM

NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,",
)


@pytest.fixture(scope="module")
def plan(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("plan") / "smollm2.bin"
    # a chunk of 8 tokens: prompts are prefilled in pieces, next to other requests' decode rows
    options = CompileOptions(dtype="f32", max_context=512, prefill_chunk=8, bundle_weights=True, quantize="none")
    with context():
        state = compile_model(open_model(smollm2_path), options, lambda _phase, _state: None)
    assert state.manifest is not None
    write_plan(path, state.manifest, state.entries)
    return Plan.open(path)


def _generate(plan: Plan, executor: PlanExecutor, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts at once through the real scheduler, greedy, end tokens ignored."""
    manifest = plan.manifest
    kv = KvManager(manifest.kv.blocks, manifest.kv.block_tokens, manifest.kv.identity_tokens, manifest.kv.compatibility)
    scheduler = Scheduler(SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context), kv)
    for number, tokens in enumerate(prompts):
        scheduler.submit(Request(request_id=str(number), tokens=np.array(tokens, np.int32), max_tokens=NEW_TOKENS))
    made: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    while (batch := scheduler.schedule()) is not None:
        for admission in batch.admissions:
            sampling = SamplingParameters(max_tokens=NEW_TOKENS, temperature=0.0)
            executor.admit(admission.slot, sampling, (), admission.prompt, admission.output)
        for outcome in scheduler.complete(batch.step_id, executor.run(batch).tokens):
            if outcome.token is not None:
                made[outcome.request_id].append(outcome.token)
        scheduler.check_integrity()
    return list(made.values())


def test_greedy_tokens_are_those_of_transformers(plan: Plan, smollm2_path: Path) -> None:
    tokenizer = Tokenizer(bytes(plan.entry("tokenizer/tokenizer.json")))
    prompts = [tokenizer.encode(text, add_begin_token=False) for text in PROMPTS]
    executor = load_executor(plan, None, None, lambda _phase: None)
    got = _generate(plan, executor, prompts)
    executor.close()
    reference: Any = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32, attn_implementation="eager"
    )
    for text, tokens, found in zip(PROMPTS, prompts, got, strict=True):
        # each token found is the likeliest after all before it: so these are the greedy tokens, without a loop of 64 steps
        ids = torch.tensor([tokens + found[:-1]])
        with torch.inference_mode():
            # the mask is given: transformers would take <|im_end|> inside the prompt for padding
            logits = reference(ids, attention_mask=torch.ones_like(ids)).logits[0, len(tokens) - 1 :]
        assert found == logits.argmax(-1).tolist(), text
