"""Whether a `recurrence` call may run: its body is sound, and it is given the states that its body carries."""

from __future__ import annotations

from .findings import require
from .kv_caches import state_arrays
from .program import Call
from .recurrence_body import RECURRENCE_INPUTS, decode_body
from .schema import Manifest
from .template import instantiate

RECURRENCE = "recurrence"


def check_recurrence(manifest: Manifest, call: Call, layers: range | None, where: str) -> None:
    """`layers` are the indices that the call runs for, None outside a repeat. Raises PlanError."""
    body = decode_body(call.attributes.get("body"), f"{where}: body")
    expected = len(body.inputs) + len(RECURRENCE_INPUTS)
    require(len(call.inputs) == expected, f"{where}: inputs", f"{expected} inputs", len(call.inputs))
    ending = call.inputs[-len(RECURRENCE_INPUTS) :]
    require(ending == RECURRENCE_INPUTS, f"{where}: inputs", f"{', '.join(RECURRENCE_INPUTS)} at the end", ending)
    require(len(call.outputs) == 1 + len(body.states), f"{where}: outputs", f"{1 + len(body.states)} outputs", len(call.outputs))
    arrays = {name: (shape[1:], dtype) for group in manifest.kv.states for name, shape, dtype in state_arrays(group)}
    for name, state in zip(call.outputs[1:], body.states, strict=True):
        for layer in layers or (0,):
            found = arrays.get(name if layers is None else instantiate(name, layer))
            require(found == (state.shape, state.dtype), f"{where}: outputs", f"{name} of {state.dtype} {state.shape}", found)
