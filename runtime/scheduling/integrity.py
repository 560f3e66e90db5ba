"""Every invariant that ties requests, slots and blocks together; the blocks' own are in kv_integrity.py."""

from __future__ import annotations

from .cohort import Cohort
from .errors import IntegrityError
from .flight import Flight
from .kv_integrity import check_kv
from .sequence import Sequence, Status
from .slots import Phase
from .state import SchedulerState
from .windows import entries


def check_state(state: SchedulerState) -> None:
    """Raises IntegrityError naming the first invariant that is broken."""
    check_kv(state.kv)
    _check_membership(state)
    _check_cohort(state)
    for slot, sequence in state.running.items():
        _check_slot(state, slot, sequence)
        _check_blocks(state, slot, sequence)
    for flight in state.flights:
        _check(flight.step_id > state.completed_step, "a completed step is in flight")
    if state.pipeline is not None:
        _check(len(state.flights) <= state.pipeline.depth, "more steps are in flight than the pipeline is deep")
        launched = [
            bound for flight in state.flights for bound in zip(flight.slots.tolist(), flight.bindings.tolist(), strict=True)
        ]
        _check(len({*launched}) == len(launched), "a sequence has rows in two steps in flight")


def _check_cohort(state: SchedulerState) -> None:
    """What is kept of the last step of decode rows, if it is of those that are ready, is what would be worked out anew."""
    slots, kept = state.slots, state.cohort
    ready = slots.ready_to_decode()
    _check(ready.tolist() == slots.find_ready().tolist(), "others are ready to decode than those that are listed")
    if kept.slots is not ready or not len(ready):
        return
    anew = Cohort(slots, ready, state.kv.block_tokens)
    _check(kept.context.tolist() == anew.positions.tolist(), "kept rows are not those of the last step")
    _check((kept.names, kept.bindings.tolist()) == (anew.names, anew.bindings.tolist()), "kept rows are of other sequences")
    _check(kept.longest + 1 == anew.longest and kept.rows_left - 1 == anew.rows_left, "kept rows end at other places")


def _check_membership(state: SchedulerState) -> None:
    slots = state.slots
    running = [s for s in state.requests.values() if s.status is Status.RUNNING]
    waiting = [s for s in state.requests.values() if s.status is Status.WAITING]
    fetching = [s for s in state.requests.values() if s.status is Status.FETCHING]
    _check(len(running) + len(waiting) + len(fetching) == len(state.requests), "a finished request is still listed")
    _check(
        {id(s) for s in fetching} == {id(s) for s in state.fetching.values()},
        "others wait for the disk than those listed",
    )
    jobs = set() if state.kv.disk is None else {*state.kv.disk.storing, *state.kv.disk.fetching}
    _check(all(s.fetches and s.fetches <= jobs for s in fetching), "a request waits for a job that is not under way")
    _check(len(waiting) == len(state.waiting), "the queue miscounts the waiting requests")
    _check({s.slot for s in running} == set(state.running), "slots and running requests disagree")
    occupied = {slot for slot in range(len(slots.phase)) if slots.phase[slot] != Phase.EMPTY}
    _check(occupied == set(state.running), "slot phases and running requests disagree")
    empty = slots.empty_slots()
    _check(sorted([*empty, *state.running]) == list(range(len(slots.phase))), "a slot is lost or listed twice")
    for name, phase, listed in (("PREFILL", Phase.PREFILL, state.prefilling), ("LOADING", Phase.LOADING, state.loading)):
        there = {slot for slot in state.running if slots.phase[slot] == phase}
        _check(there == set(listed), f"requests listed as {name} and slot phases disagree")
    if state.table is not None:
        state.table.check_integrity()
        _check(all(s.parked <= (not state.table.of(s).admitted) for s in waiting), "a parked request is of an admitted session")
        _check(sum(session.running for session in state.table) == len(running), "sessions miscount their running requests")
        _check(sum(len(session.requests) for session in state.table) == len(state.requests), "sessions miscount their requests")
    _check(all(s.blocks is None for s in waiting), "a waiting request holds blocks")
    _check(all(s.blocks is None for s in fetching), "a request that waits for the disk holds blocks")
    held = {id(s.blocks) for s in running}
    _check(held == {id(blocks) for blocks in state.kv.open_sequences()}, "blocks are held by no running request")


