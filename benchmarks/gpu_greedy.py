"""Greedy tokens of a real model's plan on this machine's GPU beside those of transformers on the same device.

    python benchmarks/gpu_greedy.py PLAN --weights MODEL.gguf [--tokens 64]

The plan answers all prompts at once through the real scheduler. transformers then reads each prompt with what was answered, in
the plan's type and in float32, with eager attention: a token agrees with a model if it is the likeliest after all before it.
Printed for both: how many tokens agree, and how far below the likeliest the worst of the others is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,",
    "The history of computing began " + "long before the first machines were built, " * 8,
)
_TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with Plan.open(options.plan) as plan:
        tokenizer = Tokenizer(bytes(plan.entry("tokenizer/tokenizer.json")))
        prompts = [tokenizer.encode(text, add_begin_token=False) for text in PROMPTS]
        started = time.perf_counter()
        executor = load_executor(plan, str(options.weights), None, lambda _phase: None)
        loaded = time.perf_counter()
        found = generate(plan, executor, prompts, options.tokens)
        print(f"loaded in {loaded - started:.2f} s, answered in {time.perf_counter() - loaded:.2f} s", flush=True)
        executor.close()
        dtype = _TORCH[plan.manifest.model.dtype]
    print(repr(tokenizer.decode(found[0])))
    own = {kind: reference(options.weights, kind, prompts, found) for kind in (dtype, torch.float32)}
    total = sum(map(len, found))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {total} tokens of {len(prompts)} prompts")
    for kind, logits in own.items():
        chosen = [rows[torch.arange(len(rows)), torch.tensor(tokens)] for rows, tokens in zip(logits, found, strict=True)]
        gaps = torch.cat([rows.amax(1) - of_tokens for rows, of_tokens in zip(logits, chosen, strict=True)])
        agree = int((gaps == 0).sum())
        print(
            f"likeliest for transformers in {kind}: {agree} of {total}; the furthest below the likeliest: {float(gaps.max()):.4f}"
        )
    choices = [torch.cat([rows.argmax(1) for rows in logits]) for logits in own.values()]
    print(f"transformers in {dtype} agrees with itself in float32 on {int((choices[0] == choices[1]).sum())} of {total}")


def generate(plan: Plan, executor: PlanExecutor, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Tokens of all prompts at once, end tokens ignored."""
    manifest = plan.manifest
    kv = KvManager(manifest.kv.blocks, manifest.kv.block_tokens, manifest.kv.identity_tokens, manifest.kv.compatibility)
    scheduler = Scheduler(SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context), kv)
    for number, tokens in enumerate(prompts):
        scheduler.submit(Request(request_id=str(number), tokens=np.array(tokens, np.int32), max_tokens=count))
    made: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    while (batch := scheduler.schedule()) is not None:
        for admission in batch.admissions:
            sampling = SamplingParameters(max_tokens=count, temperature=0.0)
            executor.admit(admission.slot, sampling, (), admission.prompt, admission.output)
        for outcome in scheduler.complete(batch.step_id, executor.run(batch).tokens):
            if outcome.token is not None:
                made[outcome.request_id].append(outcome.token)
    return list(made.values())


def reference(weights: Path, dtype: torch.dtype, prompts: list[list[int]], found: list[list[int]]) -> list[torch.Tensor]:
    """Logits of transformers for each token that was found, in float32: [tokens, vocabulary] of each prompt."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=dtype, attn_implementation="eager"
    )
    model = model.cuda()
    logits = []
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt + tokens[:-1]], device="cuda")
        with torch.inference_mode():
            # the mask is given: transformers would take an end token inside the prompt for padding
            logits.append(model(ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 :].float().cpu())
    return logits


if __name__ == "__main__":
    main()
