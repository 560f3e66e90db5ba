"""Runs a plan's programs on this machine: static memory, programs expanded once, a step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import PlanError
from ..plans.program import FUNCTIONS_VERSION, in_pool
from ..plans.sampling import CHOSEN_LOGPROBS, LOGPROBS, TOKENS, TOP_LOGPROB_VALUES, TOP_TOKENS
from .block_tier import NO_COPIES, StepCopies
from .executor_interface import Report, RowsFailed, Started, StepResult
from .expand import Expansion, operand_names
from .expansions import Expansions, read_programs
from .functions.context import Launch
from .host_arrays import HostArray
from .host_placement import place_on_host
from .mesh import Rank
from .operands import Extent
from .placement import Placement
from .plan_of_rank import PlanOfRank
from .protocol import SamplingParameters, TokenLogprob
from .sampling_slots import SamplingSlots, check_slot_buffers
from .scheduling.step import CommonSize, IntArray, StepBatch, common_size
from .weights import PlanSource

if TYPE_CHECKING:
    from .collectives import Collectives
    from .device.driver import Driver


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
    driver: Driver | None = None,
    collectives: Collectives | None = None,
    host_tier: bool = False,
) -> PlanExecutor:
    """Allocate, load the weights and expand the largest buckets of a plan.

    `weights` as for `load_weights`; `threads` to compute with (None: the libraries' choice, all cores for native kernels).
    With `truncate_repeats` each repeat runs its first iteration alone and only what that needs is loaded (goldens); with
    `exact_weights` nothing is rounded to block types. `pin_threads` keeps each native thread on a core of its own. `driver` is
    that of a plan for an accelerator (None: the vendor's own), `collectives` are of a rank that is one of several. With
    `host_tier` there is the plan's tier of KV blocks in host memory, which steps that a scheduler makes may use.

    Raises a TokenspeedError saying what does not fit.
    """
    rank = Rank(plan.manifest.mesh) if collectives is None else collectives.rank
    plan = PlanOfRank(plan, rank.number) if plan.manifest.stages else plan
    manifest = plan.manifest
    _check_functions(manifest.functions_version)
    check_slot_buffers(manifest)
    groups = None if collectives is None else collectives.groups
    programs = read_programs(plan, rank.number)
    needed = None
    if truncate_repeats:
        needed = {name for program in programs.steps for name in operand_names(program, first_only=True)}
    if manifest.device is not None:
        from .device.placement import place_on_device

        placement: Placement = place_on_device(
            plan,
            programs.every,
            weights,
            report,
            needed,
            exact_weights=exact_weights,
            driver=driver,
            rank=rank,
            groups=groups,
            share=None if collectives is None else collectives.share,
            with_tier=host_tier,
        )
    else:
        placement = place_on_host(
            plan,
            weights,
            report,
            needed,
            native_only=programs.are_native,
            threads=threads,
            pin_threads=pin_threads,
            exact_weights=exact_weights,
            rank=rank,
            groups=groups,
            with_tier=host_tier,
        )
    try:
        with placement.running():
            expansions = Expansions(manifest, programs, placement.surroundings, truncate_repeats)
            expansions.prepare()
            report("programs")
            placement.wait_for_weights()
        return PlanExecutor(placement, expansions, SamplingSlots(placement.slots, manifest.model.vocabulary))
    except BaseException:
        placement.close()
        raise


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

    def __init__(self, placement: Placement, expansions: Expansions, slots: SamplingSlots) -> None:
        self._placement, self._expansions, self._slots = placement, expansions, slots
        self._context = placement.surroundings.context
        self.breakdown = Breakdown()

    @property
    def axes(self) -> frozenset[str]:
        """The mesh axes along which a step's program has collectives."""
        return self._expansions.axes

    @property
    def threads(self) -> int:
        """Threads of the host that programs compute with."""
        return self._placement.threads

    @property
    def scratch_bytes(self) -> int:
        """Memory that functions keep for themselves; part of the plan's `workspace`."""
        return self._placement.scratch_bytes

    def host_block(self, block: int) -> Sequence[NDArray[np.uint8]]:
        """The bytes of a block of the tier in host memory (`BlockTier.parts`)."""
        return self._placement.tier.parts(block)

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        self._slots.check(sampling, end_tokens, prompt)

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        with self._placement.running():
            self._placement.before_filling_slot(slot)
            written = self._slots.admit(slot, sampling, end_tokens, prompt, output)
            self._placement.slot_filled(slot, written)

    def run(self, batch: StepBatch) -> StepResult:
        """Start a step and wait for it."""
        return self.start(batch)()

    def start(self, batch: StepBatch, common: CommonSize | None = None) -> Started:
        with self._placement.running():
            try:
                if not (batch.rows if common is None else common.rows):
                    return self._copying(self._placement.tier.begin(batch, {}))
                return self._computing(batch, common)
            except BaseException:
                self._placement.tier.settle()  # what was copied counts as nothing, and its blocks may be used at once
                raise

    def _copying(self, copies: StepCopies) -> Started:
        """A step without rows."""

        def result() -> StepResult:
            with self._placement.running():
                copies.wait()
            return StepResult(np.empty(0, np.int32), ())

        return result

    def _computing(self, batch: StepBatch, common: CommonSize | None) -> Started:
        times = [time.perf_counter()]
        wanted = len(batch.logit_rows)
        model, extent = self._expansions.step(common or common_size([batch]))
        samples = wanted and self._expansions.samples
        sample, sampled = self._expansions.sample(extent.logit_rows) if samples else (None, extent)
        times.append(time.perf_counter())
        copies = self._placement.tier.begin(batch, model.cache_uses)
        self._fill(batch, extent, sampled.logit_rows)
        times.append(time.perf_counter())
        for launch in copies.ordered(_needed(model, batch)):
            launch()
        times.append(time.perf_counter())
        if sample is not None:
            for launch in sample.launches:
                launch()
        times.append(time.perf_counter())
        asked = self._asked(batch)
        read = None if sample is None else self._placement.read({name: sample.own(name) for name in _names(asked)})
        times.append(time.perf_counter())
        return self._started(batch, copies, read, asked, times)

    def logits_for(self, batch: StepBatch, common: CommonSize | None = None) -> NDArray[np.float32]:
        """Run the model over a batch without sampling: its logits, [logit rows, vocabulary]; none where another stage of a
        pipeline has them. `common` as for `start`."""
        with self._placement.running():
            model, extent = self._expansions.step(common or common_size([batch]))
            copies = self._placement.tier.begin(batch, model.cache_uses)
            self._fill(batch, extent, extent.logit_rows)
            for launch in copies.ordered(model.launches):
                launch()
            copies.wait()
            if not self._expansions.samples:
                return np.empty((0, 0), np.float32)
            return model.array("logits").first(len(batch.logit_rows)).as_float()

    def close(self) -> None:
        """Let go of all memory; the executor cannot be used any more."""
        self._placement.close()
        del self._placement, self._expansions, self._slots, self._context

    def _fill(self, batch: StepBatch, extent: Extent, sampled_rows: int) -> None:
        """Copy a step into the input buffers, padded rows as the step ABI says; `sampled_rows` logit rows are sampled."""
        inputs = {name: array.data for name, array in self._placement.next_inputs().items()}
        padded = max(extent.logit_rows, sampled_rows)
        rows, sequences, logit_rows = batch.rows, len(batch.context_lengths), len(batch.logit_rows)
        inputs["token_ids"][:rows] = batch.token_ids
        inputs["positions"][:rows] = batch.positions
        inputs["slot_mapping"][:rows] = batch.slot_mapping
        inputs["row_slots"][:rows] = batch.row_slots
        inputs["sequence_starts"][: sequences + 1] = batch.sequence_starts
        inputs["context_lengths"][:sequences] = batch.context_lengths
        inputs["block_tables"][:sequences, : batch.block_tables.shape[1]] = batch.block_tables
        windows = self._expansions.windows
        if rows and len(batch.windows) != windows:
            raise ValueError(f"a step with parts for {len(batch.windows)} window pools; the plan has {windows}")
        for pool, part in enumerate(batch.windows, 1):
            inputs[in_pool("slot_mapping", pool)][:rows] = part.slot_mapping
            inputs[in_pool("block_tables", pool)][:sequences, : part.block_tables.shape[1]] = part.block_tables
        inputs["logit_rows"][:logit_rows] = batch.logit_rows
        inputs["logit_slots"][:logit_rows] = batch.logit_slots
        inputs["counts"][:] = (rows, batch.decode_rows, sequences, logit_rows)
        if extent.rows > rows:
            slots = (in_pool("slot_mapping", pool) for pool in range(windows + 1))
            for name, padding in (("token_ids", 0), ("positions", 0), ("row_slots", -1), *((name, -1) for name in slots)):
                inputs[name][rows : extent.rows] = padding
        if padded > logit_rows:
            inputs["logit_rows"][logit_rows:padded] = 0
            inputs["logit_slots"][logit_rows:padded] = -1
        self._context.step += 1
        self._placement.inputs_filled()

    def _started(
        self, batch: StepBatch, copies: StepCopies, read: _Read | None, asked: IntArray | None, times: list[float]
    ) -> Started:
        def result() -> StepResult:
            before = time.perf_counter()
            try:
                if read is None and copies is NO_COPIES:
                    return StepResult(np.empty(0, np.int32), ())
                with self._placement.running():
                    copies.wait()
                    return StepResult(np.empty(0, np.int32), ()) if read is None else self._result(batch, read(), asked)
            finally:
                self._record(times, time.perf_counter() - before)

        return result

    def _asked(self, batch: StepBatch) -> IntArray | None:
        """How many logprobs each logit row wants, -1: none; None if no row wants any."""
        asked = self._slots.features[batch.logit_slots] & LOGPROBS
        return np.where(asked, self._slots.logprobs_wanted[batch.logit_slots], -1) if asked.any() else None

    def _result(self, batch: StepBatch, found: Mapping[str, HostArray], asked: IntArray | None) -> StepResult:
        tokens = found[TOKENS].data[: len(batch.logit_rows)]
        result = StepResult(tokens, _logprobs(found, tokens, asked))
        failed = np.flatnonzero(tokens < 0)
        if len(failed):
            names = tuple(batch.logit_request_ids[index] for index in failed)
            raise RowsFailed(names, "the model gave logits that are not finite", result)
        return result

    def _record(self, times: list[float], waited: float) -> None:
        self.breakdown.steps += 1
        self.breakdown.expand += times[1] - times[0]
        self.breakdown.fill += times[2] - times[1]
        self.breakdown.model += times[3] - times[2]
        self.breakdown.sample += times[4] - times[3]
        self.breakdown.result += times[5] - times[4] + waited


def _needed(model: Expansion, batch: StepBatch) -> tuple[Launch, ...]:
    """The launches that have something to do in a step."""
    if batch.decode_rows:
        return model.launches
    return model.of_chunks if len(batch.logit_rows) else model.of_silent_chunks


_Read = Callable[[], Mapping[str, HostArray]]


def _names(asked: IntArray | None) -> tuple[str, ...]:
    """Buffers of the sample program that a step's result is made of."""
    return (TOKENS,) if asked is None else (TOKENS, CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES)


def _logprobs(found: Mapping[str, HostArray], tokens: IntArray, asked: IntArray | None) -> tuple[TokenLogprob | None, ...]:
    if asked is None:
        return (None,) * len(tokens)
    chosen, top, values = (found[name].data for name in (CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES))
    return tuple(
        _token_logprob(int(tokens[row]), float(chosen[row]), top[row, :count], values[row, :count]) if count >= 0 else None
        for row, count in enumerate(asked.tolist())
    )


def _token_logprob(token: int, logprob: float, top: NDArray[np.int32], values: NDArray[np.float32]) -> TokenLogprob:
    pairs = zip(top.tolist(), values.tolist(), strict=True)
    return TokenLogprob(token, logprob, tuple((other, value) for other, value in pairs if other >= 0))
