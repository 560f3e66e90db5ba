"""What each running sequence takes of the machine: the predicted seconds of its rows, step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...plans.perf_model import chunk_token_pairs
from .costs import NOMINAL_ROW_SECONDS, StepCosts
from .planning import Chunk


def attribute(
    service: NDArray[np.float64],
    costs: StepCosts | None,
    decodes: NDArray[np.intp],
    chunks: list[Chunk],
    context: NDArray[np.int32],
) -> None:
    """Share a step's predicted seconds out among its sequences' slots: `context`[sequence] tokens, those that decode first."""
    if costs is None:
        service[decodes] += NOMINAL_ROW_SECONDS
        for chunk in chunks:
            service[chunk.sequence.slot] += chunk.rows * NOMINAL_ROW_SECONDS
        return
    count = len(decodes)
    of_decodes = context[:count] if chunks else context
    attended = float(np.add.reduce(of_decodes))
    rows, pairs, total = count, attended, costs.row_seconds * count + costs.decode_token_seconds * attended
    if not chunks:
        scale = costs.step_seconds(rows, pairs, attended) / total if count else 0.0
        service[decodes] += of_decodes * (costs.decode_token_seconds * scale) + costs.row_seconds * scale
        return
    of_chunks: list[float] = []
    for chunk, end in zip(chunks, context[count:].tolist(), strict=True):
        own = chunk_token_pairs(chunk.start, chunk.rows)
        of_chunks.append(costs.row_seconds * chunk.rows + costs.token_seconds * end + costs.pair_seconds * own)
        rows, pairs, attended, total = rows + chunk.rows, pairs + own, attended + end, total + of_chunks[-1]
    scale = costs.step_seconds(rows, pairs, attended) / total
    service[decodes] += of_decodes * (costs.decode_token_seconds * scale) + costs.row_seconds * scale
    for chunk, part in zip(chunks, of_chunks, strict=True):
        service[chunk.sequence.slot] += part * scale
