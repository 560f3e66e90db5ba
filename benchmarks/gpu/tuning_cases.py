"""What tiles are tuned for: the layers, attentions and experts of three models, at the rows that buckets have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .cases import Case, Heads, attention_case, linear_case
from .experts_case import experts_case

Kind = Literal["linear", "attention", "experts"]
"""The lists of a table (targets/triton/measured_tiles.py)."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LAYERS = (
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),  # Llama 3.1 8B; qkv and o of Qwen3 8B too
    *((24576, 4096), (4096, 12288)),  # Qwen3 8B
    *((5120, 2048), (2048, 4096), (128, 2048)),  # Qwen3 30B-A3B, its router the last
)
"""Columns of output and of input."""

HEADS = ((128256, 4096), (151936, 2048))
"""Of logits, which few rows want: Llama 3.1 8B (Qwen3 8B's is like it) and Qwen3 30B-A3B."""

CONTEXTS = {1: (2048, 16384), 2: (4096, 16384), 4: (4096, 32768), 8: (4096,), 16: (4096,), 32: (4096,), 64: (4096,)}
"""Of so many decoding sequences."""

EXPERTS = (128, 8, 2048, 768)
"""Experts, of each row, hidden and inner: Qwen3 30B-A3B."""

MOST_CONTEXT_BLOCKS = 512
HEADS_AT_ONCE = 32


@dataclass(frozen=True)
class TuningCase:
    """A case and the table's row that it speaks for: `key` are that row's fields. Cases of equal keys are judged together."""

    kind: Kind
    key: dict[str, int]
    case: Case
    context: int = 0


def tuning_cases() -> Iterator[TuningCase]:
    """All of them."""
    for columns, inner in LAYERS:
        for rows in ROWS:
            yield _linear(rows, columns, inner)
    for columns, inner in HEADS:
        for rows in ROWS[:7]:
            yield _linear(rows, columns, inner)
    for kv_heads, width in ((8, 128), (4, 128)):
        heads = Heads(HEADS_AT_ONCE, kv_heads, MOST_CONTEXT_BLOCKS)
        for sequences, contexts in CONTEXTS.items():
            for context in contexts:
                # as steps come: in the midst of a block
                case = attention_case(f"{sequences} x {context}, {kv_heads} kv heads", [1] * sequences, context - 28, heads)
                key = {"rows": sequences, "kv_heads": kv_heads, "width": width}
                yield TuningCase("attention", key, case, context)
    experts, top_k, hidden, inner = EXPERTS
    for rows in ROWS:
        key = {"rows": rows, "experts": experts, "top_k": top_k, "hidden": hidden, "inner": inner}
        yield TuningCase("experts", key, experts_case(rows, *EXPERTS))


def _linear(rows: int, columns: int, inner: int) -> TuningCase:
    key = {"rows": rows, "columns": columns, "inner": inner}
    return TuningCase("linear", key, linear_case(f"{columns} x {inner}", rows, columns, inner))
