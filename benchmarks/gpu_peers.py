"""Decoding, prefill and start-up of a plan on this machine's GPU beside its ceilings and beside transformers, in one process.

    python benchmarks/gpu_peers.py PLAN --config CONFIG [--point BATCH:CONTEXT]... [--prompt TOKENS]... [--peer-command COMMAND]

Weights are made up (the same shapes and types on both sides), so any configuration will do. What is measured:

- ceilings: bytes per second that a sum over 8 GB reads, FLOP/s of a square bf16 product; from them the least time of a decode
  step (weights and KV read once) and of a prompt (products alone);
- this project: steps as the engine runs them, each started before the one ahead of it is waited for;
- transformers: static cache, decode steps captured as a CUDA graph, prompts through SDPA; greedy tokens on the device;
- `--peer-command`: prints for itself; it is run with the points in the environment, GPU_PEERS_POINTS and GPU_PEERS_PROMPTS.

Medians over steps of one run in milliseconds, in the order given. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.scheduling.step import StepBatch

Point = tuple[int, int]
"""Sequences, tokens of context of each."""

STEPS, WARM_STEPS, PROMPTS = 40, 8, 4


def main() -> None:
    arguments = _arguments()
    points: list[Point] = [tuple(map(int, item.split(":"))) for item in arguments.point]  # pyright: ignore
    say({"device": torch.cuda.get_device_name(), "torch": torch.__version__})
    rates = ceilings()
    say({"ceilings": {"read_bytes_per_second": rates[0], "flops_per_second": rates[1]}})
    with Plan.open(arguments.plan) as plan:
        of_plan(plan, points, arguments.prompt, rates)
    gc.collect()
    of_transformers(arguments.config, points, arguments.prompt)
    if arguments.peer_command:
        given = {"GPU_PEERS_POINTS": " ".join(arguments.point), "GPU_PEERS_PROMPTS": " ".join(map(str, arguments.prompt))}
        subprocess.run(shlex.split(arguments.peer_command), env=os.environ | given, check=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--config", required=True, help="config.json that the plan was compiled from")
    parser.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT of decode steps")
    parser.add_argument("--prompt", action="append", default=[], type=int, help="tokens of a prompt")
    parser.add_argument("--peer-command", help="a further arm, e.g. an engine that is installed elsewhere")
    return parser.parse_args()


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def ceilings() -> tuple[float, float]:
    """Bytes per second read, bf16 FLOP/s."""
    data = torch.ones(4 << 30, dtype=torch.bfloat16, device="cuda")
    read = data.nbytes / _fastest(partial(torch.sum, data, dtype=torch.float32))
    del data
    torch.cuda.empty_cache()
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return read, 2 * 8192**3 / _fastest(lambda: a @ b)


def _fastest(run: Callable[[], object], repeats: int = 12) -> float:
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return min(found)


def of_plan(plan: Plan, points: Sequence[Point], prompts: Sequence[int], rates: tuple[float, float]) -> None:
    manifest, phases, last = plan.manifest, {}, [time.perf_counter()]

    def report(phase: str) -> None:
        now = time.perf_counter()
        phases[phase], last[0] = round(now - last[0], 3), now

    free = torch.cuda.mem_get_info()[0]
    executor = load_executor(plan, "dummy", None, report)
    used = free - torch.cuda.mem_get_info()[0]
    say({"arm": "tokenspeed", "load_seconds": phases, "memory_used": used, "memory_planned": manifest.memory.total})
    maker = StepMaker(manifest)
    admit_greedy(executor, manifest.schedule.max_sequences)
    embedding = manifest.model.vocabulary * manifest.model.hidden_size * 2
    for batch, context in points:
        seconds = run_ahead(executor, list(maker.decode(batch, context, STEPS)))[WARM_STEPS:]
        kv = batch * context * manifest.kv.bytes_per_block / manifest.kv.block_tokens
        least = (manifest.memory.weights - embedding + kv) / rates[0]
        say({"arm": "tokenspeed", "batch": batch, "context": context, **_spread(seconds), "least": round(least * 1e3, 3)})
    for tokens in prompts:
        found = []
        for _ in range(PROMPTS):
            start = time.perf_counter()
            run_ahead(executor, list(maker.prompt(tokens)))
            found.append(time.perf_counter() - start)
        flops = 2 * tokens * (manifest.model.parameters - embedding)  # neither the table nor, but for one row, the head
        flops += tokens**2 / 2 * manifest.performance.attention_flops_per_token_pair
        say({"arm": "tokenspeed", "prompt": tokens, **_spread(found[1:]), "least": round(flops / rates[1] * 1e3, 2)})
    executor.close()


def run_ahead(executor: PlanExecutor, steps: Sequence[StepBatch]) -> list[float]:
    """Seconds from result to result, each step started before the one ahead of it is waited for."""
    ends, waiting = [time.perf_counter()], None
    for step in steps:
        started = executor.start(step)
        if waiting is not None:
            waiting()
            ends.append(time.perf_counter())
        waiting = started
    if waiting is not None:
        waiting()
        ends.append(time.perf_counter())
    return [end - start for start, end in pairwise(ends)]


def of_transformers(config: str, points: Sequence[Point], prompts: Sequence[int]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

    start = time.perf_counter()
    shape = AutoConfig.from_pretrained(config)
    with torch.device("cuda"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    say({"arm": "transformers", "load_seconds": round(time.perf_counter() - start, 2)})
    with torch.inference_mode():
        for batch, context in points:
            cache = StaticCache(config=shape, max_cache_len=context + STEPS)
            seconds = _captured_decode(model, cache, batch, context)
            say({"arm": "transformers", "batch": batch, "context": context, **_spread(seconds[WARM_STEPS:])})
            del cache
            torch.cuda.empty_cache()
        for tokens in prompts:
            ids = torch.randint(0, shape.vocab_size, (1, tokens), device="cuda")
            found = []
            for _ in range(PROMPTS):
                start = time.perf_counter()
                model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).item()
                found.append(time.perf_counter() - start)
            say({"arm": "transformers", "prompt": tokens, **_spread(found[1:])})


def _captured_decode(model: Any, cache: Any, batch: int, context: int) -> list[float]:
    """Decode steps as one graph; the cache is taken to hold `context` - 1 tokens, whatever they are."""
    token = torch.ones((batch, 1), dtype=torch.long, device="cuda")
    position = torch.full((1,), context - 1, device="cuda")

    def step() -> None:
        out = model(token, past_key_values=cache, cache_position=position, position_ids=position[None], use_cache=True)
        token.copy_(out.logits[:, -1:].argmax(-1))
        position.add_(1)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    position.fill_(context - 1)
    found = []
    for _ in range(STEPS - 4):
        start = time.perf_counter()
        graph.replay()
        token[0, 0].item()
        found.append(time.perf_counter() - start)
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds) * 1e3, 3), "fastest": round(min(seconds) * 1e3, 3)}


if __name__ == "__main__":
    sys.exit(main())
