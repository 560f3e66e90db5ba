"""Turn chosen rows into a StepBatch and a Flight, and note in the slot arrays that they are launched."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .chunk import Chunk
from .flight import Flight
from .slots import PENDING, Phase
from .state import SchedulerState
from .step import BlockCopies, IntArray, SlotAdmission, StepBatch, WindowPart, empty_step


def launch(state: SchedulerState, decodes: NDArray[np.intp], chunks: list[Chunk]) -> StepBatch:
    """The step of these decode slots and prefill chunks. Arrays are copies; nothing of the state is shared with the caller."""
    for chunk in chunks if state.kv.windows else ():
        state.cover(chunk.sequence, chunk.start + chunk.rows)
    batch, flight = _build(state, decodes, chunks) if len(decodes) or chunks else _without_rows(state)
    slots = state.slots
    slots.computed[flight.slots] = flight.computed
    slots.last_token[flight.slots] = PENDING
    slots.last_step[flight.slots] = flight.step_id
    state.service.add(decodes, chunks, flight.computed)
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
        state.slots.names[chunk.sequence.slot] = chunk.sequence.request_id
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
    size = np.array(block_tokens, np.int32)  # beside an array of this type cheaper than a number
    blocks, offsets = rows.positions // size, rows.positions % size
    context = (rows.positions[rows.starts[1:] - 1] if chunks else rows.positions) + 1
    names = tuple(slots.names[decodes].tolist() + [chunk.sequence.request_id for chunk in chunks])
    sampled_names = names if len(rows.samples) == len(names) else tuple(names[i] for i in rows.samples.tolist())
    binding = slots.binding[rows.sequence_slots]
    flight = Flight(state.next_step, rows.sequence_slots, binding, context, rows.samples, sampled_names, slots.departures)
    flight.chunks, flight.chunk_rows = len(chunks), sum(chunk.rows for chunk in chunks)
    saves, loads = _copies(state, rows.positions, context)
    columns = -(-int(np.maximum.reduce(context)) // block_tokens)
    slots_of_rows = row_slots.astype(np.int32)
    batch = StepBatch(
        step_id=state.next_step,
        token_ids=rows.token_ids,
        positions=rows.positions,
        slot_mapping=slots.block_table[row_slots, blocks].astype(np.int64) * block_tokens + offsets,
        row_slots=slots_of_rows,
        sequence_starts=rows.starts,
        context_lengths=context.copy(),
        block_tables=slots.block_table[rows.sequence_slots, :columns],
        logit_rows=rows.starts[1:][rows.samples] - 1 if chunks else rows.starts[:-1].copy(),
        logit_slots=rows.sequence_slots[rows.samples].astype(np.int32) if chunks else slots_of_rows.copy(),
        decode_rows=len(decodes),
        request_ids=names,
        logit_request_ids=sampled_names,
        admissions=tuple([SlotAdmission(s.request_id, s.slot, s.prompt(), s.output()) for s in state.admitted]),
        saves=saves,
        loads=loads,
        windows=tuple(
            WindowPart(
                block_tables=table[rows.sequence_slots, :columns],
                slot_mapping=table[row_slots, blocks].astype(np.int64) * block_tokens + offsets,
            )
            for table in slots.window_tables
        )
        if slots.window_tables
        else (),
    )
    return batch, flight


def _without_rows(state: SchedulerState) -> tuple[StepBatch, Flight]:
    """A step that copies and computes nothing."""
    none, slots = np.empty(0, np.int32), np.empty(0, np.intp)
    saves, loads = _copies(state, none, none)
    flight = Flight(state.next_step, slots, none.astype(np.int64), none, slots, (), state.slots.departures)
    return replace(empty_step(state.next_step), saves=saves, loads=loads), flight


def _copies(
    state: SchedulerState, positions: IntArray, context: IntArray
) -> tuple[tuple[BlockCopies, ...], tuple[BlockCopies, ...]]:
    """What a step with rows of these positions saves and loads."""
    if not state.kv.has_tier:
        return (), ()
    rows = len(positions)
    saved = state.copied_blocks(rows, float(positions.sum()), float(context.sum())) if rows else state.kv.blocks
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
    starts, samples = slots.numbers[: count + 1].astype(np.int32), slots.numbers[:count]
    return _Rows(decodes, starts, slots.computed[decodes], slots.last_token[decodes], samples)


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
