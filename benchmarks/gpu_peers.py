"""Decoding, prefill and start-up of a plan on this machine's GPU beside its ceilings and beside others, in one process.

    python benchmarks/gpu_peers.py PLAN --config CONFIG [--point BATCH:CONTEXT]... [--prompt TOKENS]...
        [--arm ARM]... [--peer-command COMMAND]

Weights are made up (the same shapes and types on all sides), so any configuration will do. What is measured:

- ceilings: bytes per second that a sum over 8 GB reads, FLOP/s of a square bf16 product; from them the least time of a decode
  step (the weights it needs and KV, read once) and of a prompt (products and attention alone);
- tokenspeed: steps as the engine runs them, each started before the one ahead of it is waited for;
- transformers: static cache, decode steps captured as a CUDA graph, prompts through SDPA; greedy tokens on the device;
- transformers-eager: the same without the graph; transformers-compiled: torch.compile of the model, captured;
- loop: a hand-written loop in torch (gpu/torch_loop.py), static cache, captured; loop-compiled: torch.compile of its layers;
- `--peer-command`: prints for itself; it is run with the points in the environment, GPU_PEERS_POINTS and GPU_PEERS_PROMPTS.

Without --arm: tokenspeed and transformers; compiling takes a minute or more of the device's time. An arm that fails says why, and
the next is measured. Medians over steps of one run in milliseconds, in the order given. Prints JSON lines.
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
from typing import Any

import torch
from gpu.torch_loop import Shape, TorchLoop
from gpu.transformers_arm import TransformersArm
from tokenspeed.plans.perf_model import step_cost
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy, run_ahead
from tokenspeed.runtime.executor import load_executor

Point = tuple[int, int]
"""Sequences, tokens of context of each."""

STEPS, WARM_STEPS, PROMPTS = 40, 8, 4
DEFAULT_ARMS = ("tokenspeed", "transformers")
ARMS = (*DEFAULT_ARMS, "transformers-eager", "transformers-compiled", "loop", "loop-compiled")


def main() -> None:
    arguments = _arguments()
    points: list[Point] = [tuple(map(int, item.split(":"))) for item in arguments.point]  # pyright: ignore
    say({"device": torch.cuda.get_device_name(), "torch": torch.__version__})
    rates = ceilings()
    say({"ceilings": {"read_bytes_per_second": rates[0], "flops_per_second": rates[1]}})
    for arm in arguments.arm or DEFAULT_ARMS:
        try:
            if arm == "tokenspeed":
                with Plan.open(arguments.plan) as plan:
                    of_plan(plan, points, arguments.prompt, rates)
            else:
                of_arm(arm, arguments.config, points, arguments.prompt)
        except Exception as error:
            say({"arm": arm, "failed": f"{type(error).__name__}: {str(error)[:500]}"})
        gc.collect()
        torch.cuda.empty_cache()
    if arguments.peer_command:
        given = {"GPU_PEERS_POINTS": " ".join(arguments.point), "GPU_PEERS_PROMPTS": " ".join(map(str, arguments.prompt))}
        subprocess.run(shlex.split(arguments.peer_command), env=os.environ | given, check=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--config", required=True, help="config.json that the plan was compiled from")
    parser.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT of decode steps")
    parser.add_argument("--prompt", action="append", default=[], type=int, help="tokens of a prompt")
    parser.add_argument("--arm", action="append", choices=ARMS, help="what is measured, in this order")
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
        least = (step_cost(manifest.performance, batch).weight_bytes + kv) / rates[0]
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


def of_arm(arm: str, config: str, points: Sequence[Point], prompts: Sequence[int]) -> None:
    """An arm of torch."""
    name, _, kind = arm.partition("-")
    start = time.perf_counter()
    peer: Any
    if name == "loop":
        peer = TorchLoop(Shape.read(config), compiled=kind == "compiled")
        decode = peer.captured
    else:
        peer = TransformersArm(config, compiled=kind == "compiled")
        decode = partial(peer.decode, steps=STEPS, captured=kind != "eager")
    say({"arm": arm, "load_seconds": round(time.perf_counter() - start, 2)})
    with torch.inference_mode():
        for batch, context in points:
            start = time.perf_counter()
            step = decode(batch, context)
            ready = round(time.perf_counter() - start, 2)
            seconds = _timed(lambda step=step: step()[0, 0].item(), STEPS - 4)[WARM_STEPS:]
            say({"arm": arm, "batch": batch, "context": context, **_spread(seconds), "made_in_seconds": ready})
            del step
            torch.cuda.empty_cache()
        for tokens in prompts:
            run = peer.prompt(tokens)
            seconds = _timed(lambda run=run: run().flatten()[0].item(), PROMPTS)[1:]
            say({"arm": arm, "prompt": tokens, **_spread(seconds)})


def _timed(run: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds) * 1e3, 3), "fastest": round(min(seconds) * 1e3, 3)}


if __name__ == "__main__":
    sys.exit(main())
