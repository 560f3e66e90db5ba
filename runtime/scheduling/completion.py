"""Take in the results of the oldest launched step: seal what is full, append tokens, find who ends."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from .flight import Flight
from .request import FinishReason, Outcome
from .sequence import Sequence, Status
from .slots import PENDING
from .state import SchedulerState
from .step import IntArray

_PENDING, _ONE, _NOTHING = np.array(PENDING, np.int32), np.array(1, np.int32), repeat(None)


def complete(state: SchedulerState, flight: Flight, tokens: IntArray) -> list[Outcome]:
    """`tokens`[logit row]: what the step sampled. Rows of sequences that left their slot since the launch are dead."""
    every = len(flight.samples) == len(flight.slots)
    sampled, positions = flight.slots, flight.computed
    if not every:
        sampled, positions = sampled[flight.samples], positions[flight.samples]
    if flight.departures == state.slots.departures:
        _confirm(state, flight.slots, flight.computed, flight.filling)
        outcomes = _append(state, sampled, flight.sampled_ids, positions, tokens, flight.may_end)
    else:
        outcomes = _complete_live(state, flight, sampled, positions, tokens)
    state.retire_step(flight)
    return outcomes


def _complete_live(
    state: SchedulerState, flight: Flight, sampled: NDArray[np.intp], positions: IntArray, tokens: IntArray
) -> list[Outcome]:
    """Some sequence has left its slot since the launch, perhaps one of this step."""
    live = state.slots.binding[flight.slots] == flight.bindings
    _confirm(state, flight.slots[live], flight.computed[live], np.arange(np.count_nonzero(live)))
    sampling = live[flight.samples]
    names = [name for name, lives in zip(flight.sampled_ids, sampling.tolist(), strict=True) if lives]
    outcomes = _append(state, sampled[sampling], names, positions[sampling], tokens[sampling], flight.may_end)
    if not sampling.all():
        dead = np.flatnonzero(~sampling)
        outcomes += _late(state, flight, sampled[dead].tolist(), tokens[dead].tolist())
    return outcomes


def fail(state: SchedulerState, flight: Flight) -> list[Outcome]:
    """The step was not executed, or wrongly: every sequence in it, or that needs what it was to load, ends with "error". What
    was sealed before stays good."""
    live = state.slots.binding[flight.slots] == flight.bindings
    affected = [state.running[slot] for slot in flight.slots[live].tolist()]
    affected += [sequence for sequence in flight.preempted.values() if sequence.status is Status.WAITING]
    if state.kv.fail_step(flight.step_id):
        affected += _readers(state, affected)
    for sequence in affected:
        state.finish(sequence)
    state.retire_step(flight)
    return [sequence.outcome(None, "error") for sequence in affected]


def _readers(state: SchedulerState, affected: list[Sequence]) -> list[Sequence]:
    """Further sequences that hold what the failed step was to load; and those preempted since a later step was launched with
    rows of them, which may have read it."""
    further = [s for s in state.running.values() if s.blocks is not None and state.kv.is_spoilt(s.blocks)]
    further += [s for flight in state.flights for s in flight.preempted.values() if s.status is Status.WAITING]
    return [sequence for sequence in dict.fromkeys(further) if sequence not in affected]


def _confirm(state: SchedulerState, slots: NDArray[np.intp], computed: IntArray, filling: NDArray[np.intp]) -> None:
    """The KV of the first `computed` tokens is written. Units are sealed before new tokens overwrite the recent ones; none can be
    full but those of the sequences that `filling` indexes."""
    table = state.slots
    table.confirmed[slots] = computed
    if not len(filling):
        return
    for slot, tokens in zip(slots[filling].tolist(), computed[filling].tolist(), strict=True):
        if tokens - table.sealed[slot] >= table.unit_tokens:
            sequence = state.running[slot]
            state.flush(sequence)
            _seal(state, sequence, tokens // table.unit_tokens)


def _seal(state: SchedulerState, sequence: Sequence, units: int) -> None:
    assert sequence.blocks is not None
    first = int(state.slots.sealed[sequence.slot]) // state.slots.unit_tokens
    for unit in range(first, units):
        tokens = sequence.unit_bytes(unit)
        parent, digest = sequence.chain.link(unit, tokens)
        state.kv.seal(sequence.blocks, digest, parent, tokens)
    state.slots.sealed[sequence.slot] = units * state.slots.unit_tokens
    if state.kv.windows:
        state.leave_behind(sequence, int(state.slots.confirmed[sequence.slot]))


def _append(
    state: SchedulerState,
    slots: NDArray[np.intp],
    names: Iterable[str],
    positions: IntArray,
    tokens: IntArray,
    may_end: bool,
) -> list[Outcome]:
    """One token more for each of these slots, of requests `names`, at these positions; no Python object is touched but for those
    that end."""
    table, length = state.slots, positions + _ONE
    table.recent_tokens[slots * table.unit_tokens + positions % table.unit_tokens] = tokens
    table.length[slots] = length
    # With a further step in flight, the token it feeds on is this one; the one after it is still to come.
    alone = len(state.flights) == 1
    table.last_token[slots] = tokens if alone else np.where(table.computed[slots] == positions, tokens, _PENDING)
    state.counters.generation_tokens += len(slots)

    values = tokens.tolist()
    outcomes = [*map(Outcome, names, values, _NOTHING, _NOTHING, table.cached[slots].tolist())]
    ended = _at_limit(state, slots, length) if may_end else {}
    if not state.stop_tokens.keys().isdisjoint(values):
        ended |= _stopped(state, slots, length, values)
    for index, reason in ended.items():
        sequence = state.running[int(slots[index])]
        outcomes[index] = sequence.outcome(values[index], reason)
        state.finish(sequence)
    return outcomes


def _at_limit(state: SchedulerState, slots: NDArray[np.intp], length: IntArray) -> dict[int, FinishReason]:
    """Which of the slots end with their new token, by index, because no further one is wanted."""
    return dict.fromkeys((length >= state.slots.limit[slots]).nonzero()[0].tolist(), "length")


def _stopped(state: SchedulerState, slots: NDArray[np.intp], length: IntArray, values: list[int]) -> dict[int, FinishReason]:
    """Which of them end because it is a stop token; that at the limit is a stop too."""
    ended: dict[int, FinishReason] = {}
    for index, token in enumerate(values):
        if token in state.stop_tokens:
            sequence = state.running[int(slots[index])]
            if sequence.is_stop(token, int(length[index]) - 1 - sequence.prompt_length):
                ended[index] = "stop"
    return ended


def _late(state: SchedulerState, flight: Flight, slots: list[int], values: list[int]) -> list[Outcome]:
    """Tokens of sequences that left their slot: kept for the preempted, dropped for those that ended."""
    outcomes = []
    for slot, token in zip(slots, values, strict=True):
        sequence = flight.preempted.get(slot)
        if sequence is None or sequence.status is not Status.WAITING:
            state.counters.discarded_tokens += 1
            continue
        outcomes.append(_append_waiting(state, sequence, token))
    return outcomes


def _append_waiting(state: SchedulerState, sequence: Sequence, token: int) -> Outcome:
    stopped = sequence.is_stop(token, sequence.length - sequence.prompt_length)
    sequence.append(np.array([token], dtype=np.int32))
    state.counters.generation_tokens += 1
    reason: FinishReason | None = "stop" if stopped else "length" if sequence.length >= sequence.limit else None
    if reason is not None:
        state.finish(sequence)
    return sequence.outcome(token, reason)