def _check_slot(state: SchedulerState, slot: int, sequence: Sequence) -> None:
    slots, name = state.slots, sequence.request_id
    computed, length, limit = int(slots.computed[slot]), int(slots.length[slot]), int(slots.limit[slot])
    confirmed, sealed, capacity = int(slots.confirmed[slot]), int(slots.sealed[slot]), int(slots.capacity[slot])
    in_flight = sum(_samples(flight, slot, int(slots.binding[slot])) for flight in state.flights)
    _check(state.requests.get(name) is sequence, f"{name}: runs but is not listed")
    _check(sealed <= confirmed <= computed <= capacity, f"{name}: sealed, confirmed, computed, capacity out of order")
    _check(confirmed - sealed < slots.unit_tokens, f"{name}: a full confirmed unit is not sealed")
    _check(sequence.prompt_length <= length < limit, f"{name}: runs at its limit or without its prompt")
    _check(0 <= length - sequence.length <= slots.unit_tokens, f"{name}: too many tokens not flushed")
    if slots.phase[slot] == Phase.DECODE:
        _check(computed + 1 == length + in_flight, f"{name}: computed and known tokens disagree")
        _check((slots.last_token[slot] >= 0) == (in_flight == 0), f"{name}: the next input token is wrong about being pending")
    else:
        _check(computed < length == sequence.length, f"{name}: prefills what it has computed")


def _samples(flight: Flight, slot: int, binding: int) -> bool:
    """Whether a launched step samples a token for this binding of the slot."""
    sampling = flight.samples[flight.slots[flight.samples] == slot]
    return bool((flight.bindings[sampling] == binding).any())


def _check_blocks(state: SchedulerState, slot: int, sequence: Sequence) -> None:
    slots, blocks = state.slots, sequence.blocks
    if blocks is None:
        raise IntegrityError(f"{sequence.request_id}: runs without blocks")
    indices = blocks.indices()
    row = slots.block_table[slot]
    _check(row[: len(indices)].tolist() == indices, f"{sequence.request_id}: its block table is not its blocks")
    _check(not row[len(indices) :].any(), f"{sequence.request_id}: its block table has entries beyond its blocks")
    _check(slots.capacity[slot] == len(indices) * state.kv.block_tokens, f"{sequence.request_id}: capacity is not its blocks")
    for table, (start, seen) in zip(slots.window_tables, entries(blocks.windows, state.kv.windows), strict=True):
        _check(
            table[slot, start : start + len(seen)].tolist() == seen, f"{sequence.request_id}: a window table is not its blocks"
        )
        rest = table[slot, :start].any() or table[slot, start + len(seen) :].any()
        _check(not rest, f"{sequence.request_id}: a window's table has entries that are not its blocks")
    loaded = slots.phase[slot] == Phase.LOADING or state.kv.is_ready(blocks)
    _check(loaded, f"{sequence.request_id}: may have rows before its blocks are loaded")
    _check(not state.kv.is_spoilt(blocks), f"{sequence.request_id}: runs on blocks that could not be loaded")
    _check(slots.sealed[slot] == len(blocks.sealed) * slots.unit_tokens, f"{sequence.request_id}: sealed tokens miscounted")
    for number, block in enumerate(blocks.sealed):
        parent, digest = sequence.chain.digests[number : number + 2]
        _check(block.unit.digest == digest, f"{sequence.request_id}: unit {number} has another digest")
        _check(block.unit.matches(parent, sequence.unit_bytes(number)), f"{sequence.request_id}: unit {number} has other tokens")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
