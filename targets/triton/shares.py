"""Template of the sum of a layer's shares, where its inner dimension was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...plans.device_kernels import Computed, Constant, Parameter, Pointer, Symbol
from ...plans.weight_layout import StoredType
from ..accelerator import Accelerator
from .kernel import Constexpr, FunctionTemplate, Launch, Variants, merged
from .operand import MOST_ALIGNMENT, Layout
from .templates import pointers
from .tiles import waits_for_inputs

_BLOCK = 1024
"""Elements of a program."""


def joined_shares(
    name: str, out: Layout, bias: Sequence[Layout], accelerator: Accelerator, by: Symbol, shares_of: Callable[[int], int]
) -> FunctionTemplate:
    """(shares[, bias]) -> out; `shares_of` gives how many there are in buckets of up to so many rows, nothing runs for one."""

    def launch(rows: int) -> Launch | None:
        shares = shares_of(rows)
        if shares == 1:
            return None
        dependent = waits_for_inputs(accelerator)
        constants: dict[str, Constexpr] = {"SHARES": shares, "BLOCK": _BLOCK, "DEPENDENT": dependent}
        if not bias:
            constants["bias"] = None
        parameters: list[Parameter] = [Pointer(0, "f32", MOST_ALIGNMENT), *pointers(bias, 1)]
        parameters += [out.pointer(len(parameters)), Computed(by), Constant("i32", out.columns)]
        grid = (by, -(-out.columns // _BLOCK), 1)
        return Launch("block_linear.join", constants, tuple(parameters), grid, 4, 1, dependent)

    def variants(bounds: Sequence[int]) -> Variants:
        return merged([(most, launch(most)) for most in bounds])

    types: tuple[StoredType, ...] = ("f32", *(item.dtype for item in bias))
    return FunctionTemplate(name, types, (out.dtype,), variants, by)
