"""Whether a target's data can be believed: required figures, units, magnitudes, kernels. Run on plugins; tests run it on ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import get_args

from ..plans.errors import UsageError
from ..plans.schema import Rate
from .accelerator import MORE_SIZES, SIZES, Accelerator
from .machine import Kernel, Machine, State

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_ARCH = {"cuda": re.compile(r"sm_[0-9]{2,3}[af]?"), "hip": re.compile(r"gfx[0-9a-f]{3,5}")}
_DTYPES = ("f32", "f16", "bf16", "fp8", "int8")

_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "exchange")
_REQUIRED = ("compute.f32", "compute.bf16", "bandwidth", "dispatch")
_REQUIRED_OF_ACCELERATORS = ("compute.f16", "link.peer", "link.host", "dispatch.graph")
_RATE_UNITS = {
    **{f"compute.{dtype}": "OP/s" if dtype.startswith("int") else "FLOP/s" for dtype in _DTYPES},
    "bandwidth": "B/s",
    "link.peer": "B/s",
    "link.host": "B/s",
    **{f"link.{name}": "B/s" for name in _COLLECTIVES},
    **{f"latency.{name}": "s" for name in _COLLECTIVES},
    "dispatch": "s",
    "dispatch.native": "s",
    "dispatch.graph": "s",
    "products.share": "1",
    "products.overlap": "1",
    "experts.share": "1",
    "attention.compute": "FLOP/s",
    "attention.cut": "1",
}
_PLAUSIBLE = {"FLOP/s": (1e9, 1e18), "OP/s": (1e9, 1e18), "B/s": (1e9, 1e15), "s": (1e-9, 1e-3), "1": (0.1, 10)}
"""What one device can be, by unit: a figure outside was written in another unit."""

_ROWS = (1, 2, 8, 64, 512, 4096)


def check_target(machine: Machine) -> None:
    """Raises UsageError that lists everything wrong with the target's data."""
    found = tuple(problems(machine))
    if found:
        raise UsageError(
            f"the data of target {machine.name!r} is wrong",
            where=f"target {machine.name!r}",
            expected="figures with unit and source, as docs/targets.md describes them",
            got="; ".join(found),
            fix="correct the target's description",
        )


def problems(machine: Machine) -> Iterator[str]:
    """What is wrong with a target, one sentence each; nothing for a sound one."""
    yield from _identity(machine)
    yield from _rates(machine)
    yield from kernel_problems(machine.kernels)
    if isinstance(machine, Accelerator):
        yield from _sizes(machine)
        yield from _accelerator(machine)


def kernel_problems(kernels: Iterable[Kernel]) -> Iterator[str]:
    """What is wrong with rows of kernels: names taken twice, shares outside (0, 1], receipts that say nothing."""
    seen: set[tuple[str, str]] = set()
    for kernel in kernels:
        where = f"kernel {kernel.name!r} of {kernel.operation}"
        if (kernel.operation, kernel.name) in seen:
            yield f"{where}: registered twice"
        seen.add((kernel.operation, kernel.name))
        if not kernel.operation.startswith("ts."):
            yield f"{where}: not an operation, whose names begin with 'ts.'"
        if not (kernel.function and kernel.receipt):
            yield f"{where}: needs a function and a receipt, which says how its efficiency is known"
        for rows in _ROWS:
            share = kernel.efficiency(rows)
            if not 0 < share <= 1:
                yield f"{where}: efficiency {share} at {rows} rows, expected a share of the roofline above 0 and at most 1"
                break


