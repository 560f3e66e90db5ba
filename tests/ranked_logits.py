"""One rank of several that run plans together, as a process: a job after the other, each a line of stdin, answered by a line. The
last rank, which has them whatever the axes are, writes the logits. Goldens hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.collectives import Collectives
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, equal_places, fixed_batch
from tokenspeed.runtime.goldens import replay_goldens
from tokenspeed.runtime.mesh import Rank


class Job(msgspec.Struct):
    """`plans` are (name, path, weights) over one mesh; `steps` of each are lists of (sequence, first position, tokens)."""

    plans: list[tuple[str, str, str]]
    steps: list[list[tuple[int, int, list[int]]]]
    blocks_per_sequence: int
    address: str
    out: str
    rank: int = 0


def main(job: Job) -> None:
    torch.set_num_threads(1)
    with Plan.open(job.plans[0][1]) as plan:
        collectives = Collectives(Rank(plan.manifest.mesh, job.rank), "gloo", job.address)
    found: dict[str, np.ndarray] = {}
    for name, path, weights in job.plans:
        with Plan.open(path) as plan:
            made = logits(plan, weights, job, collectives)
            outcomes = replay_goldens(plan, None, lambda _what: None, collectives)
            assert outcomes and all(outcome.passed for outcome in outcomes), (name, outcomes)
        found |= {f"{name}/{number}": values for number, values in enumerate(made)}
    if job.rank == collectives.rank.count - 1:
        np.savez(job.out, **found)  # pyright: ignore[reportArgumentType]
    collectives.close()


def logits(plan: Plan, weights: str, job: Job, collectives: Collectives) -> Sequence[np.ndarray]:
    executor = load_executor(plan, weights, 1, lambda _phase: None, collectives=collectives)
    block_tokens = plan.manifest.kv.block_tokens
    windows = equal_places(plan.manifest.kv, 1 + max(part[0] for step in job.steps for part in step))
    batches = (
        fixed_batch([Rows(*part) for part in step], job.blocks_per_sequence, block_tokens, all_logits=True, windows=windows)
        for step in job.steps
    )
    made = [executor.logits_for(batch).copy() for batch in batches]
    collectives.meet()  # what this rank sent has arrived
    executor.close()
    return made


if __name__ == "__main__":
    for line in sys.stdin:
        main(msgspec.json.decode(line, type=Job))
        print("done", flush=True)
