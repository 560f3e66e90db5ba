"""A small machine and small traffic: times are round numbers, everything runs in milliseconds."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tokenspeed.plans.schema import CostRow, Manifest, MeshAxis, Rate, Stage
from tokenspeed.runtime.traffic.contents import named
from tokenspeed.runtime.traffic.session import Prompt, Session, Trace, Turn

from ...plans.sample_plan import sample_manifest


def tiny_manifest(blocks: int = 64, max_rows: int = 64, sequences: int = 4, groups: int = 1, **changes: Any) -> Manifest:
    """KV blocks of 16 tokens, contexts of 512, a step of some 0.1 s; groups of ranks where `groups` says so."""
    base = sample_manifest()
    rates = {
        name: Rate(value=value, unit=unit, source="test", basis="nominal")
        for name, value, unit in (
            ("compute", 1e3, "FLOP/s"),
            ("bandwidth", 1e3, "B/s"),
            ("dispatch", 1e-3, "s"),
            ("host_link", 100.0 * base.kv.bytes_per_block, "B/s"),
        )
    }
    costs = tuple(
        CostRow(rows=rows, flops=2.0 * rows, weight_bytes=100.0, activation_bytes=rows, instructions=10) for rows in (1, max_rows)
    )
    performance = msgspec.structs.replace(
        base.performance, rates=rates, step_costs=costs, attention_flops_per_token_pair=0.01, kv_bytes_per_token=0.1
    )
    schedule = msgspec.structs.replace(
        base.schedule,
        max_rows=max_rows,
        max_decode_rows=sequences,
        max_sequences=sequences,
        prefill_chunk=max_rows,
        max_waiting=512,
    )
    mesh = (MeshAxis(name="dp", size=groups),)
    return msgspec.structs.replace(
        base,
        model=msgspec.structs.replace(base.model, max_context=512),
        kv=msgspec.structs.replace(base.kv, blocks=blocks, block_tokens=16),
        schedule=schedule,
        performance=performance,
        mesh=mesh,
        **changes,
    )


def in_two_stages(manifest: Manifest) -> Manifest:
    """The same machine twice, each with the costs of the whole."""
    performance = manifest.performance
    stage = Stage(
        first=0,
        layers=1,
        weights=(),
        groups=(),
        states=(),
        receives=(),
        sends=(),
        memory=manifest.memory,
        step_costs=performance.step_costs,
        attention_flops_per_token_pair=performance.attention_flops_per_token_pair,
        kv_bytes_per_token=performance.kv_bytes_per_token,
    )
    return msgspec.structs.replace(manifest, stages=(stage, stage), mesh=(MeshAxis(name="pp", size=2),))


def session(name: str, turns: list[tuple[int, int, float]], start: float = 0.0, **fields: Any) -> Session:
    """A conversation: (new tokens, output tokens, gap) by turn; each prompt holds all before it, answers included."""
    spans: list[tuple[int, int]] = []
    made: list[Turn] = []
    for number, (new, output, gap) in enumerate(turns):
        spans.append((named(name, "prompt", number), new))
        prompt = Prompt(np.array([content for content, _ in spans], np.uint64), np.cumsum([length for _, length in spans]))
        made.append(Turn(prompt, output, gap, start, "tool_call" if number + 1 < len(turns) else "end_of_turn"))
        spans.append((named(name, "answer", number), output))
        start += gap + output
    return Session(name, tuple(made), **fields)


def crowd(count: int, seed: int = 0, apart: float = 0.0) -> Trace:
    """Sessions of one to four turns; they begin `apart` seconds apart on average."""
    random, start, sessions = np.random.default_rng(seed), 0.0, []
    for number in range(count):
        turns = [
            (int(random.integers(5, 90)), int(random.integers(1, 12)), float(random.integers(0, 4)))
            for _ in range(random.integers(1, 5))
        ]
        sessions.append(session(f"s{number}", turns, start, tenant=f"t{number % 2}", priority=number % 3 % 2))
        start += float(random.exponential(apart)) if apart else 0.0
    return Trace(f"crowd of {count}", tuple(sessions))
