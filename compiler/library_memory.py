"""Device memory for functions of the allow-list that a plan for an accelerator calls: what torch may take while it runs them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..plans.device_library import library_functions, runs_in_library
from ..plans.program import DTYPE_BYTES, Program, count_of
from ..plans.schema import Weight
from .function_scratch import function_scratch

LIBRARIES = 192 << 20
"""What torch and the libraries under it take at once: workspaces of products (32 MiB each), and blocks they are cut from."""

_COPIES = 3
"""Of all of a program's arrays that a call touches: dense copies of operands, the result before it is copied to its place."""


def library_memory(programs: Sequence[Program], weights: Sequence[Weight]) -> int:
    """Bytes; 0 where no program calls such a function."""
    if not library_functions(programs):
        return 0
    return LIBRARIES + _COPIES * max(map(_largest_call, programs)) + function_scratch(programs, weights)


def _largest_call(program: Program) -> int:
    """Bytes of the arrays of the library call that has most, in the largest bucket."""
    last = program.buckets[-1]
    symbols = {"rows": last.rows, "logit_rows": last.logit_rows}
    dtypes = {buffer.name: buffer.dtype for buffer in program.buffers}
    dtypes |= {view.name: dtypes[view.base] for view in program.views}
    sizes = {
        item.name: DTYPE_BYTES[dtypes[item.name]] * prod(count_of(extent, symbols) for extent in item.shape)
        for item in (*program.buffers, *program.views)
    }
    calls = [call for call in program.calls if runs_in_library(call.function)]
    return max((sum(sizes.get(name, 0) for name in (*call.inputs, *call.outputs)) for call in calls), default=0)
