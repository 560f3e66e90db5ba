"""What a plan for an accelerator calls beside its own kernels: functions of the allow-list that torch runs on the device.

Operations for which there is no kernel run so. They are launched one by one and never captured, but for collectives; the memory
that torch takes for them is part of the plan's workspace.
"""

from __future__ import annotations

from collections.abc import Iterable

from .aten_functions import ATEN_FUNCTIONS
from .program import Program
from .recurrence_integrity import RECURRENCE

COLLECTIVES = frozenset({"send", "receive", "all_reduce", "all_gather", "reduce_scatter", "take_part"})
"""Functions by which the ranks of a plan meet, or part; a graph may hold them."""


def runs_in_library(function: str) -> bool:
    """Whether a program for an accelerator may call the function although it is none of the plan's own."""
    return function == RECURRENCE or function in ATEN_FUNCTIONS or function in COLLECTIVES


def library_functions(programs: Iterable[Program]) -> tuple[str, ...]:
    """The functions of the allow-list that programs for an accelerator call, by name."""
    return tuple(sorted({call.function for program in programs for call in program.calls if runs_in_library(call.function)}))
