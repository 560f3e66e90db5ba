"""What each running sequence takes of the machine: the predicted seconds of its rows, step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...plans.perf_model import StepWork, chunk_token_pairs
from .chunk import Chunk
from .costs import NOMINAL_ROW_SECONDS, StepCosts
from .step import IntArray

_PUT_OFF = 32


class Service:
    """Predicted seconds by slot. Steps of decode rows alone are only noted, and shared out together when somebody asks."""

    def __init__(self, slots: int, costs: StepCosts | None) -> None:
        self._seconds: NDArray[np.float64] = np.zeros(slots)
        self._costs = costs
        self._noted: list[tuple[NDArray[np.intp], IntArray]] = []

    def begin(self, slot: int) -> None:
        """Another sequence has the slot."""
        self._share_out()
        self._seconds[slot] = 0.0

    def of(self, slot: int) -> float:
        self._share_out()
        return float(self._seconds[slot])

    def add(self, decodes: NDArray[np.intp], chunks: list[Chunk], context: IntArray) -> None:
        """A step of these slots that decode and chunks; `context`[sequence] tokens, those that decode first. Keeps the arrays."""
        if chunks:
            self._add_with_chunks(decodes, chunks, context)
        elif len(decodes):
            self._noted.append((decodes, context))
            if len(self._noted) >= _PUT_OFF:
                self._share_out()

    def _share_out(self) -> None:
        if not self._noted:
            return
        slots = np.concatenate([decodes for decodes, _ in self._noted])
        contexts = np.concatenate([context for _, context in self._noted]).astype(np.float64)
        lengths = np.array([len(decodes) for decodes, _ in self._noted])
        self._noted.clear()
        if self._costs is None:
            parts = np.full(len(slots), NOMINAL_ROW_SECONDS)
        else:
            costs, starts = self._costs, np.cumsum(lengths) - lengths
            attended = np.add.reduceat(contexts, starts)
            steps = zip(lengths.tolist(), attended.tolist(), strict=True)
            seconds = np.array([costs.step_seconds(StepWork(rows, tokens)) for rows, tokens in steps])
            scale = seconds / (costs.row_seconds * lengths + costs.decode_token_seconds * attended)
            parts = (costs.row_seconds + costs.decode_token_seconds * contexts) * np.repeat(scale, lengths)
        self._seconds += np.bincount(slots, parts, len(self._seconds))

    def _add_with_chunks(self, decodes: NDArray[np.intp], chunks: list[Chunk], context: IntArray) -> None:
        """Share the step's predicted seconds out among all its sequences' slots."""
        costs, count = self._costs, len(decodes)
        if costs is None:
            self._seconds[decodes] += NOMINAL_ROW_SECONDS
            for chunk in chunks:
                self._seconds[chunk.sequence.slot] += chunk.rows * NOMINAL_ROW_SECONDS
            return
        parts = costs.row_seconds + costs.decode_token_seconds * context[:count]
        work = StepWork(count, float(context[:count].sum()) if count else 0.0)
        total = costs.row_seconds * count + costs.decode_token_seconds * work.decode_tokens
        of_chunks: list[float] = []
        for chunk in chunks:
            own = costs.row_seconds * chunk.rows + costs.pair_seconds * chunk_token_pairs(chunk.start, chunk.rows)
            of_chunks.append(own + costs.token_seconds * (chunk.start + chunk.rows))
            work, total = work.with_chunk(chunk.start, chunk.rows), total + of_chunks[-1]
        scale = costs.step_seconds(work) / total
        self._seconds[decodes] += parts * scale
        for chunk, part in zip(chunks, of_chunks, strict=True):
            self._seconds[chunk.sequence.slot] += part * scale
