"""One operation through its kernels, interpreted, and through the runtime's own function, on the same operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenspeed.ir import module as modules
from tokenspeed.plans.program import Attribute
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.context import Context
from tokenspeed.runtime.functions.registry import lookup
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.kernel import DeviceSetting
from tokenspeed.targets.triton.library import TRITON_KERNELS
from tokenspeed.targets.triton.operand import Layout, layout_of

from ...ir.modules import step
from .interpreter import Interpreter

Array = NDArray[Any]
T = TypeVar("T")
ROWS = 5
SETTING = DeviceSetting(
    # not one where kernels begin early: the interpreter runs them one after another
    replace(ACCELERATORS["h200"], instructions=()),
    max_rows=64,
    max_decode_rows=8,
    max_sequences=8,
    block_tokens=4,
    blocks_per_sequence=8,
)
_NUMPY = {"f32": np.float32, "i32": np.int32, "i64": np.int64}


@dataclass
class Case:
    """Inputs `types` by number, lines made of them, and the operation. `%aN` names input N; `%bN` what lines define.

    `given` are operands of the operation by number that must not be random; `more` are inputs and `states` outputs that lowering
    adds, before the operands from number `before` on. Caches and states are caches [blocks, heads, block_tokens, D].
    """

    name: str
    line: str
    types: Sequence[str]
    lines: Sequence[str] = ()
    given: dict[int, Array] = field(default_factory=dict)
    more: Sequence[Array] = ()
    before: int | None = None
    states: Sequence[Array] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    rows: int = ROWS
    logit_rows: int = ROWS
    tolerance: float = 2e-6
    kept: Mapping[int, Array] = field(default_factory=dict)
    """What kernels have in place of items of `more`, by number."""

    def body(self) -> list[str]:
        inputs = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(self.types)]
        return [*inputs, *self.lines, self.line, "return"]


def compare(interpreter: Interpreter, case: Case, setting: DeviceSetting = SETTING) -> None:
    """Raises AssertionError unless both give the same outputs (states too), to the case's tolerance."""
    generator = np.random.default_rng(7)
    symbols = {"rows": case.rows, "logit_rows": case.logit_rows}
    with modules.context():
        module = modules.parse(step(case.body()))
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        device = next(kernel.device for kernel in TRITON_KERNELS if kernel.operation == operation.name)
        assert device is not None
        template = device(operation, setting)
        ins, outs = [list(map(layout_of, values)) for values in (operation.operands, operation.results)]
    flats = [_flat(layout, case.rows, generator, case.given.get(at)) for at, layout in enumerate(ins)]
    results = [np.full(_shape(layout, case.rows), 77, _NUMPY[layout.dtype]) for layout in outs]
    states = [state.copy() for state in case.states]
    given = [flat[layout.offset :] for flat, layout in zip(flats, ins, strict=True)]
    theirs = [case.kept.get(at, item) for at, item in enumerate(case.more)]
    interpreter.run(template, [*_with(given, theirs, case.before), *results, *states], symbols)
    views = [_view(flat, layout, case.rows) for flat, layout in zip(flats, ins, strict=True)]
    wanted = [torch.from_numpy(np.full_like(result, 77)) for result in results]
    kept = [torch.from_numpy(state.swapaxes(1, 2).copy()) for state in case.states]
    more = [torch.from_numpy(item.swapaxes(1, 2).copy() if item.ndim == 4 else item) for item in case.more]
    inputs = _with(views, more, case.before)
    lookup(case.name)(Operands(case.name, inputs, [*wanted, *kept], dict(case.attributes), Context()))()
    # the runtime's functions have the tokens of a block before its heads
    for got, expected in zip([*results, *states], [*wanted, *(item.transpose(1, 2) for item in kept)], strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=case.tolerance, atol=case.tolerance)


def _with(operands: list[T], more: Sequence[T], before: int | None) -> list[T]:
    at = len(operands) if before is None else before
    return [*operands[:at], *more, *operands[at:]]


def _shape(layout: Layout, rows: int) -> tuple[int, ...]:
    return tuple(rows if size is None else size for size in layout.shape)


def _flat(layout: Layout, rows: int, generator: np.random.Generator, given: Array | None) -> Array:
    if given is not None:
        return given.reshape(-1).copy()
    first = rows if layout.shape[0] is None else layout.shape[0]
    return generator.standard_normal(layout.offset + first * layout.row_stride).astype(np.float32)


def _view(flat: Array, layout: Layout, rows: int) -> torch.Tensor:
    return torch.from_numpy(flat).as_strided(_shape(layout, rows), layout.strides, layout.offset)
