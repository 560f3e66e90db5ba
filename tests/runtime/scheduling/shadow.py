"""A shadow executor: plays launched steps on a token memory and checks that every sequence reads exactly its own prefix.

The "model" is a checksum of all tokens read through the block table, so one wrong token in the KV changes the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenspeed.runtime.scheduling.disk_tier import DiskJob, StoredUnit
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import BlockState, HostState, block_states, host_states
from tokenspeed.runtime.scheduling.policy import AGENTIC, Policy
from tokenspeed.runtime.scheduling.request import FinishReason, Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import BlockCopies, IntArray, StepBatch
from tokenspeed.runtime.scheduling.windows import WindowPool

VOCABULARY = 12
NEVER_WRITTEN, IN_TRANSFER, SPOILT = -7, -9, -8
"""What memory holds before it is written, while a step in flight copies something there, and after such a step failed."""


def make_request(
    request_id: str,
    tokens: Sequence[int],
    max_tokens: int = 8,
    *,
    priority: int = 0,
    salt: str = "",
    stop_tokens: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    session: str = "",
    tenant: str = "",
    deadline: float | None = None,
) -> Request:
    prompt = np.array(tokens, dtype=np.int32)
    return Request(request_id, prompt, max_tokens, priority, salt, stop_tokens, min_tokens, session, tenant, deadline)


def make_scheduler(
    blocks: int = 32,
    block_tokens: int = 4,
    identity_tokens: int = 4,
    *,
    max_rows: int = 32,
    max_decode_rows: int = 8,
    max_sequences: int = 8,
    prefill_chunk: int = 16,
    max_waiting: int = 64,
    max_context: int = 64,
    policy: Policy = AGENTIC,
    weights: Mapping[str, float] | None = None,
    host_blocks: int = 0,
    windows: Sequence[tuple[int, int]] = (),
) -> tuple[Scheduler, KvManager]:
    kv = KvManager(blocks, block_tokens, identity_tokens, "test", host_blocks=host_blocks, windows=windows)
    limits = SchedulerLimits(max_rows, min(max_decode_rows, max_rows), max_sequences, prefill_chunk, max_waiting, max_context)
    return Scheduler(limits, kv, policy=policy, weights=weights), kv


def next_token(prefix: Sequence[int]) -> int:
    return zlib.crc32(np.array(prefix, dtype=np.int32).tobytes()) % VOCABULARY


def reference(request: Request, limits: SchedulerLimits, pool_tokens: int) -> tuple[list[int], FinishReason]:
    """The output a request must give, alone on an empty machine, and why it ends."""
    sequence, output = request.tokens.tolist(), []
    while True:
        token = next_token(sequence)
        sequence.append(token)
        output.append(token)
        if token in request.stop_tokens and len(output) > request.min_tokens:
            return output, "stop"
        if len(output) == request.max_tokens or len(sequence) in (limits.max_context, pool_tokens + 1):
            return output, "length"


class ShadowDevice:
    """Runs steps in launch order, each at any time between its launch and its completion.

    What a step copies may land, and be read, at any time between its launch and its completion (of loads: its rows): nobody may
    look at the destination or change the source in between. What was read in vain, of a load that failed, taints what it gave.
    """

    def __init__(self, kv: KvManager, limits: SchedulerLimits) -> None:
        self.kv, self.limits = kv, limits
        self.memory = np.full((kv.blocks, kv.block_tokens), NEVER_WRITTEN, dtype=np.int64)
        self.of_windows = [np.full((w.pool.blocks, kv.block_tokens), NEVER_WRITTEN, dtype=np.int64) for w in kv.windows]
        tier = kv.pool.tier
        self.host = np.full((0 if tier is None else tier.blocks, kv.block_tokens), NEVER_WRITTEN, dtype=np.int64)
        places = 0 if kv.disk is None else kv.disk.places
        self.disk = np.full((places, kv.unit_blocks, kv.block_tokens), NEVER_WRITTEN, dtype=np.int64)
        self.disk_names: dict[int, StoredUnit] = {}
        self.disk_salt: dict[int, str] = {}
        self.jobs: dict[int, tuple[DiskJob, NDArray[np.int64]]] = {}
        self.stored = self.fetched = self.refused = 0
        self.in_transfer: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self.host_salt: dict[int, str] = {}
        self.spoilt_readers: set[str] = set()
        self.prompts: dict[str, NDArray[np.int32]] = {}
        self.saved = self.loaded = 0
        self.last_token: dict[int, int] = {}
        self.slot_owner: dict[int, str] = {}
        self.prefix: dict[str, list[int]] = {}
        self.launched: list[StepBatch] = []
        self.sampled: dict[int, list[int]] = {}
        self.failed: set[str] = set()
        self.salt: dict[str, str] = {}
        self.block_salt: dict[int, str] = {}
        self.ever_computed: dict[str, int] = {}
        self.recomputed = self.queried = self.hit = 0

    def enter(self, request: Request) -> None:
        self.prefix[request.request_id] = request.tokens.tolist()
        self.salt[request.request_id] = request.salt

    def launch(self, batch: StepBatch) -> None:
        self.check_shape(batch)
        for admission in batch.admissions:
            for earlier in self.launched:
                assert admission.slot not in earlier.row_slots, "slot taken while a launched step names it"
            self.slot_owner[admission.slot] = admission.request_id
        for request_id, start in zip(batch.request_ids, batch.sequence_starts[:-1], strict=True):
            assert self.slot_owner[int(batch.row_slots[start])] == request_id
        self._count(batch)
        self._begin_copies(batch)
        self.launched.append(batch)

    def _count(self, batch: StepBatch) -> None:
        """Recomputed and hit tokens, told from the rows alone."""
        self.prompts.update({admission.request_id: admission.prompt for admission in batch.admissions})
        prompts = self.prompts
        for sequence, request_id in enumerate(batch.request_ids):
            end = int(batch.context_lengths[sequence])
            start = int(batch.positions[batch.sequence_starts[sequence]])
            if request_id not in self.ever_computed:
                assert prompts[request_id].tolist() == self.prefix[request_id][: len(prompts[request_id])]
                self.queried += len(prompts[request_id])
                self.hit += start
            self.recomputed += max(0, min(end, self.ever_computed.get(request_id, 0)) - start)
            self.ever_computed[request_id] = max(end, self.ever_computed.get(request_id, 0))

    def _begin_copies(self, batch: StepBatch) -> None:
        saves, loads = _pairs(batch.saves), _pairs(batch.loads)
        assert len({*saves[0].tolist(), *loads[0].tolist()}) == len(saves[0]) + len(loads[0]), "a block is copied twice"
        assert len({*saves[1].tolist(), *loads[1].tolist()}) == len(saves[1]) + len(loads[1]), "a host block is copied twice"
        self.in_transfer[batch.step_id] = self.memory[saves[0]], self.host[loads[1]]
        for content in self.in_transfer[batch.step_id]:
            assert (content >= 0).all(), "a copy is made of what is not there"
        self.host[saves[1]], self.memory[loads[0]] = IN_TRANSFER, IN_TRANSFER

    def begin_jobs(self, jobs: Sequence[DiskJob]) -> None:
        """Jobs of the tier on disk: what they fill holds nonsense until they are done, and what they read must not change."""
        for job in jobs:
            content = self.disk[job.unit.place] if job.fetch else self.host[[*job.host]]
            assert (content >= 0).all(), "a job copies what is not there"
            if job.fetch:
                assert self.disk_names[job.unit.place] == job.unit, "a place on disk holds another unit"
                self.host[[*job.host]] = IN_TRANSFER
            else:
                self.disk[job.unit.place] = IN_TRANSFER
            self.jobs[job.number] = job, content.copy()

    def end_job(self, number: int, well: bool) -> None:
        """A job is done, or failed."""
        job, content = self.jobs.pop(number)
        place, host = job.unit.place, [*job.host]
        source, target = (self.disk[place], self.host[host]) if job.fetch else (self.host[host], self.disk[place])
        assert (source == content).all(), "what a job reads was changed under way"
        assert (target == IN_TRANSFER).all(), "what a job fills was written by another"
        found = content if well else np.full_like(content, SPOILT)
        if job.fetch:
            self.host[host] = found
            self.fetched += well * content.size
            self.refused += (not well) * content.size
            self.host_salt.update(dict.fromkeys(host, self.disk_salt[place]))
        else:
            self.disk[place] = found
            self.stored += well * content.size
            self.disk_names[place], self.disk_salt[place] = job.unit, self.host_salt[host[0]]
        if job.fetch and not well:
            self.disk[place] = SPOILT

    def _land_loads(self, batch: StepBatch) -> None:
        device, host = _pairs(batch.loads)
        content = self.in_transfer[batch.step_id][1]
        assert (self.host[host] == content).all(), "a block was changed while a step loaded it"
        assert (self.memory[device] == IN_TRANSFER).all(), "a block was written while a step filled it"
        self.memory[device] = content
        self.loaded += content.size
        for block, source in zip(device.tolist(), host.tolist(), strict=True):
            self.block_salt[block] = self.host_salt[source]

    def _land_saves(self, batch: StepBatch) -> None:
        device, host = _pairs(batch.saves)
        content = self.in_transfer.pop(batch.step_id)[0]
        assert (self.memory[device] == content).all(), "a block was changed while a step saved it"
        assert (self.host[host] == IN_TRANSFER).all(), "a host block was written while a step filled it"
        self.host[host] = content
        self.saved += content.size
        for block, target in zip(device.tolist(), host.tolist(), strict=True):
            self.host_salt[target] = self.block_salt[block]

    def execute_oldest(self) -> None:
        """Run the oldest launched step that has not run yet; nothing when there is none."""
        for batch in self.launched:
            if batch.step_id not in self.sampled:
                self._execute(batch)
                return

    def finish_oldest(self) -> tuple[StepBatch, list[int]]:
        """The oldest launched step is done: what it sampled."""
        if self.launched[0].step_id not in self.sampled:
            self.execute_oldest()
        batch = self.launched.pop(0)
        self._land_saves(batch)
        return batch, self.sampled.pop(batch.step_id)

    def fail_oldest(self) -> StepBatch:
        """The oldest launched step failed; what a step after it does for the same requests is of no interest."""
        batch = self.launched.pop(0)
        if self.sampled.pop(batch.step_id, None) is not None:
            self.loaded -= self.in_transfer[batch.step_id][1].size
        del self.in_transfer[batch.step_id]
        self.failed.update(batch.request_ids)
        self.host[_pairs(batch.saves)[1]], self.memory[_pairs(batch.loads)[0]] = SPOILT, SPOILT
        for block in _pairs(batch.loads)[0].tolist():
            self.block_salt.pop(block, None)
        return batch

    def _execute(self, batch: StepBatch) -> None:
        tokens = [
            self.last_token.get(int(slot), 0) if token == -1 else int(token)
            for token, slot in zip(batch.token_ids, batch.row_slots, strict=True)
        ]
        self._land_loads(batch)
        self.memory.reshape(-1)[batch.slot_mapping] = tokens
        self._check_tenants(batch)
        self._execute_windows(batch, tokens)
        read = [self._read(batch, sequence) for sequence in range(len(batch.request_ids))]
        for request_id, tokens_read in zip(batch.request_ids, read, strict=True):
            if request_id in self.failed:
                continue
            if SPOILT in tokens_read:
                self._taint(batch, request_id)
                continue
            expected = self.prefix[request_id]
            while len(expected) < len(tokens_read):
                expected.append(next_token(expected))
            assert tokens_read == expected[: len(tokens_read)], f"{request_id} reads tokens that are not its own"
        of_row = {int(row): index for index, row in enumerate(batch.sequence_starts[1:] - 1)}
        sampled = [next_token(read[of_row[int(row)]]) for row in batch.logit_rows]
        for slot, token in zip(batch.logit_slots, sampled, strict=True):
            self.last_token[int(slot)] = token
        self.sampled[batch.step_id] = sampled

    def _execute_windows(self, batch: StepBatch, tokens: list[int]) -> None:
        """Every row reads its own window in every window pool, through the tables of its sequence."""
        size = self.kv.block_tokens
        if not batch.rows:
            return
        for pool, memory, part in zip(self.kv.windows, self.of_windows, batch.windows, strict=True):
            memory.reshape(-1)[part.slot_mapping] = tokens
            for sequence, request_id in enumerate(batch.request_ids):
                if request_id in self.failed or request_id in self.spoilt_readers:
                    continue
                seen = _seen(batch, sequence, pool.window)
                read = memory[part.block_tables[sequence, seen // size].astype(np.int64), seen % size]
                expected = self.prefix[request_id]
                while len(expected) <= seen[-1]:
                    expected.append(next_token(expected))
                assert read.tolist() == [expected[at] for at in seen.tolist()], f"{request_id}: a window holds other tokens"

    def _taint(self, batch: StepBatch, request_id: str) -> None:
        """A request reads what could not be loaded: what it writes is worth nothing, and it must never get a token again."""
        self.spoilt_readers.add(request_id)
        sequence = batch.request_ids.index(request_id)
        rows = slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
        self.memory.reshape(-1)[batch.slot_mapping[rows]] = SPOILT

    def _check_tenants(self, batch: StepBatch) -> None:
        """No sequence reads a block that was written under another salt."""
        rows_each = np.diff(batch.sequence_starts)
        for place, request_id in zip(batch.slot_mapping, np.repeat(batch.request_ids, rows_each), strict=True):
            self.block_salt[int(place) // self.kv.block_tokens] = self.salt[str(request_id)]
        for sequence, request_id in enumerate(batch.request_ids):
            used = self.kv.blocks_for(int(batch.context_lengths[sequence]))
            if request_id not in self.failed:
                salts = {self.block_salt.get(block) for block in batch.block_tables[sequence, :used].tolist()}
                assert salts - {None} == {self.salt[request_id]}

    def _read(self, batch: StepBatch, sequence: int) -> list[int]:
        positions = np.arange(batch.context_lengths[sequence])
        blocks = batch.block_tables[sequence, positions // self.kv.block_tokens].astype(np.int64)
        return self.memory[blocks, positions % self.kv.block_tokens].tolist()

    def check_shape(self, batch: StepBatch) -> None:
        """The step ABI and the limits, for one batch."""
        limits, starts = self.limits, batch.sequence_starts
        rows_each = np.diff(starts)
        assert len(set(batch.request_ids)) == len(batch.request_ids) == len(rows_each) <= limits.max_sequences
        assert batch.rows or batch.loads or batch.saves, "a step does nothing"
        assert batch.rows <= limits.max_rows and batch.decode_rows <= limits.max_decode_rows
        assert starts[0] == 0 and starts[-1] == batch.rows == len(batch.positions) == len(batch.slot_mapping)
        assert (rows_each[: batch.decode_rows] == 1).all()
        assert ((rows_each >= 1) & (rows_each <= limits.prefill_chunk)).all()
        assert (batch.token_ids[batch.decode_rows :] >= 0).all(), "a prompt token is unknown"
        of_row = np.repeat(np.arange(len(rows_each)), rows_each)
        from_end = starts[1:][of_row] - np.arange(batch.rows)
        assert (batch.positions == batch.context_lengths[of_row] - from_end).all()
        blocks = batch.block_tables[of_row, batch.positions // self.kv.block_tokens].astype(np.int64)
        assert (batch.slot_mapping == blocks * self.kv.block_tokens + batch.positions % self.kv.block_tokens).all()
        assert len(set(batch.slot_mapping.tolist())) == batch.rows, "two rows write one place"
        for part in batch.windows if batch.rows else ():
            blocks = part.block_tables[of_row, batch.positions // self.kv.block_tokens].astype(np.int64)
            assert (part.slot_mapping == blocks * self.kv.block_tokens + batch.positions % self.kv.block_tokens).all()
            assert len(set(part.slot_mapping.tolist())) == batch.rows, "two rows write one place of a window's pool"
        assert (batch.row_slots[batch.logit_rows] == batch.logit_slots).all()
        assert [batch.request_ids[of_row[row]] for row in batch.logit_rows] == list(batch.logit_request_ids)
        for array in (batch.token_ids, batch.positions, batch.row_slots, starts, batch.context_lengths, batch.block_tables):
            assert array.dtype == np.int32
        assert batch.slot_mapping.dtype == np.int64

    def check_blocks_held(self) -> None:
        """What a launched step reads is not free or evictable; what it writes belongs to one sequence and is not sealed."""
        states, hosted = block_states(self.kv), host_states(self.kv)
        writer: dict[int, str] = {}
        arriving: set[int] = set()
        for batch in self.launched:
            arriving.update(_pairs(batch.loads)[0].tolist())
            self._check_copies_held(batch, states, hosted)
            for sequence, request_id in enumerate(batch.request_ids):
                used = self.kv.blocks_for(int(batch.context_lengths[sequence]))
                for block in batch.block_tables[sequence, :used].tolist():
                    fine = states[block] in ("writable", "sealed") or (states[block] == "loading" and block in arriving)
                    assert fine, f"block {block} of a launched step is {states[block]}"
                rows = slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
                for block in set((batch.slot_mapping[rows] // self.kv.block_tokens).tolist()):
                    assert states[block] == "writable", f"block {block} is {states[block]} and still to be written"
                    assert writer.setdefault(block, request_id) == request_id, f"block {block} has two writers"

        for at, window in enumerate(self.kv.windows):
            self._check_window_held(at, window)

    def _check_window_held(self, at: int, window: WindowPool) -> None:
        """The same of a window's pool: of blocks that a launched step's rows see, and of those it writes."""
        size, pool = self.kv.block_tokens, window.pool
        idle = {block.index for block in pool.free} | {index for block in pool.cached for index in block.unit.indices}
        sealed = {index for holder in self.kv.holders() for share in holder.windows[at].sealed for index in share.unit.indices}
        for batch in self.launched:
            for sequence in range(len(batch.request_ids)):
                part = batch.windows[at]
                blocks = part.block_tables[sequence, _seen(batch, sequence, window.window) // size]
                assert idle.isdisjoint(blocks.tolist()), "a launched step sees a block of a window's pool that is nobody's"
                rows = slice(batch.sequence_starts[sequence], batch.sequence_starts[sequence + 1])
                written = {*(part.slot_mapping[rows] // size).tolist()}
                assert written.isdisjoint(idle | sealed), "a launched step writes a block of a window's pool that is not its own"

    def _check_copies_held(self, batch: StepBatch, states: Mapping[int, BlockState], hosted: Mapping[int, HostState]) -> None:
        for blocks, found, wanted in (
            (_pairs(batch.saves)[0], states, "sealed"),
            (_pairs(batch.saves)[1], hosted, "saving"),
            (_pairs(batch.loads)[0], states, "loading"),
            (_pairs(batch.loads)[1], hosted, "loading"),
        ):
            for block in blocks.tolist():
                assert found[block] == wanted, f"block {block} of a copy in flight is {found[block]}, not {wanted}"


def _seen(batch: StepBatch, sequence: int, window: int) -> NDArray[np.int64]:
    """Positions that a sequence's rows in a step see in a window."""
    positions = batch.positions[batch.sequence_starts[sequence] : batch.sequence_starts[sequence + 1]]
    return np.arange(max(0, int(positions[0]) - window + 1), int(positions[-1]) + 1)


