"""This project against transformers (eager) on the same weights, threads and prompts, taking turns in one run. Prints JSON.

    python benchmarks/against_transformers.py MODEL.gguf PLAN [--bf16-plan PLAN] [--threads 2] [--tokens 64] [--rounds 3]

Both compute in float32 on the dequantised weights of the GGUF file; PLAN must be compiled for f32 from that file and hold
its weights. Measured: decode tokens per second at batch 1, prefill tokens per second of 512 tokens, and whether
greedy tokens agree over five prompts: all of them must, or the exit code is 1. A bf16 plan's agreement is reported only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.environment import Environment, environment
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, equal_places, fixed_batch
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.tokenizer import Tokenizer
from transformers import AutoModelForCausalLM

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,",
)
PREFILL_TOKENS = 512


class Speed(msgspec.Struct, frozen=True):
    """Tokens per second, median and best of the rounds."""

    decode: float
    decode_best: float
    prefill: float
    prefill_best: float


class Agreement(msgspec.Struct, frozen=True):
    """`same` of `total` tokens are equal at the same place; `first_difference` by prompt, None where there is none."""

    same: int
    total: int
    first_difference: list[int | None]


class Comparison(msgspec.Struct, frozen=True):
    environment: Environment
    tokens: int
    rounds: int
    tokenspeed: Speed
    transformers: Speed
    decode_ratio: float
    prefill_ratio: float
    agreement: Agreement
    bf16_agreement: Agreement | None


@dataclass(frozen=True)
class Run:
    """Greedy tokens with the seconds they took: the prompt's step, and all steps after it."""

    tokens: list[int]
    prefill_seconds: float
    decode_seconds: float


Generate = Callable[[list[int], int], Run]


def with_plan(plan: Plan, executor: PlanExecutor) -> Generate:
    """One sequence, no scheduler."""
    blocks, size = plan.manifest.kv.blocks, plan.manifest.kv.block_tokens
    chunk = plan.manifest.schedule.prefill_chunk

    def step(start: int, tokens: list[int]) -> int:
        needed = min(blocks, -(-(start + len(tokens)) // size))
        batch = fixed_batch([Rows(0, start, tokens)], needed, size, windows=equal_places(plan.manifest.kv, 1))
        return int(executor.run(batch).tokens[-1])

    def generate(prompt: list[int], count: int) -> Run:
        sampling = SamplingParameters(max_tokens=count, temperature=0.0, ignore_eos=True)
        executor.admit(0, sampling, (), np.asarray(prompt, np.int32), np.empty(0, np.int32))
        start = time.perf_counter()
        made = [step(at, prompt[at : at + chunk]) for at in range(0, len(prompt), chunk)][-1:]
        first = time.perf_counter()
        while len(made) < count:
            made.append(step(len(prompt) + len(made) - 1, made[-1:]))
        return Run(made, first - start, time.perf_counter() - first)

    return generate


def with_transformers(model: Any) -> Generate:
    """A loop over forward with the model's own cache: what `generate` does, without its own overhead."""

    def forward(tokens: list[int], past: Any, length: int) -> tuple[int, Any]:
        # the mask is given: transformers would take <|im_end|> inside the prompt for padding
        mask = torch.ones(1, length, dtype=torch.long)
        out = model(input_ids=torch.tensor([tokens]), attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax()), out.past_key_values

    @torch.inference_mode()
    def generate(prompt: list[int], count: int) -> Run:
        start = time.perf_counter()
        token, past = forward(prompt, None, len(prompt))
        first = time.perf_counter()
        made = [token]
        while len(made) < count:
            token, past = forward(made[-1:], past, len(prompt) + len(made))
            made.append(token)
        return Run(made, first - start, time.perf_counter() - first)

    return generate


def agreement(expected: list[list[int]], found: list[list[int]]) -> Agreement:
    pairs = [list(zip(one, other, strict=True)) for one, other in zip(expected, found, strict=True)]
    first = [next((place for place, (a, b) in enumerate(pair) if a != b), None) for pair in pairs]
    return Agreement(sum(a == b for pair in pairs for a, b in pair), sum(map(len, pairs)), first)


def speeds(generators: list[Generate], prompt: list[int], count: int, rounds: int) -> list[Speed]:
    """Turn by turn, after a turn that is not counted."""
    runs: list[list[Run]] = [[] for _ in generators]
    for turn in range(rounds + 1):
        for generate, mine in zip(generators, runs, strict=True):
            run = generate(prompt, count)
            mine.extend([run] if turn else [])
    return [_speed(mine, len(prompt), count) for mine in runs]


def _speed(runs: list[Run], prompt: int, count: int) -> Speed:
    decode = [(count - 1) / run.decode_seconds for run in runs]
    prefill = [prompt / run.prefill_seconds for run in runs]
    return Speed(statistics.median(decode), max(decode), statistics.median(prefill), max(prefill))


def compare(model_path: Path, plan_path: Path, bf16_path: Path | None, tokens: int, rounds: int) -> Comparison:
    surroundings = environment(torch.get_num_threads())
    model = AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32, attn_implementation="eager"
    )
    theirs = with_transformers(model.eval())
    with Plan.open(plan_path) as plan:
        tokenizer = Tokenizer(bytes(plan.entry("tokenizer/tokenizer.json")))
        prompts = [tokenizer.encode(text, add_begin_token=False) for text in PROMPTS]
        long_prompt = np.random.default_rng(0).integers(300, plan.manifest.model.vocabulary, PREFILL_TOKENS).tolist()
        executor = load_executor(plan, None, None, lambda _phase: None)
        ours = with_plan(plan, executor)
        own, other = speeds([ours, theirs], long_prompt, tokens, rounds)
        expected = [theirs(prompt, tokens).tokens for prompt in prompts]
        same = agreement(expected, [ours(prompt, tokens).tokens for prompt in prompts])
        executor.close()
    bf16 = _bf16_agreement(bf16_path, prompts, tokens, expected) if bf16_path else None
    ratios = (own.decode / other.decode, own.prefill / other.prefill)
    return Comparison(surroundings, tokens, rounds, own, other, *ratios, same, bf16)


def _bf16_agreement(path: Path, prompts: list[list[int]], tokens: int, expected: list[list[int]]) -> Agreement:
    with Plan.open(path) as plan:
        executor = load_executor(plan, None, None, lambda _phase: None)
        generate = with_plan(plan, executor)
        found = [generate(prompt, tokens).tokens for prompt in prompts]
        executor.close()
    return agreement(expected, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--bf16-plan", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = compare(options.model, options.plan, options.bf16_plan, options.tokens, options.rounds)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    return 0 if report.agreement.same == report.agreement.total else 1


if __name__ == "__main__":
    sys.exit(main())
