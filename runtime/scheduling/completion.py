"""Take in the results of the oldest launched step: seal what is full, append tokens, find who ends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .flight import Flight
from .request import FinishReason, Outcome
from .sequence import Sequence, Status
from .slots import PENDING
from .state import SchedulerState

_PENDING = np.array(PENDING, np.int32)


def complete(state: SchedulerState, flight: Flight, tokens: NDArray[np.int32]) -> list[Outcome]:
    """`tokens`[logit row]: what the step sampled. Rows of sequences that left their slot since the launch are dead."""
    sampled = flight.slots if len(flight.samples) == len(flight.slots) else flight.slots[flight.samples]
    if flight.departures == state.slots.departures:
        _confirm(state, flight.slots, flight.computed)
        outcomes = _append(state, sampled, flight.sampled_ids, tokens)
    else:
        outcomes = _complete_live(state, flight, sampled, tokens)
    state.retire_step(flight)
    return outcomes


def _complete_live(state: SchedulerState, flight: Flight, sampled: NDArray[np.intp], tokens: NDArray[np.int32]) -> list[Outcome]:
    """Some sequence has left its slot since the launch, perhaps one of this step."""
    live = state.slots.binding[flight.slots] == flight.bindings
    _confirm(state, flight.slots[live], flight.computed[live])
    sampling = live[flight.samples]
    names = [name for name, lives in zip(flight.sampled_ids, sampling.tolist(), strict=True) if lives]
    outcomes = _append(state, sampled[sampling], names, tokens[sampling])
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


def _confirm(state: SchedulerState, slots: NDArray[np.intp], computed: NDArray[np.int32]) -> None:
    """The KV of the first `computed` tokens is written. Units are sealed before new tokens overwrite the recent ones."""
    table = state.slots
    table.confirmed[slots] = computed
    full = (computed - table.sealed[slots] >= table.unit_tokens).nonzero()[0]
    for slot in slots[full].tolist() if len(full) else ():
        sequence = state.running[slot]
        state.flush(sequence)
        _seal(state, sequence, int(table.confirmed[slot]) // table.unit_tokens)


def _seal(state: SchedulerState, sequence: Sequence, units: int) -> None:
    assert sequence.blocks is not None
    sequence.hash_units(units)
    first = int(state.slots.sealed[sequence.slot]) // state.slots.unit_tokens
    for unit in range(first, units):
        parent, digest = sequence.chain.digests[unit : unit + 2]
        state.kv.seal(sequence.blocks, digest, parent, sequence.unit_bytes(unit))
    state.slots.sealed[sequence.slot] = units * state.slots.unit_tokens
    if state.kv.windows:
        state.leave_behind(sequence, int(state.slots.confirmed[sequence.slot]))


def _append(state: SchedulerState, slots: NDArray[np.intp], names: Iterable[str], tokens: NDArray[np.int32]) -> list[Outcome]:
    """One token more for each of these slots, of requests `names`; no Python object is touched but for those that end."""
    table = state.slots
    position = table.length[slots]
    table.recent[slots, position % table.unit_tokens] = tokens
    table.length[slots] = position + 1
    # With a further step in flight, the token it feeds on is this one; the one after it is still to come.
    alone = len(state.flights) == 1
    table.last_token[slots] = tokens if alone else np.where(table.computed[slots] == position, tokens, _PENDING)
    state.counters.generation_tokens += len(slots)

    values = tokens.tolist()
    ended = _ended(state, slots, position + 1, values)
    cached = table.cached[slots].tolist()
    outcomes = [Outcome(name, token, None, None, hits) for name, token, hits in zip(names, values, cached, strict=True)]
    for index, reason in ended.items():
        sequence = state.running[int(slots[index])]
        outcomes[index] = sequence.outcome(values[index], reason)
        state.finish(sequence)
    return outcomes


def _ended(
    state: SchedulerState, slots: NDArray[np.intp], length: NDArray[np.int32], values: list[int]
) -> dict[int, FinishReason]:
    """Which of the slots end with their new token, by index. A stop token at the limit is a stop."""
    ended: dict[int, FinishReason] = {}
    for index in (length >= state.slots.limit[slots]).nonzero()[0].tolist():
        ended[index] = "length"
    if not state.stop_tokens.keys().isdisjoint(values):
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