def _pairs(copies: Sequence[BlockCopies]) -> tuple[IntArray, IntArray]:
    """Blocks on the device and on the host, of pool 0."""
    assert len(copies) <= 1
    none = np.empty(0, np.int32)
    return (copies[0].device, copies[0].host) if copies else (none, none)


def run_to_end(scheduler: Scheduler, device: ShadowDevice, overlap: bool = False) -> dict[str, tuple[list[int], str]]:
    """Serve until nothing is left; output tokens and finish reason by request."""
    results: dict[str, tuple[list[int], str]] = {}
    outputs: dict[str, list[int]] = {}
    while scheduler.has_work:
        batch = scheduler.schedule() if scheduler.steps_in_flight < (2 if overlap else 1) else None
        if batch is not None:
            device.launch(batch)
        assert device.launched, "work is left but nothing runs"
        if batch is None or len(device.launched) == (2 if overlap else 1):
            done, sampled = device.finish_oldest()
            for outcome in scheduler.complete(done.step_id, sampled):
                tokens = outputs.setdefault(outcome.request_id, [])
                tokens += [] if outcome.token is None else [outcome.token]
                if outcome.finish_reason:
                    results[outcome.request_id] = (tokens, outcome.finish_reason)
        device.check_blocks_held()
        scheduler.check_integrity()
    return results
