"""schedule: from the traffic profile to the limits the scheduler works within and the buckets programs are laid out for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..plans.schema import Schedule
from .select import Workload

_LARGE = 4
"""Chunks of so many times the sequences leave most of their rows to prompts."""


@dataclass(frozen=True)
class TrafficProfile:
    """What the plan is made for. Tokens are per request; `cached_fraction` of the prompt is expected in the prefix cache.

    The defaults are a small coding agent on one CPU: long shared prompts, short turns, few sessions.
    """

    prompt_tokens: float = 2048
    cached_fraction: float = 0.75
    output_tokens: float = 128
    concurrency: float = 4


@dataclass(frozen=True)
class BucketSize:
    """Up to `rows` rows, of which up to `logit_rows` need logits."""

    rows: int
    logit_rows: int


def schedule(
    traffic: TrafficProfile, max_context: int, max_sequences: int, prefill_chunk: int, *, whole_tiles: bool = False
) -> Schedule:
    """Scheduler limits. A step holds every running sequence's decode row and one prefill chunk.

    With `whole_tiles`, decode rows take their place within the chunk where it is large enough: products are cut into tiles that
    fill a device in whole rounds at a power of two of rows, and a few rows more would cost a round that is all but empty.
    """
    chunk = min(prefill_chunk, max_context)
    within = whole_tiles and chunk >= _LARGE * max_sequences
    return Schedule(
        max_rows=chunk if within else chunk + max_sequences,
        max_decode_rows=max_sequences,
        max_sequences=max_sequences,
        prefill_chunk=chunk,
        max_waiting=max(256, 8 * max_sequences),
        traffic={name: float(value) for name, value in asdict(traffic).items()},
    )


def bucket_sizes(limits: Schedule) -> tuple[BucketSize, ...]:
    """Powers of two, the largest decode step, and the largest step."""
    sizes = {limits.max_decode_rows, limits.max_rows}
    rows = 1
    while rows < limits.max_rows:
        sizes.add(rows)
        rows *= 2
    return tuple(BucketSize(size, min(size, limits.max_sequences)) for size in sorted(sizes))


def workloads(limits: Schedule, in_flight: int = 1) -> tuple[Workload, ...]:
    """The two kinds of step that kernels are chosen for, decode first, weighted by how many of each a request causes.

    Where several steps are in flight (stages of a pipeline, groups of ranks), each has a share of the sequences.
    """
    traffic = limits.traffic
    decode_rows = max(1, min(limits.max_decode_rows, round(traffic["concurrency"] / in_flight)))
    prefill_steps = max(1.0, traffic["prompt_tokens"] * (1 - traffic["cached_fraction"]) / limits.prefill_chunk)
    decode_steps = max(1.0, traffic["output_tokens"] / decode_rows)
    total = prefill_steps + decode_steps
    return (
        Workload(decode_rows, decode_rows, decode_steps / total),
        Workload(limits.prefill_chunk, 1, prefill_steps / total),
    )
