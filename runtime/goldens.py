"""Replays a plan's golden cases on this machine and compares the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ..plans.errors import PlanError, TokenspeedError
from ..plans.golden import GoldenCase, GoldenStep, decode_golden
from ..plans.reader import Plan
from .executor import PlanExecutor, load_executor
from .fixed_batch import Rows, equal_places, fixed_batch

if TYPE_CHECKING:
    from .collectives import Collectives


@dataclass(frozen=True)
class GoldenResult:
    """`max_error` is the largest distance of a logit from its golden value."""

    name: str
    passed: bool
    max_error: float
    tolerance: float


def replay_goldens(
    plan: Plan, weights: str | None, report: Callable[[str], None], collectives: Collectives | None = None
) -> list[GoldenResult]:
    """Replay every golden case of the plan; counter-based cases need no weights. All ranks do, each with its own `collectives`.

    Raises PlanError for a broken case.
    """
    results = []
    for golden in plan.manifest.goldens:
        report(f"replaying golden {golden.name}")
        case = _read(plan, golden.entry)
        source = "counter" if golden.weights == "counter" else weights
        executor = load_executor(
            plan, source, None, lambda _phase: None, truncate_repeats=case.truncated, collectives=collectives
        )
        try:
            if collectives is not None:
                collectives.meet()
            error = max(_step_error(plan, executor, case, step) for step in case.steps)
            if collectives is not None:
                collectives.meet()  # what this rank sent has arrived
        finally:
            executor.close()
        results.append(GoldenResult(golden.name, bool(error <= case.tolerance), float(error), case.tolerance))
    return results


class VerificationFailed(TokenspeedError):
    """Golden inputs did not give their golden outputs on this machine."""

    exit_code = 8


def verify_goldens(
    plan: Plan, weights: str | None, report: Callable[[str], None], collectives: Collectives | None = None
) -> None:
    """`replay_goldens`; raises VerificationFailed where one does not hold, or where there is none."""
    results = replay_goldens(plan, weights, report, collectives)
    failed = [result for result in results if not result.passed]
    if failed or not results:
        worst = max(failed, key=lambda result: result.max_error / (result.tolerance or 1.0), default=None)
        raise VerificationFailed(
            f"{len(failed)} of {len(results)} golden checks failed" if results else "the plan carries no golden checks",
            where=", ".join(result.name for result in failed[:8]),
            expected=f"errors within tolerance ({worst.tolerance:g})" if worst else "at least one golden",
            got=f"{worst.max_error:g} in {worst.name}" if worst else "none",
            fix="compile the plan for this machine again, or report the kernel at fault: tokenspeed-plan explain",
        )


def _read(plan: Plan, entry: str) -> GoldenCase:
    try:
        case = decode_golden(plan.entry(entry))
    except msgspec.DecodeError as error:
        raise PlanError("a golden case is unreadable", where=entry, got=str(error), fix="compile the plan again") from error
    manifest = plan.manifest
    keys = [sequence.key for step in case.steps for sequence in step.sequences]
    ends = [sequence.start + len(sequence.tokens) for step in case.steps for sequence in step.sequences]
    rows = [sum(len(sequence.tokens) for sequence in step.sequences) for step in case.steps]
    tokens = [token for step in case.steps for sequence in step.sequences for token in sequence.tokens]
    sound = (
        bool(keys)
        and min(keys) >= 0
        and (max(keys) + 1) * _blocks(max(ends), manifest.kv.block_tokens) <= min(manifest.kv.pool_blocks)
        and max(keys) < manifest.schedule.max_sequences
        and all(sequence.start >= 0 and sequence.tokens for step in case.steps for sequence in step.sequences)
        and max(ends) <= manifest.model.max_context
        and max(rows) <= manifest.schedule.max_rows
        and all(0 <= token < manifest.model.vocabulary for token in tokens)
        and all(0 <= column < manifest.model.vocabulary for column in case.columns)
        and all(len(step.expected) == 4 * len(step.sequences) * len(case.columns) for step in case.steps)
    )
    if not sound:
        raise PlanError("a golden case does not fit its plan", where=entry, fix="compile the plan again")
    return case


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def _step_error(plan: Plan, executor: PlanExecutor, case: GoldenCase, step: GoldenStep) -> float:
    block_tokens = plan.manifest.kv.block_tokens
    longest = max(sequence.start + len(sequence.tokens) for each in case.steps for sequence in each.sequences)
    rows = [Rows(sequence.key, sequence.start, sequence.tokens) for sequence in step.sequences]
    sequences = 1 + max(sequence.key for each in case.steps for sequence in each.sequences)
    windows = equal_places(plan.manifest.kv, sequences)
    logits = executor.logits_for(fixed_batch(rows, _blocks(longest, block_tokens), block_tokens, windows=windows))
    if not logits.size:  # ranks of another stage have them
        return 0.0
    expected = np.frombuffer(step.expected, "<f4").reshape(len(rows), len(case.columns))
    difference = np.abs(logits[:, list(case.columns)] - expected)
    return float(np.where(np.isfinite(difference), difference, np.inf).max())
