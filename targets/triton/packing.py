"""Templates of functions that a plan's programs do not call: they bring weights into planes of blocks as they are loaded."""

from __future__ import annotations

from collections.abc import Iterable

from ...plans.device_kernels import CeilDivide, Computed, Pointer
from ...plans.program import DType
from ...plans.weight_layout import BLOCKS, MOST_BLOCKS, StoredType, packing_function, planes
from .kernel import Constexpr, FunctionTemplate, Launch, always

_ELEMENTS = 2048
"""Of a program."""


def packing(kinds: Iterable[tuple[str, str, int]]) -> tuple[FunctionTemplate, ...]:
    """The functions for (type of what is loaded, block type it is stored in, chunk), each once."""
    return tuple(_function(*kind) for kind in sorted({*kinds}))


def _function(source: str, stored: str, chunk: int) -> FunctionTemplate:
    """(data) -> planes: of `rows` blocks of `stored`, whole chunks."""
    given: DType = "u8" if source in BLOCKS else source  # pyright: ignore[reportAssignmentType]
    made: tuple[StoredType, ...] = tuple(kind for kind, _, _ in planes((chunk,), stored))
    # checkpoints have scales at any even address
    operands = (Pointer(0, given, 2), *(Pointer(at, kind, 2) for at, kind in enumerate(made, 1)))
    chunks = _ELEMENTS // chunk
    constants: dict[str, Constexpr] = {"SOURCE": source if source in BLOCKS else "values", "FORMAT": stored}
    constants |= {"CHUNK": chunk, "CHUNKS": chunks}
    if len(made) < 3:
        constants["minimums"] = None
    constants["SIZE"] = BLOCKS[stored][0]
    grid = (CeilDivide("rows", chunks * chunk // BLOCKS[stored][0]), 1, 1)
    launch = Launch("pack.pack", constants, (*operands, Computed("rows")), grid)
    return FunctionTemplate(packing_function(source, stored, chunk), (given,), made, always(launch))


BOUNDS = (MOST_BLOCKS,)
"""What `variants` of these functions are asked for."""
