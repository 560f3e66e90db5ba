"""Steps as agents make them, beside the plan's prediction: unequal contexts, few rows behind long ones, prompts beside decoding.

    python benchmarks/gpu_contexts.py PLAN [--repeats 12]

Weights are made up, and caches hold what memory held: only time is measured. Sequences own places of the pool in random order;
where the pool is too small for all of them some are shared. Medians of steps that are started ahead; prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.perf_model import StepWork
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.environment import environment
from tokenspeed.runtime.benchmark.fixed_steps import admit_greedy, run_ahead
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.scheduling.costs import StepCosts
from tokenspeed.runtime.scheduling.step import StepBatch

_WARM = 3

Chunks = list[tuple[int, int]]

DECODES: dict[str, list[int]] = {
    **{f"{count} x {context}": [context] * count for count, context in ((1, 2048), (1, 130000), (8, 2048), (8, 32768))},
    **{f"{count} x {context}": [context] * count for count, context in ((8, 110000), (32, 2048), (64, 2048), (64, 8192))},
    "33 x 2048": [2048] * 33,
    "64 of the same sum: 4 x 110000, 60 x 1405": [110000] * 4 + [1405] * 60,
    "64 of the same sum: 1 x 130000, 63 x 6258": [130000] + [6258] * 63,
    "64 of the same sum: 32 x 15360, 32 x 1024": [15360] * 32 + [1024] * 32,
    "32: 16 x 32000, 16 x 512": [32000] * 16 + [512] * 16,
    "16 x 32000": [32000] * 16,
}
"""Contexts of decoding sequences."""

CHUNKS: dict[str, tuple[list[int], Chunks]] = {
    **{f"2048 at {start}": ([], [(start, 2048)]) for start in (0, 8192, 32768, 128000)},
    **{f"{rows} at {start}": ([], [(start, rows)]) for rows in (64, 128, 256, 512, 704, 1024) for start in (4096, 100000)},
    "4 x 512 at 100000": ([], [(100000, 512)] * 4),
    "1792 at 0, 256 at 120000": ([], [(0, 1792), (120000, 256)]),
    "8 decode at 100000, 512 at 100000": ([100000] * 8, [(100000, 512)]),
    "8 decode at 100000, 504 at 100000": ([100000] * 8, [(100000, 504)]),
    "8 decode at 100000, 2040 at 100000": ([100000] * 8, [(100000, 2040)]),
    "16 decode at 30000, 1024 at 30000": ([30000] * 16, [(30000, 1024)]),
    "32 decode at 4096, 512 at 4096": ([4096] * 32, [(4096, 512)]),
}
"""Contexts of decoding sequences, and where prompts' chunks begin with their rows."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    print(json.dumps(msgspec.structs.asdict(environment())))
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest
        executor = load_executor(plan, "dummy", None, lambda _phase: None)
    admit_greedy(executor, manifest.schedule.max_sequences)
    costs, places = StepCosts.from_manifest(manifest), np.random.default_rng(0).permutation(manifest.kv.blocks)
    for name, (decodes, chunks) in steps().items():
        try:
            batch = _batch(decodes, chunks, places, manifest.kv.block_tokens, manifest.model.vocabulary)
            seconds = run_ahead(executor, [batch] * options.repeats)[_WARM:]
        except (TokenspeedError, ValueError, IndexError) as error:  # the plan is for less; the next case may fit
            print(json.dumps({"step": name, "failed": str(error).splitlines()[0]}), flush=True)
            continue
        predicted = costs.step_seconds(work_of(decodes, chunks)) * 1e3
        median = statistics.median(seconds) * 1e3
        line = {"step": name, "ms": round(median, 3), "least": round(min(seconds) * 1e3, 3), "predicted": round(predicted, 3)}
        print(json.dumps(line | {"ratio": round(median / predicted, 3)}), flush=True)
    executor.close()
    return 0


def steps() -> dict[str, tuple[list[int], Chunks]]:
    """All of them, by the names under which they are reported."""
    decoding = {f"decode {name}": (contexts, Chunks()) for name, contexts in DECODES.items()}
    return decoding | {f"chunk {name}": step for name, step in CHUNKS.items()}


def _batch(decodes: list[int], chunks: Chunks, places: np.ndarray, block_tokens: int, vocabulary: int) -> StepBatch:
    """A step of sequences that lie at random places of the pool."""
    longest = max([*decodes, *(start + rows for start, rows in chunks)])
    random = np.random.default_rng(1)
    rows = [Rows(number, context - 1, (-1,)) for number, context in enumerate(decodes)]
    for number, (start, count) in enumerate(chunks, start=len(decodes)):
        rows.append(Rows(number, start, random.integers(0, vocabulary, count).tolist()))
    batch = fixed_batch(rows, -(-longest // block_tokens), block_tokens)
    slots = places[batch.slot_mapping // block_tokens % len(places)].astype(np.int64) * block_tokens
    tables = places[batch.block_tables % len(places)].astype(np.int32)
    return replace(batch, block_tables=tables, slot_mapping=slots + batch.slot_mapping % block_tokens)


def work_of(decodes: list[int], chunks: Chunks) -> StepWork:
    """What the cost model is told of a step."""
    work = StepWork(len(decodes), sum(decodes))
    for start, rows in chunks:
        work = work.with_chunk(start, rows)
    return work


if __name__ == "__main__":
    sys.exit(main())
