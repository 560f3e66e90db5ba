"""What a server's clients saw, as figures and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenspeed.runtime.benchmark.exchange import Exchange
from tokenspeed.runtime.benchmark.statistics import Summary, ratio, summarise

from .load import Seen

_COLUMNS = (
    ("TTFT p50 ms", ("first_token_seconds", "p50"), 1e3),
    ("p90", ("first_token_seconds", "p90"), 1e3),
    ("p99", ("first_token_seconds", "p99"), 1e3),
    ("gap p50 ms", ("gap_seconds", "p50"), 1e3),
    ("p90", ("gap_seconds", "p90"), 1e3),
    ("p99", ("gap_seconds", "p99"), 1e3),
    ("batch tokens/s", ("batch_tokens_per_second",), 1),
    ("busy", ("busy_share",), 1),
    ("speed of light", ("speed_of_light_share",), 1),
)


def figures(seen: Seen) -> dict[str, Any]:
    """Of one server. Throughput counts the prompts and answers of the batch; gaps are those between arrivals of a stream."""
    batch = [reply for reply in seen.batch if not reply.error]
    interactive = [reply for reply in seen.interactive if not reply.error]
    errors = [reply.error for reply in (*seen.alone, *seen.interactive, *seen.batch) if reply.error]
    done = sum((reply.prompt_tokens or 0) + reply.tokens for reply in batch)
    prompts = sum(reply.prompt_tokens or 0 for reply in interactive)
    return {
        "seconds": seen.seconds,
        "interactive_turns": len(interactive),
        "batch_requests": len(batch),
        "errors": len(errors),
        "first_errors": list(dict.fromkeys(errors))[:5],
        **{name: _fields(found) for name, found in _latencies(interactive).items()},
        "alone": {name: _fields(found) for name, found in _latencies(seen.alone).items()},
        "interactive_hit_rate": ratio(sum(reply.cached_tokens for reply in interactive), prompts),
        "batch_tokens_per_second": ratio(done, seen.seconds),
        "busy_share": ratio(seen.used.get("engine_busy_seconds", 0.0), seen.seconds),
        "speed_of_light_share": ratio(seen.used.get("engine_roofline_seconds", 0.0), seen.seconds),
        "preemptions": seen.used.get("num_preemptions", 0.0),
        "recomputed_tokens": seen.used.get("recomputed_tokens", 0.0),
    }


def table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each arm, and under each but the first its figures over the first one's."""
    rows = [["", *(name for name, _, _ in _COLUMNS)]]
    first = next(iter(arms.values()))
    for name, arm in arms.items():
        values = [_at(arm, path) for _, path, _ in _COLUMNS]
        rows.append([name, *(_shown(value * scale) for value, (_, _, scale) in zip(values, _COLUMNS, strict=True))])
        if arm is not first:
            shares = [ratio(value, _at(first, path)) for value, (_, path, _) in zip(values, _COLUMNS, strict=True)]
            rows.append(["  of the first", *(f"{share:.2f}x" for share in shares)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _latencies(replies: Sequence[Exchange]) -> dict[str, Summary]:
    return {
        "first_token_seconds": summarise([reply.events[0] for reply in replies if reply.events]),
        "gap_seconds": summarise([after - before for reply in replies for before, after in pairwise(reply.events)]),
    }


def _fields(found: Summary) -> dict[str, float]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


def _at(arm: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = arm
    for name in path:
        value = value[name]
    return value


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