def _identity(machine: Machine) -> Iterator[str]:
    if _NAME.fullmatch(machine.name) is None:
        yield f"name: {machine.name!r}, expected lower-case letters, digits, '.', '+' and '-'"
    for field in ("kind", "description", "vendor", "arch", "family"):
        if not getattr(machine, field):
            yield f"{field}: empty"
    if not machine.features or not all(machine.features) or len(set(machine.features)) != len(machine.features):
        yield f"features: {' '.join(machine.features) or 'none'}, expected at least one, each once"
    if machine.row_padding not in {"exact", "bucket"}:
        yield f"row_padding: {machine.row_padding!r}, expected 'exact' or 'bucket'"
    if machine.state not in get_args(State):
        yield f"state: {machine.state!r}, expected one of {', '.join(get_args(State))}"
    if machine.state != "data only" and not machine.kernels:
        yield f"state: {machine.state!r} of a target without kernels"
    for field in ("overhead_bytes", "native_overhead_bytes"):
        if not 0 < getattr(machine, field) < 1 << 40:
            yield f"{field}: {getattr(machine, field)}, expected bytes"


def _rates(machine: Machine) -> Iterator[str]:
    required = (*_REQUIRED, *(_REQUIRED_OF_ACCELERATORS if isinstance(machine, Accelerator) else ()))
    for name in required:
        if name not in machine.rates:
            yield f"rates: {name} is missing"
    for name, rate in machine.rates.items():
        unit = _RATE_UNITS.get(name)
        if unit is None:
            yield f"rates: {name} is not known, expected one of {', '.join(_RATE_UNITS)}"
            continue
        yield from _figure(f"rates: {name}", rate, unit)
        low, high = _PLAUSIBLE[unit]
        if rate.unit == unit and _is_positive(rate) and not low <= rate.value <= high:
            yield f"rates: {name} is {rate.value:g} {unit}, expected {low:g} to {high:g}: is it in another unit?"


def _sizes(machine: Accelerator) -> Iterator[str]:
    for name, unit in (SIZES | MORE_SIZES).items():
        if name not in machine.sizes:
            if name in SIZES:
                yield f"sizes: {name} is missing"
            continue
        size = machine.sizes[name]
        yield from _figure(f"sizes: {name}", size, unit)
        if _is_positive(size) and size.value != int(size.value):
            yield f"sizes: {name} is {size.value}, expected a whole number"
    for name in machine.sizes.keys() - SIZES.keys() - MORE_SIZES.keys():
        yield f"sizes: {name} is not known, expected one of {', '.join(SIZES | MORE_SIZES)}"


def _accelerator(machine: Accelerator) -> Iterator[str]:
    pattern = _ARCH.get(machine.kind)
    if pattern is not None and pattern.fullmatch(machine.arch) is None:
        yield f"arch: {machine.arch!r} is no {machine.kind} architecture, expected {pattern.pattern}"
    if machine.arch not in machine.features:
        yield f"features: {' '.join(machine.features)}, expected {machine.arch} among them"
    sizes = {name: size.value for name, size in machine.sizes.items()}
    if sizes.get("shared.block", 0) > sizes.get("shared.unit", math.inf):
        yield "sizes: shared.block is more than shared.unit, all that a unit has"
    if sizes.get("warp") not in {None, 32, 64}:
        yield f"sizes: warp is {sizes['warp']:g} threads, expected 32 or 64"
    if sizes.get("memory", math.inf) < 1e9:
        yield f"sizes: memory is {sizes['memory']:g} B, expected at least 1e9: is it in another unit?"
    for name, vendors in machine.nominal.items():
        rate = machine.rates.get(name)
        if rate is None or rate.basis != "measured":
            yield f"nominal: {name} stands for no measured rate"
        elif not name.startswith("dispatch") and rate.value > vendors.value:
            yield f"rates: {name} was measured at {rate.value:g}, above the vendor's own {vendors.value:g} {vendors.unit}"


def _figure(where: str, figure: Rate, unit: str) -> Iterator[str]:
    if figure.unit != unit:
        yield f"{where} is in {figure.unit or 'no unit'}, expected {unit}"
    if not _is_positive(figure):
        yield f"{where} is {figure.value}, expected a positive number"
    if not figure.source.strip():
        yield f"{where} has no source"
    if figure.basis not in {"nominal", "measured"}:
        yield f"{where} is {figure.basis!r}, expected 'nominal' or 'measured'"


def _is_positive(figure: Rate) -> bool:
    return math.isfinite(figure.value) and figure.value > 0
