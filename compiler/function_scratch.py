"""Memory that functions of the allow-list keep for themselves at a program's largest step, by the sizes of their operands.

Functions share it: only one runs at a time, so the largest need of each counts. Attention's is bounded by a constant (memory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from ..plans.program import DTYPE_BYTES, Call, Program, count_of
from ..plans.recurrence_body import decode_body, peak_bytes
from ..plans.schema import Weight

Shape = tuple[int, ...]


def function_scratch(programs: Sequence[Program], weights: Sequence[Weight]) -> int:
    """Bytes for all functions together."""
    of_weights = {
        weight.name: weight.shape for weight in sorted(weights, key=lambda weight: prod(weight.shape))
    }  # the largest stays
    needs: dict[str, int] = {}
    for program in programs:
        last = program.buckets[-1]
        symbols = {"rows": last.rows, "logit_rows": last.logit_rows}
        shapes: dict[str, Shape] = {**of_weights, "logit_rows": (last.logit_rows,)}
        for item in (*program.buffers, *program.views):
            shapes[item.name] = tuple(count_of(extent, symbols) for extent in item.shape)
        types = {buffer.name: DTYPE_BYTES[buffer.dtype] for buffer in program.buffers}
        for call in program.calls:
            need = _NEEDS.get(call.function)
            if need is not None:
                size = types[(*call.outputs, *call.inputs)[0]]
                needs[call.function] = max(needs.get(call.function, 0), need(call, shapes, size))
    return sum(needs.values())


def _experts(call: Call, shapes: Mapping[str, Shape], size: int) -> int:
    """One expert's rows, their columns and results, and sums in float32."""
    rows, hidden = shapes[call.inputs[0]]
    inner = shapes[call.inputs[4]][2]
    return rows * (2 * (hidden + inner) * size + 4 * (3 * hidden + inner))


def _latent(call: Call, shapes: Mapping[str, Shape], size: int) -> int:
    """Queries and results in latent space, and the product that either is copied from or to."""
    rows, heads, values = shapes[call.outputs[0]]
    rotated, latent = shapes[call.inputs[1]][2], shapes[call.inputs[2]][1]
    return prod((rows, heads, 2 * (latent + rotated) + max(latent, values), size))


def _recurrence(call: Call, shapes: Mapping[str, Shape], _size: int) -> int:
    """What one turn reads and makes: a row of each sequence."""
    (sequences,) = shapes["logit_rows"]
    return peak_bytes(decode_body(call.attributes.get("body"), call.label), sequences)


def _collective(call: Call, shapes: Mapping[str, Shape], size: int) -> int:
    """The whole and a rank's part of it, as dense arrays of equal parts."""
    of_rank = min(prod(shapes[name]) for name in (*call.inputs, *call.outputs))
    ranks = call.attributes["ranks"]
    assert isinstance(ranks, int)
    return (ranks + 1) * of_rank * size


def _exchange(call: Call, shapes: Mapping[str, Shape], size: int) -> int:
    """What is sent and what comes, at most all rows each, and sums of a rank's own rows in float32."""
    rows = max(shapes[name][0] for name in (*call.inputs, *call.outputs))
    width = shapes[call.outputs[0]][1]
    return 2 * rows * width * size + 4 * rows * width


def _send(call: Call, shapes: Mapping[str, Shape], size: int) -> int:
    """Two values on their way."""
    return 2 * size * prod(shapes[call.inputs[0]])


_NEEDS: dict[str, Callable[[Call, Mapping[str, Shape], int], int]] = {
    "moe_experts": _experts,
    "latent_attention": _latent,
    "recurrence": _recurrence,
    "all_gather": _collective,
    "reduce_scatter": _collective,
    "send": _send,
    "dispatch": _exchange,
    "combine": _exchange,
}
