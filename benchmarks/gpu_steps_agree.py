"""Whether decode steps, which run kernels of their own for each number of rows, give the logits that a chunk of a prompt gives.

    python benchmarks/gpu_steps_agree.py PLAN... [--rows 1 --rows 2 ...] [--tokens 80] [--no-goldens]

On this machine's device, with made-up weights: the plan's goldens first; then sequences of random tokens, the last one of each in
a chunk with those before it, and as a row of a decode step after them. Prints JSON lines: the largest difference of a logit as a
share of the largest logit, and in how many rows the likeliest token is the same. The two differ by roundings of the plan's type;
where a model has experts, by those of choices that are as good as equal too, and then by whole experts in few rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import admit_greedy
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, equal_places, fixed_batch
from tokenspeed.runtime.goldens import replay_goldens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--rows", action="append", type=int, default=[], help="of the decode step; may be repeated")
    parser.add_argument("--tokens", type=int, default=80, help="of each sequence")
    parser.add_argument("--no-goldens", action="store_true")
    options = parser.parse_args()
    for path in options.plans:
        with Plan.open(path) as plan:
            if not options.no_goldens:
                for result in replay_goldens(plan, None, lambda _phase: None):
                    numbers = {"error": result.max_error, "tolerance": result.tolerance, "passed": result.passed}
                    say({"plan": path.name, "golden": result.name, **numbers})
            agree(plan, path.name, options.rows or [1, 2, 4, 8, 64], options.tokens)


def agree(plan: Plan, name: str, counts: Sequence[int], tokens: int) -> None:
    manifest = plan.manifest
    executor = load_executor(plan, "dummy", None, lambda _phase: None)
    admit_greedy(executor, manifest.schedule.max_sequences)
    size = manifest.kv.block_tokens
    blocks = -(-tokens // size)
    random = np.random.default_rng(0)
    for count in counts:
        windows = equal_places(manifest.kv, count)
        texts = [random.integers(0, manifest.model.vocabulary, tokens).tolist() for _ in range(count)]
        whole, cut = [], []
        for sequence, text in enumerate(texts):
            whole.append(executor.logits_for(fixed_batch([Rows(sequence, 0, text)], blocks, size, windows=windows))[0])
            executor.logits_for(fixed_batch([Rows(sequence, 0, text[:-1])], blocks, size, windows=windows))
        last = [Rows(sequence, tokens - 1, text[-1:]) for sequence, text in enumerate(texts)]
        cut = executor.logits_for(fixed_batch(last, blocks, size, windows=windows))
        difference = np.abs(np.stack(whole) - cut).max(1) / np.abs(np.stack(whole)).max(1)
        same = int((np.stack(whole).argmax(1) == cut.argmax(1)).sum())
        figures = {"largest": float(difference.max()), "median": float(np.median(difference)), "same_token": f"{same} of {count}"}
        say({"plan": name, "rows": count, **figures, "finite": bool(np.isfinite(cut).all())})
    executor.close()


def say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
