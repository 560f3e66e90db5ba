"""Steps with a known amount of work: a prompt in chunks, and decoding at a batch and a context. No scheduler involved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ...plans.errors import UsageError
from ...plans.perf_model import prefill_chunks
from ...plans.schema import Manifest
from ...plans.window_blocks import window_blocks
from ..executor_interface import Executor
from ..fixed_batch import Rows, WindowPlaces, fixed_batch
from ..protocol import SamplingParameters
from ..scheduling.step import StepBatch

_NOTHING = np.empty(0, np.int32)


class StepMaker:
    """Makes steps for sequences that own places of the KV pool in random order, as in a pool that has been in use a while."""

    def __init__(self, manifest: Manifest, seed: int = 0) -> None:
        self._manifest = manifest
        self._random = np.random.default_rng(seed)
        self._places = self._random.permutation(manifest.kv.blocks).astype(np.int32)
        self._of_windows = [self._random.permutation(pool.blocks).astype(np.int32) for pool in manifest.kv.windows]

    def tokens(self, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self._manifest.model.vocabulary, count, dtype=np.int32)

    def prompt(self, tokens: int) -> Iterator[StepBatch]:
        """The steps of one prompt of random tokens; only the last one samples. Raises UsageError when it does not fit."""
        chunk = self._manifest.schedule.prefill_chunk
        blocks = self._blocks(1, tokens, "--prompt-tokens")
        text = self.tokens(tokens)
        for start, count in prefill_chunks(tokens, 0, chunk):
            batch = self._batch([Rows(0, start, text[start : start + count].tolist())], blocks, 1)
            yield batch if start + count == tokens else _without_logits(batch)

    def decode(self, batch: int, context: int, steps: int) -> Iterator[StepBatch]:
        """`steps` steps of `batch` sequences; the first reads `context` tokens of KV, each further one more.

        Rows take the token their slot sampled last, as steps that are scheduled ahead do. Raises UsageError when it does not fit.
        """
        if batch > self._manifest.schedule.max_decode_rows:
            self._refuse("--batch", f"at most {self._manifest.schedule.max_decode_rows}", batch, "--max-sequences")
        blocks = self._blocks(batch, context + steps - 1, "--context")
        for step in range(steps):
            yield self._batch([Rows(sequence, context - 1 + step, (-1,)) for sequence in range(batch)], blocks, batch)

    def largest(self) -> StepBatch:
        """The largest step that can be scheduled: every decode row but one, and a whole chunk of the last sequence."""
        schedule, kv = self._manifest.schedule, self._manifest.kv
        sequences = min(schedule.max_sequences, schedule.max_decode_rows + 1, kv.blocks)
        for pool in kv.windows:
            rest = pool.blocks - window_blocks(pool.window, schedule.prefill_chunk, kv.block_tokens)
            sequences = min(sequences, 1 + max(0, rest) // window_blocks(pool.window, 1, kv.block_tokens))
        blocks = kv.blocks // sequences
        context = min(blocks * kv.block_tokens, self._manifest.model.max_context)
        chunk = min(schedule.prefill_chunk, schedule.max_rows - sequences + 1, context)
        decodes = [Rows(sequence, context - 1, (-1,)) for sequence in range(sequences - 1)]
        rows = [*decodes, Rows(sequences - 1, context - chunk, self.tokens(chunk).tolist())]
        return self._batch(rows, blocks, sequences, chunk)

    def longest(self) -> StepBatch:
        """A chunk at the end of the longest context."""
        context = min(self._manifest.model.max_context, self._manifest.kv.blocks * self._manifest.kv.block_tokens)
        chunk = min(self._manifest.schedule.prefill_chunk, context)
        return self._batch([Rows(0, context - chunk, self.tokens(chunk).tolist())], self._blocks(1, context, "--context"), 1)

    def _batch(self, rows: list[Rows], blocks: int, sequences: int, last: int = 1) -> StepBatch:
        """`sequences` share the pools; the last of them has `last` rows at once, the others one."""
        size = self._manifest.kv.block_tokens
        batch = fixed_batch(rows, blocks, size, windows=self._windows(sequences, last))
        slots = self._places[batch.slot_mapping // size].astype(np.int64) * size + batch.slot_mapping % size
        return replace(batch, block_tables=self._places[batch.block_tables], slot_mapping=slots)

    def _windows(self, sequences: int, last: int) -> list[WindowPlaces]:
        """Each window pool in equal parts, but for what the last sequence's rows need more than the others'."""
        kv, found = self._manifest.kv, []
        for pool, places in zip(kv.windows, self._of_windows, strict=True):
            more = window_blocks(pool.window, last, kv.block_tokens) - window_blocks(pool.window, 1, kv.block_tokens)
            each = max(pool.blocks - more, sequences) // sequences
            cuts = [each * number for number in range(1, sequences)]
            found.append(WindowPlaces(pool.window, tuple(np.split(places, cuts))))
        return found

    def _blocks(self, sequences: int, tokens: int, option: str) -> int:
        """Blocks that each sequence needs, after checking that there are so many."""
        kv, longest = self._manifest.kv, self._manifest.model.max_context
        if not 1 <= tokens <= longest:
            self._refuse(option, f"from 1 to {longest} tokens", tokens, "--max-context")
        blocks = -(-tokens // kv.block_tokens)
        if blocks * sequences > kv.blocks:
            room = kv.blocks // sequences * kv.block_tokens
            self._refuse(option, f"at most {room} tokens in each of {sequences} sequences", tokens, "--memory")
        return blocks

    def _refuse(self, option: str, expected: str, got: int, compile_option: str) -> None:
        raise UsageError(
            "The plan cannot run a step of that size.",
            where=option,
            expected=expected,
            got=str(got),
            fix=f"ask for less, or compile a plan for more (tokenspeed-compile {compile_option})",
        )


def admit_greedy(executor: Executor, sequences: int) -> None:
    """Slots 0 to `sequences` - 1, greedy, nothing ends them."""
    sampling = SamplingParameters(max_tokens=2**31 - 1, temperature=0.0, ignore_eos=True)
    for slot in range(sequences):
        executor.admit(slot, sampling, (), np.zeros(1, np.int32), _NOTHING)


def run_ahead(executor: Executor, steps: Sequence[StepBatch]) -> list[float]:
    """Seconds from result to result, each step started before the one ahead of it is waited for."""
    ends, waiting = [time.perf_counter()], None
    for step in steps:
        started = executor.start(step)
        if waiting is not None:
            waiting()
            ends.append(time.perf_counter())
        waiting = started
    if waiting is not None:
        waiting()
        ends.append(time.perf_counter())
    return [end - start for start, end in pairwise(ends)]


def _without_logits(batch: StepBatch) -> StepBatch:
    return replace(batch, logit_rows=_NOTHING, logit_slots=_NOTHING, logit_request_ids=())
