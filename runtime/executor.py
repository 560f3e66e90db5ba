"""Runs a plan's programs on this machine: static memory, programs expanded once, a step at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import PlanError
from ..plans.program import FUNCTIONS_VERSION
from ..plans.sampling import CHOSEN_LOGPROBS, LOGPROBS, TOKENS, TOP_LOGPROB_VALUES, TOP_TOKENS
from .executor_interface import Report, RowsFailed, StepResult
from .expand import Expansion, Extent, Surroundings, operand_names
from .expansions import Expansions, read_programs
from .functions.context import Context
from .host_arrays import release_free_memory
from .native.runtime import NativeRuntime
from .protocol import SamplingParameters, TokenLogprob
from .sampling_slots import SamplingSlots, check_slot_buffers
from .scheduling.step import IntArray, StepBatch
from .static_memory import StaticMemory, allocate
from .weights import PlanSource, load_weights

Mode = Callable[[], AbstractContextManager[object]]
"""What programs run inside of."""


@dataclass
class Breakdown:
    """Where the seconds of `steps` steps went: filling the inputs, expanding programs of new sizes, the model's calls, the
    sampling calls, and reading the result."""

    steps: int = 0
    fill: float = 0.0
    expand: float = 0.0
    model: float = 0.0
    sample: float = 0.0
    result: float = 0.0


def load_executor(
    plan: PlanSource,
    weights: str | None,
    threads: int | None,
    report: Report,
    truncate_repeats: bool = False,
    exact_weights: bool = False,
    pin_threads: bool = False,
) -> PlanExecutor:
    """Allocate, load the weights and expand the largest buckets of a plan.

    `weights` as for `load_weights`; `threads` to compute with (None: the libraries' choice, all cores for native kernels).
    With `truncate_repeats` each repeat runs its first iteration alone and only what that needs is loaded (goldens); with
    `exact_weights` nothing is rounded to block types. `pin_threads` keeps each native thread on a core of its own. Raises a
    TokenspeedError saying what does not fit.
    """
    _check_functions(plan.manifest.functions_version)
    check_slot_buffers(plan.manifest)
    programs = read_programs(plan)
    mode = nullcontext if programs.are_native else _library_mode(threads)
    with mode():
        needed = None
        if truncate_repeats:
            needed = {name for program in programs.steps for name in operand_names(program, first_only=True)}
        memory = allocate(plan, needed)
        report("memory")
        native = _native(plan, threads, pin_threads)
        tensors = load_weights(plan, weights, needed, native=native, exact=exact_weights)
        release_free_memory()  # loading went through arrays as large as the largest weight
        report("weights")
        context = Context()
        inputs = {**memory.inputs, **memory.constants, **tensors}
        around = Surroundings(memory.arena, inputs, memory.state, context, native)
        expansions = Expansions(plan.manifest, programs, around, truncate_repeats)
        expansions.prepare_largest()
        report("programs")
    return PlanExecutor(memory, expansions, context, SamplingSlots(memory.state, plan.manifest.model.vocabulary), native, mode)


def _library_mode(threads: int | None) -> Mode:
    """What library functions run in: torch's inference mode, on as many threads."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.inference_mode


def _native(plan: PlanSource, threads: int | None, pin: bool) -> NativeRuntime | None:
    library = plan.manifest.kernels
    if library is None:
        return None
    (digest,) = (entry.sha256 for entry in plan.manifest.entries if entry.name == library.entry)
    return NativeRuntime(plan.entry(library.entry), digest, threads, sorted(os.sched_getaffinity(0)) if pin else None)


def _check_functions(version: int) -> None:
    if version != FUNCTIONS_VERSION:
        raise PlanError(
            "The plan was compiled for another version of the runtime's functions.",
            where="functions_version",
            expected=str(FUNCTIONS_VERSION),
            got=str(version),
            fix="compile the plan again, or run it with the runtime it was compiled for",
        )


class PlanExecutor:
    """An `Executor`. One thread at a time."""

    def __init__(
        self,
        memory: StaticMemory,
        expansions: Expansions,
        context: Context,
        slots: SamplingSlots,
        native: NativeRuntime | None = None,
        mode: Mode = nullcontext,
    ) -> None:
        self._memory, self._expansions, self._context, self._slots = memory, expansions, context, slots
        self._native, self._mode = native, mode
        self._inputs: dict[str, NDArray[np.int32] | NDArray[np.int64]] = {
            name: array.data for name, array in memory.inputs.items()
        }
        self.breakdown = Breakdown()

    @property
    def threads(self) -> int:
        """Threads that programs compute with."""
        if self._native is not None:
            return self._native.team.size
        import torch

        return torch.get_num_threads()

    @property
    def scratch_bytes(self) -> int:
        """Memory that functions keep for themselves; part of the plan's `workspace`."""
        return self._context.scratch_bytes + (self._native.team.scratch_bytes if self._native else 0)

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self._slots.admit(slot, sampling, end_tokens, prompt, output)

    def run(self, batch: StepBatch) -> StepResult:
        times = [time.perf_counter()]
        with self._mode():
            wanted = len(batch.logit_rows)
            model, extent = self._expansions.step(batch.rows, wanted)
            sample = self._expansions.sample(extent.logit_rows) if wanted else None
            times.append(time.perf_counter())
            self._fill(batch, extent)
            times.append(time.perf_counter())
            for launch in model.launches:
                launch()
            times.append(time.perf_counter())
            if sample is not None:
                for launch in sample.launches:
                    launch()
            times.append(time.perf_counter())
            try:
                return StepResult(np.empty(0, np.int32), ()) if sample is None else self._result(batch, sample)
            finally:
                self._record(times, time.perf_counter())

    def logits_for(self, batch: StepBatch) -> NDArray[np.float32]:
        """Run the model over a batch without sampling: its logits, [logit rows, vocabulary]."""
        with self._mode():
            model, extent = self._expansions.step(batch.rows, len(batch.logit_rows))
            self._fill(batch, extent)
            for launch in model.launches:
                launch()
            return model.array("logits").first(len(batch.logit_rows)).as_float()

    def close(self) -> None:
        """Let go of all memory; the executor cannot be used any more."""
        if self._native is not None:
            self._native.close()
        del self._memory, self._expansions, self._slots, self._inputs, self._context

    def _fill(self, batch: StepBatch, extent: Extent) -> None:
        """Copy a step into the input buffers, padded rows as the step ABI says."""
        inputs = self._inputs
        rows, sequences, logit_rows = batch.rows, len(batch.context_lengths), len(batch.logit_rows)
        inputs["token_ids"][:rows] = batch.token_ids
        inputs["positions"][:rows] = batch.positions
        inputs["slot_mapping"][:rows] = batch.slot_mapping
        inputs["row_slots"][:rows] = batch.row_slots
        inputs["sequence_starts"][: sequences + 1] = batch.sequence_starts
        inputs["context_lengths"][:sequences] = batch.context_lengths
        inputs["block_tables"][:sequences, : batch.block_tables.shape[1]] = batch.block_tables
        inputs["logit_rows"][:logit_rows] = batch.logit_rows
        inputs["logit_slots"][:logit_rows] = batch.logit_slots
        inputs["counts"][:] = (rows, batch.decode_rows, sequences, logit_rows)
        if extent.rows > rows:
            for name, padding in (("token_ids", 0), ("positions", 0), ("slot_mapping", -1), ("row_slots", -1)):
                inputs[name][rows : extent.rows] = padding
        if extent.logit_rows > logit_rows:
            inputs["logit_rows"][logit_rows : extent.logit_rows] = 0
            inputs["logit_slots"][logit_rows : extent.logit_rows] = -1
        self._context.step += 1

    def _result(self, batch: StepBatch, sample: Expansion) -> StepResult:
        tokens = sample.array(TOKENS).data[: len(batch.logit_rows)].copy()
        result = StepResult(tokens, self._logprobs(batch, sample, tokens))
        failed = np.flatnonzero(tokens < 0)
        if len(failed):
            names = tuple(batch.logit_request_ids[index] for index in failed)
            raise RowsFailed(names, "the model gave logits that are not finite", result)
        return result

    def _logprobs(self, batch: StepBatch, sample: Expansion, tokens: IntArray) -> tuple[TokenLogprob | None, ...]:
        asked = self._slots.features[batch.logit_slots] & LOGPROBS
        if not asked.any():
            return (None,) * len(tokens)
        counts = np.where(asked, self._slots.logprobs_wanted[batch.logit_slots], -1)
        chosen, top, values = (sample.array(name).data for name in (CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES))
        return tuple(
            _token_logprob(int(tokens[row]), float(chosen[row]), top[row, :count], values[row, :count]) if count >= 0 else None
            for row, count in enumerate(counts.tolist())
        )

    def _record(self, times: list[float], end: float) -> None:
        self.breakdown.steps += 1
        self.breakdown.expand += times[1] - times[0]
        self.breakdown.fill += times[2] - times[1]
        self.breakdown.model += times[3] - times[2]
        self.breakdown.sample += times[4] - times[3]
        self.breakdown.result += end - times[4]


def _token_logprob(token: int, logprob: float, top: NDArray[np.int32], values: NDArray[np.float32]) -> TokenLogprob:
    pairs = zip(top.tolist(), values.tolist(), strict=True)
    return TokenLogprob(token, logprob, tuple((other, value) for other, value in pairs if other >= 0))
