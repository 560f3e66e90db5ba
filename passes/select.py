"""select: for every operation the cheapest kernel whose capability matches, with the reason and the runner-up on record.

A kernel is judged at the rows of a typical decode step and of a typical prefill chunk, weighted by how often each runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.rows import count_rows, rows_worked_on
from ..ir.sharding import COLLECTIVES
from ..ir.storage import STORED
from ..ir.types import dtype_of
from ..plans.errors import ModelError
from ..plans.schema import Decision
from ..targets.collective import seconds_of
from ..targets.cost import FREE, cost_of
from ..targets.machine import Kernel, Machine
from ..targets.roofline import Roofline, roofline

_STRUCTURE = {"ts.repeat", "ts.yield", "func.return"}


@dataclass(frozen=True)
class Workload:
    """A kind of step: its rows, how many of them need logits, and its share of all steps."""

    rows: int
    logit_rows: int
    share: float


@dataclass(frozen=True)
class _Candidate:
    kernel: Kernel
    seconds: tuple[float, ...]
    """Per workload."""
    expected: float


def select(module: ir.Module, machine: Machine, workloads: Sequence[Workload], native: str | None = None) -> tuple[Decision, ...]:
    """Set each operation's `kernel` attribute; gives back the decisions, one per operation, in program order.

    `native` says why native kernels cannot be had (None: they can). Raises ModelError when no kernel can run an operation,
    listing why each refused.
    """
    decisions: list[Decision] = []
    block = modules.step_block(module)
    counts = count_rows(block)
    for operation in modules.walk(block):
        if operation.name in FREE or operation.name in _STRUCTURE:
            continue
        rows = [rows_worked_on(operation, counts, load.rows, load.logit_rows) for load in workloads]
        refusals = _refusals(operation, machine, native)
        ranked = _rank(operation, machine, workloads, rows, refusals)
        operation.attributes["kernel"] = modules.text(ranked[0].kernel.name)
        decisions.append(_decision(operation, machine, ranked, refusals, rows[0], times_of(operation)))
    return tuple(decisions)


def select_crossings(stages: Sequence[ir.Module], machine: Machine, workloads: Sequence[Workload]) -> tuple[Decision, ...]:
    """The same for what there is once a pipeline is cut into stages: what one sends and the next receives, one decision each."""
    decisions: list[Decision] = []
    rows = [load.rows for load in workloads]
    for operation in (item for stage in stages for item in modules.walk(modules.step_block(stage))):
        if operation.name == "ts.receive":
            (kernel,) = (kernel for kernel in machine.kernels if kernel.operation == operation.name)
            operation.attributes["kernel"] = modules.text(kernel.name)
        elif operation.name == "ts.send":
            ranked = _rank(operation, machine, workloads, rows, {})
            operation.attributes["kernel"] = modules.text(ranked[0].kernel.name)
            decisions.append(_decision(operation, machine, ranked, {}, rows[0], 1))
    return tuple(decisions)


def predicted_seconds(operation: ir.Operation, machine: Machine, rows: int) -> float:
    """Of one run of an operation, by the kernel that was chosen for it, without what attention reads of the cache."""
    return _seconds(operation, machine, kernel_named(machine, operation), rows)


def kernel_named(machine: Machine, operation: ir.Operation) -> Kernel:
    """The kernel that `select` chose for the operation."""
    name = modules.text_attribute(operation, "kernel")
    return next(kernel for kernel in machine.kernels if kernel.name == name and kernel.operation == operation.name)


def logit_operations(block: ir.Block) -> set[ir.Operation]:
    """Operations that run on the logit rows only: everything downstream of gather_rows."""
    found: set[ir.Operation] = set()
    values: set[ir.Value] = set()
    for operation in modules.walk(block):
        if operation.name == "ts.gather_rows" or any(value in values for value in operation.operands):
            found.add(operation)
            values.update(operation.results)
    return found


def times_of(operation: ir.Operation) -> int:
    """How often a step runs the operation."""
    parent = operation.parent
    return modules.int_attribute(parent, "count") if parent is not None and parent.name == "ts.repeat" else 1


def _refusals(operation: ir.Operation, machine: Machine, native: str | None) -> dict[str, str]:
    """Kernel name -> why it cannot run the operation."""
    blocks = sorted({modules.text_attribute(owner, STORED) for owner in _weights(operation) if STORED in owner.attributes})
    found: dict[str, str] = {}
    for kernel in machine.kernels:
        if kernel.operation != operation.name:
            continue
        refused = native if kernel.native and native is not None else kernel.refuses(operation, machine)
        if refused is None and not {*blocks} <= {*kernel.blocks}:
            refused = f"does not read {', '.join(blocks)} blocks"
        if refused is not None:
            found[kernel.name] = refused
    return found


def _weights(operation: ir.Operation) -> list[ir.Operation]:
    makers = map(modules.maker_of, operation.operands)
    return [maker for maker in makers if maker is not None and maker.name == "ts.weight"]


def _rank(
    operation: ir.Operation, machine: Machine, workloads: Sequence[Workload], rows: list[int], refusals: dict[str, str]
) -> list[_Candidate]:
    candidates: list[_Candidate] = []
    for kernel in machine.kernels:
        if kernel.operation != operation.name or kernel.name in refusals:
            continue
        seconds = tuple(_seconds(operation, machine, kernel, count) for count in rows)
        expected = sum(load.share * value for load, value in zip(workloads, seconds, strict=True))
        candidates.append(_Candidate(kernel, seconds, expected))
    if not candidates:
        raise ModelError(
            f"no kernel of target {machine.name} can run {operation.name}",
            where=modules.label_of(operation),
            got="; ".join(f"{name}: {why}" for name, why in refusals.items()) or "no kernel registered for this operation",
            fix="choose another --dtype or --target",
        )
    return sorted(candidates, key=lambda candidate: (candidate.expected, candidate.kernel.name))


def _seconds(operation: ir.Operation, machine: Machine, kernel: Kernel, rows: int) -> float:
    """As was measured of the operation, else of the kernel in general."""
    bounds, figure = _roofline(operation, machine, kernel, rows), kernel.measured(operation, machine, rows)
    if figure is None or figure.share is None:
        return bounds.seconds(kernel.efficiency(rows))
    return bounds.limit / figure.share


def _roofline(operation: ir.Operation, machine: Machine, kernel: Kernel, rows: int) -> Roofline:
    if operation.name in COLLECTIVES or operation.name == "ts.send":
        return Roofline(0.0, seconds_of(operation, rows, machine), 0.0)
    return roofline(cost_of(operation, rows), machine, map(dtype_of, operation.results), kernel.native)


def _decision(
    operation: ir.Operation, machine: Machine, ranked: list[_Candidate], refusals: dict[str, str], rows: int, times: int
) -> Decision:
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    bounds = _roofline(operation, machine, best.kernel, rows)
    if second is None:
        refused = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        reason = f"only kernel that can run it here (refused: {refused})" if refused else "only kernel registered"
    else:
        reason = f"{second.expected / best.expected:.2f}x faster than {second.kernel.name} over the traffic"
    figure = best.kernel.measured(operation, machine, rows)
    known = f"efficiency {best.kernel.receipt}" if figure is None else figure.receipt
    kernel = best.kernel.name
    if operation.name == "ts.aten":
        kernel = modules.text_attribute(operation, "target")
        reason = f"fallback: {modules.text_attribute(operation, 'reason')}"
    return Decision(
        program="step",
        operation=operation.name,
        label=modules.label_of(operation),
        times=times,
        kernel=kernel,
        reason=f"{reason}; {known}",
        runner_up=second.kernel.name if second else "",
        rows=rows,
        predicted_seconds=best.seconds[0],
        runner_up_seconds=second.seconds[0] if second else None,
        bound=bounds.bound,
        roofline_share=bounds.limit / best.seconds[0],
    )
