"""Golden cases: steps with known inputs and sampled expected logits, replayable on the device (docs/plan-format.md)."""

from __future__ import annotations

import msgspec


class GoldenSequence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of one sequence in one step: token ids at consecutive positions from `start` on."""

    key: int
    start: int
    tokens: tuple[int, ...]


class GoldenStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step. Sequences of one row come first. The last row of each sequence yields logits, of which `expected` holds the
    sampled columns: float32, little endian, [sequences, columns], correctly rounded from float64."""

    sequences: tuple[GoldenSequence, ...]
    expected: bytes


class GoldenCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps in order over one KV cache. `truncated` cases run every repeat once, so that one layer of each kind takes part.

    A replay passes when no logit is further from `expected` than `tolerance`.
    """

    name: str
    truncated: bool
    columns: tuple[int, ...]
    steps: tuple[GoldenStep, ...]
    tolerance: float


def encode_golden(case: GoldenCase) -> bytes:
    return msgspec.msgpack.encode(case)


def decode_golden(data: bytes | memoryview) -> GoldenCase:
    """Raises msgspec.DecodeError on anything that is not a golden case."""
    return msgspec.msgpack.decode(data, type=GoldenCase)
