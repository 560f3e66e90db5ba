"""Turn chosen rows into a StepBatch and a Flight, and note in the slot arrays that they are launched."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .flight import Flight
from .planning import Chunk
from .service import attribute
from .slots import PENDING, Phase
from .state import SchedulerState
from .step import BlockCopies, SlotAdmission, StepBatch, empty_step


def launch(state: SchedulerState, decodes: NDArray[np.intp], chunks: list[Chunk]) -> StepBatch:
    """The step of these decode slots and prefill chunks. Arrays are copies; nothing of the state is shared with the caller."""
    batch, flight = _build(state, decodes, chunks) if len(decodes) or chunks else _without_rows(state)
    slots = state.slots
    slots.computed[flight.slots] = flight.computed
    slots.last_token[flight.slots] = PENDING
    slots.last_step[flight.slots] = flight.step_id
    attribute(state.service, state.costs, decodes, chunks, flight.computed)
    for chunk in chunks:
        _note_chunk(state, chunk)
    state.flights.append(flight)
    if batch.rows:
        state.admitted.clear()
    state.next_step += 1
    state.counters.steps += 1
    state.counters.last_step_rows = batch.rows
    return batch


def _note_chunk(state: SchedulerState, chunk: Chunk) -> None:
    if not chunk.sequence.had_rows:
        _note_first_rows(state, chunk)
    end = chunk.start + chunk.rows
    state.counters.recomputed_tokens += max(0, min(end, chunk.sequence.computed) - chunk.start)
    chunk.sequence.computed = max(chunk.sequence.computed, end)
    if end == chunk.sequence.length:
        state.slots.phase[chunk.sequence.slot] = Phase.DECODE
        del state.prefilling[chunk.sequence.slot]


def _note_first_rows(state: SchedulerState, chunk: Chunk) -> None:
    """What the first rows of a request say of its prompt: all before them was cached."""
    sequence, counters = chunk.sequence, state.counters
    sequence.had_rows, sequence.cached_tokens = True, chunk.start
    state.slots.cached[sequence.slot] = chunk.start
    counters.prefix_queries += sequence.length
    counters.prefix_hits += chunk.start
    counters.host_hits += sequence.reloaded_tokens
    counters.prompt_tokens += sequence.length


def _build(state: SchedulerState, decodes: NDArray[np.intp], chunks: list[Chunk]) -> tuple[StepBatch, Flight]:
    slots, block_tokens = state.slots, state.kv.block_tokens
    rows = _decode_rows(state, decodes)
    if chunks:
        rows = _with_chunks(rows, chunks)
    row_slots = np.repeat(rows.sequence_slots, np.diff(rows.starts)) if chunks else decodes
    blocks = slots.block_table[row_slots, rows.positions // block_tokens].astype(np.int64)
    context = rows.positions[rows.starts[1:] - 1] + 1

    names = [state.running[slot].request_id for slot in rows.sequence_slots.tolist()]
    sampled_names = tuple(names) if len(rows.samples) == len(names) else tuple(names[i] for i in rows.samples.tolist())
    binding = slots.binding[rows.sequence_slots]
    flight = Flight(state.next_step, rows.sequence_slots, binding, context, rows.samples, sampled_names)
    flight.chunks, flight.chunk_rows = len(chunks), sum(chunk.rows for chunk in chunks)
    saves, loads = _copies(state, len(row_slots), float(rows.positions.sum()), float(context.sum()))
    batch = StepBatch(
        step_id=state.next_step,
        token_ids=rows.token_ids,
        positions=rows.positions,
        slot_mapping=blocks * block_tokens + rows.positions % block_tokens,
        row_slots=row_slots.astype(np.int32),
        sequence_starts=rows.starts,
        context_lengths=context.copy(),
        block_tables=slots.block_table[rows.sequence_slots, : -(-int(context.max()) // block_tokens)],
        logit_rows=rows.starts[1:][rows.samples] - 1,
        logit_slots=rows.sequence_slots[rows.samples].astype(np.int32),
        decode_rows=len(decodes),
        request_ids=tuple(names),
        logit_request_ids=sampled_names,
        admissions=tuple(SlotAdmission(s.request_id, s.slot, s.prompt(), s.output()) for s in state.admitted),
        saves=saves,
        loads=loads,
    )
    return batch, flight


def _without_rows(state: SchedulerState) -> tuple[StepBatch, Flight]:
    """A step that copies and computes nothing."""
    saves, loads = _copies(state, 0, 0.0, 0.0)
    none = np.empty(0, np.int32)
    flight = Flight(state.next_step, none.astype(np.intp), none.astype(np.int64), none, none.astype(np.intp), ())
    return replace(empty_step(state.next_step), saves=saves, loads=loads), flight


def _copies(
    state: SchedulerState, rows: int, token_pairs: float, context: float
) -> tuple[tuple[BlockCopies, ...], tuple[BlockCopies, ...]]:
    """What the step saves and loads."""
    if not state.kv.has_tier:
        return (), ()
    saved = state.copied_blocks(rows, token_pairs, context) if rows else state.kv.blocks
    return state.kv.launch(state.next_step, saved)


class _Rows(NamedTuple):
    """By sequence: slots, first rows (and the end). By row: positions, tokens. `samples`: sequences that sample."""

    sequence_slots: NDArray[np.intp]
    starts: NDArray[np.int32]
    positions: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    samples: NDArray[np.intp]


def _decode_rows(state: SchedulerState, decodes: NDArray[np.intp]) -> _Rows:
    """One row each, no Python object touched."""
    count, slots = len(decodes), state.slots
    starts = np.arange(count + 1, dtype=np.int32)
    return _Rows(decodes, starts, slots.computed[decodes], slots.last_token[decodes], np.arange(count))


def _with_chunks(rows: _Rows, chunks: list[Chunk]) -> _Rows:
    """Prefill chunks after the decode rows; a chunk that reaches the last known token samples."""
    decodes, slots = len(rows.sequence_slots), [chunk.sequence.slot for chunk in chunks]
    ends = np.cumsum([chunk.rows for chunk in chunks]) + decodes
    positions = [np.arange(chunk.start, chunk.start + chunk.rows) for chunk in chunks]
    tokens = [chunk.sequence.tokens()[chunk.start : chunk.start + chunk.rows] for chunk in chunks]
    last = [decodes + index for index, chunk in enumerate(chunks) if chunk.start + chunk.rows == chunk.sequence.length]
    return _Rows(
        np.concatenate((rows.sequence_slots, slots), dtype=np.intp),
        np.concatenate((rows.starts, ends), dtype=np.int32),
        np.concatenate((rows.positions, *positions), dtype=np.int32),
        np.concatenate((rows.token_ids, *tokens), dtype=np.int32),
        np.concatenate((rows.samples, np.array(last, dtype=np.intp))),
    )
