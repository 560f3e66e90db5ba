"""Templates of the sample program's functions (plans/sampling.py), by the names they have on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...plans.device_kernels import CeilDivide, Computed, Parameter, Pointer
from ...plans.program import DType
from ...plans.sampling import BIAS_TOKENS, END_TOKENS, TOP_LOGPROBS
from .kernel import Constexpr, DeviceOperation, DeviceSetting, DeviceStep, FunctionTemplate, Intermediate, Launch, single
from .operand import BUFFER_ALIGNMENT, MOST_ALIGNMENT
from .templates import one_function
from .tiles import power_of_two_above, waits_for_inputs

_BLOCK = 4096
_ROWS = 128
_DRAWN, _ROOM, _THREADS = 4096, 2048, 256


def adjust_logits(vocabulary: int, dtype: DType, setting: DeviceSetting) -> DeviceOperation:
    """As the runtime's function of that name, but that `adjusted` has only the rows that ask for a change."""
    inputs: list[DType] = [dtype, "i32", "i32", "f32", "f32", "f32", "u8", "i32", "i32", "f32", "i32", "i32", "i32"]
    constants: dict[str, Constexpr] = {"BIASES": BIAS_TOKENS, "ENDS": END_TOKENS}
    return single(_function("adjust_logits", vocabulary, setting, inputs, ["f32"], constants, blocks=True))


def draw_tokens(vocabulary: int, dtype: DType, setting: DeviceSetting) -> DeviceOperation:
    """The largest value of every block of the vocabulary, then a token for each row: one program of as many threads as a block
    may have reads a row by itself, since the choice between its values is one of all of them."""
    blocks, wide = -(-vocabulary // _block(vocabulary)), min(_DRAWN, power_of_two_above(vocabulary))
    room = min(_ROOM, power_of_two_above(vocabulary))
    scan = _function("largest_of_blocks", vocabulary, setting, [dtype, "f32", "i32", "i32"], ["f32", "i32"], {}, blocks=True)
    inputs: list[DType] = [dtype, "f32", "i32", "i32", "f32", "i32", "f32", "f32", "i64", "i32", "f32", "i32"]
    constants: dict[str, Constexpr] = {"BLOCKS": blocks, "BLOCKS_ABOVE": power_of_two_above(blocks), "ROOM": room}
    constants |= {"BLOCK": wide, "PARTS": max(2, power_of_two_above(-(-vocabulary // wide)))}
    warps = max(4, min(wide // 4, _THREADS) // setting.accelerator.warp_size)
    draw = _function("draw_tokens", vocabulary, setting, inputs, ["f32", "i32"], constants, warps=warps)
    return DeviceOperation(
        (
            DeviceStep(scan, (0, 1, 2, 3), ("largest", "places")),
            DeviceStep(draw, (*range(10), "largest", "places"), ("room", 10)),
        ),
        (
            Intermediate("largest", "f32", ("logit_rows", blocks)),
            Intermediate("places", "i32", ("logit_rows", blocks)),
            Intermediate("room", "f32", ("logit_rows", room)),
        ),
    )


def token_logprobs(vocabulary: int, dtype: DType, setting: DeviceSetting) -> DeviceOperation:
    """As the runtime's function of that name."""
    outputs: list[DType] = ["f32", "i32", "f32"]
    constants: dict[str, Constexpr] = {"TOPS": TOP_LOGPROBS}
    return single(_function("token_logprobs", vocabulary, setting, [dtype, "i32", "i32", "i32"], outputs, constants))


def record_tokens(vocabulary: int, _dtype: DType, setting: DeviceSetting) -> DeviceOperation:
    """As the runtime's function of that name."""
    dependent = waits_for_inputs(setting.accelerator)
    types: list[DType] = ["i32"] * 6
    constants: dict[str, Constexpr] = {"V": vocabulary, "BLOCK": _ROWS, "DEPENDENT": dependent}
    parameters = (*_pointers(types), Computed("logit_rows"))
    grid = (CeilDivide("logit_rows", _ROWS), 1, 1)
    launch = Launch("sampling.record_tokens", constants, parameters, grid, dependent_launch=dependent)
    return single(one_function("record_tokens", launch, types[:3], types[3:], "logit_rows"))


SAMPLING: dict[str, Callable[[int, DType, DeviceSetting], DeviceOperation]] = {
    "adjust_logits": adjust_logits,
    "draw_tokens": draw_tokens,
    "token_logprobs": token_logprobs,
    "record_tokens": record_tokens,
}
"""(vocabulary, element type of the logits, setting) -> the operation."""


def _function(
    name: str,
    vocabulary: int,
    setting: DeviceSetting,
    inputs: Sequence[DType],
    outputs: Sequence[DType],
    more: dict[str, Constexpr],
    blocks: bool = False,
    warps: int = 8,
) -> FunctionTemplate:
    """With a program for each logit row and, with `blocks`, each block of the vocabulary."""
    dependent, block = waits_for_inputs(setting.accelerator), _block(vocabulary)
    constants: dict[str, Constexpr] = {"V": vocabulary, "BLOCK": block, "DEPENDENT": dependent, **more}
    grid = ("logit_rows", -(-vocabulary // block) if blocks else 1, 1)
    parameters = _pointers((*inputs, *outputs))
    launch = Launch(f"sampling.{name}", constants, parameters, grid, warps, dependent_launch=dependent)
    return one_function(name, launch, inputs, outputs, "logit_rows")


def _block(vocabulary: int) -> int:
    return min(_BLOCK, power_of_two_above(vocabulary))


def _pointers(types: Sequence[DType]) -> tuple[Parameter, ...]:
    assert BUFFER_ALIGNMENT % MOST_ALIGNMENT == 0
    return tuple(Pointer(index, dtype, MOST_ALIGNMENT) for index, dtype in enumerate(types))
