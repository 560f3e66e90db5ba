"""Turn chosen rows into a StepBatch and a Flight, and note in the slot arrays that they are launched."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from .chunk import Chunk
from .cohort import Cohort, fixed
from .costs import work_of
from .flight import Flight
from .slots import PENDING, places
from .state import SchedulerState
from .step import BlockCopies, IntArray, SlotAdmission, StepBatch, WindowPart, empty_step


def launch(state: SchedulerState, decodes: NDArray[np.intp], chunks: list[Chunk]) -> StepBatch:
    """The step of these decode slots and prefill chunks. Nobody may write to its arrays."""
    for chunk in chunks if state.kv.windows else ():
        state.cover(chunk.sequence, chunk.start + chunk.rows)
    if chunks:
        batch, flight = _with_chunks(state, _cohort(state, decodes), chunks)
    else:
        batch, flight = _of_decodes(state, _cohort(state, decodes))
    slots = state.slots
    slots.computed[flight.slots] = flight.computed
    slots.last_token[flight.slots] = PENDING
    slots.last_step[flight.slots] = flight.step_id
    state.service.add(decodes, chunks, flight.computed)
    for chunk in chunks:
        _note_chunk(state, chunk)
    if state.admitted:
        state.admitted.clear()
    return _launched(state, batch, flight)


def launch_copies(state: SchedulerState) -> StepBatch | None:
    """A step that computes nothing: loads that rows wait for, saves that admissions wait for, and where nobody waits to run what
    a pause leaves time for. None where there is nothing to copy."""
    kv, none, slots = state.kv, np.empty(0, np.int32), np.empty(0, np.intp)
    pause = not state.flights and len(state.waiting) == state.waiting.parked
    if not (kv.has_tier and (pause or kv.boarding_blocks or kv.awaits_copies)):
        return None
    saves, loads = kv.launch(state.next_step, max(state.copied_blocks(None), kv.boarding_blocks, kv.unit_blocks))
    if not saves and not loads:
        return None
    flight = Flight(state.next_step, slots, none.astype(np.int64), none, slots, (), state.slots.departures, slots, False)
    return _launched(state, replace(empty_step(state.next_step), saves=saves, loads=loads), flight)


def _launched(state: SchedulerState, batch: StepBatch, flight: Flight) -> StepBatch:
    state.flights.append(flight)
    state.next_step += 1
    state.counters.steps += 1
    state.counters.last_step_rows = batch.rows
    return batch


def _cohort(state: SchedulerState, decodes: NDArray[np.intp]) -> Cohort:
    """The decode rows of this step: those of the last one a token further, if they are of the same sequences."""
    if state.cohort.slots is decodes:
        state.cohort.advance()
    else:
        state.cohort = Cohort(state.slots, decodes, state.kv.block_tokens)
    if state.cohort.ends:
        state.slots.look_again()
    return state.cohort


def _note_chunk(state: SchedulerState, chunk: Chunk) -> None:
    if not chunk.sequence.had_rows:
        _note_first_rows(state, chunk)
    end = chunk.start + chunk.rows
    state.counters.recomputed_tokens += max(0, min(end, chunk.sequence.computed) - chunk.start)
    chunk.sequence.computed = max(chunk.sequence.computed, end)
    if end == chunk.sequence.length:
        state.slots.begin_to_decode(chunk.sequence.slot, chunk.sequence.request_id)
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


def _of_decodes(state: SchedulerState, cohort: Cohort) -> tuple[StepBatch, Flight]:
    """No Python object is touched for a row."""
    slots, names = state.slots, cohort.names
    saves, loads = _copies(state, len(names), cohort.positions, cohort.context)
    flight = Flight(
        state.next_step,
        cohort.slots,
        cohort.bindings,
        cohort.context,
        cohort.samples,
        names,
        slots.departures,
        cohort.turning,
        cohort.ends,
    )
    batch = StepBatch(  # by position, which costs a quarter
        state.next_step,
        slots.last_token[cohort.slots],
        cohort.positions,
        cohort.mapping,
        cohort.row_slots,
        cohort.starts,
        cohort.context,
        cohort.tables,
        cohort.starts[:-1],
        cohort.row_slots,
        len(names),
        names,
        names,
        _admissions(state),
        saves,
        loads,
        _windows(state, cohort.slots, cohort.slots, cohort.positions, cohort.tables.shape[1]) if slots.window_tables else (),
    )
    return batch, flight


def _with_chunks(state: SchedulerState, cohort: Cohort, chunks: list[Chunk]) -> tuple[StepBatch, Flight]:
    """Prefill chunks after the decode rows; a chunk that reaches the last known token samples."""
    slots, block_tokens, decodes = state.slots, state.kv.block_tokens, len(cohort.slots)
    chunk_slots = np.array([chunk.sequence.slot for chunk in chunks], np.intp)
    counts = [chunk.rows for chunk in chunks]
    row_slots = np.repeat(chunk_slots, counts)
    positions = np.concatenate([np.arange(chunk.start, chunk.start + chunk.rows, dtype=np.int32) for chunk in chunks])
    tokens = [chunk.sequence.tokens()[chunk.start : chunk.start + chunk.rows] for chunk in chunks]
    ends = [chunk.start + chunk.rows for chunk in chunks]
    finished = [index for index, chunk in enumerate(chunks) if ends[index] == chunk.sequence.length]

    sequence_slots = np.concatenate((cohort.slots, chunk_slots))
    starts = np.concatenate((cohort.starts, decodes + np.cumsum(counts)), dtype=np.int32)
    context = fixed(np.concatenate((cohort.context, ends), dtype=np.int32))
    samples = np.concatenate((cohort.samples, np.array(finished, np.intp) + decodes))
    all_positions = np.concatenate((cohort.positions, positions))
    columns = -(-max(cohort.longest, *ends) // block_tokens)
    names = cohort.names + tuple([chunk.sequence.request_id for chunk in chunks])
    sampling = cohort.names + tuple([names[decodes + index] for index in finished])
    saves, loads = _copies(state, decodes, all_positions, context)
    turning = np.concatenate((cohort.turning, slots.numbers[decodes : decodes + len(chunks)]))
    flight = Flight(
        state.next_step,
        sequence_slots,
        np.concatenate((cohort.bindings, slots.binding[chunk_slots])),
        context,
        samples,
        sampling,
        slots.departures,
        turning,
        cohort.ends or bool(finished),
    )
    flight.chunks, flight.chunk_rows = len(chunks), len(positions)
    all_slots = np.concatenate((cohort.slots, row_slots)) if slots.window_tables else row_slots
    batch = StepBatch(
        step_id=state.next_step,
        token_ids=np.concatenate((slots.last_token[cohort.slots], *tokens)),
        positions=all_positions,
        slot_mapping=np.concatenate((cohort.mapping, places(slots.block_table, row_slots, positions, block_tokens))),
        row_slots=np.concatenate((cohort.row_slots, row_slots), dtype=np.int32),
        sequence_starts=starts,
        context_lengths=context,
        block_tables=slots.block_table[sequence_slots, :columns],
        logit_rows=starts[1:][samples] - 1,
        logit_slots=sequence_slots[samples].astype(np.int32),
        decode_rows=decodes,
        request_ids=names,
        logit_request_ids=sampling,
        admissions=_admissions(state),
        saves=saves,
        loads=loads,
        windows=_windows(state, sequence_slots, all_slots, all_positions, columns),
    )
    return batch, flight


def _admissions(state: SchedulerState) -> tuple[SlotAdmission, ...]:
    return tuple([SlotAdmission(s.request_id, s.slot, s.prompt(), s.output()) for s in state.admitted]) if state.admitted else ()


def _windows(
    state: SchedulerState, slots: NDArray[np.intp], row_slots: NDArray[np.intp], positions: IntArray, columns: int
) -> tuple[WindowPart, ...]:
    """Of sequences in these slots, and rows of sequences in `row_slots` at these positions."""
    size = state.kv.block_tokens
    return tuple(
        [WindowPart(table[slots, :columns], places(table, row_slots, positions, size)) for table in state.slots.window_tables]
    )


def _copies(
    state: SchedulerState, decodes: int, positions: IntArray, context: IntArray
) -> tuple[tuple[BlockCopies, ...], tuple[BlockCopies, ...]]:
    """What a step with rows of these positions saves and loads."""
    if not state.kv.has_tier:
        return (), ()
    saved = state.copied_blocks(work_of(decodes, positions, context)) if state.kv.has_unsaved else 0
    return state.kv.launch(state.next_step, saved)
