"""The body of a `recurrence` call: one step over rows, as a list of ATen calls on numbered values (docs/plan-format.md).

Values 0 and up are the call's inputs (those of rows first, then those that are the same for all rows), then its states, then the
result of each step in order. Nothing but functions of `aten_functions.py` can be named.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .aten_functions import ATEN_FUNCTIONS
from .errors import PlanError
from .program import DTYPE_BYTES, DType

RECURRENCE_INPUTS = ("row_slots", "positions", "sequence_starts", "counts")
"""Step inputs that a `recurrence` call reads behind its own inputs."""
MAX_CALLS, MAX_TEXT = 4096, 1 << 20
MAX_VALUES = 64
MAX_ELEMENTS = 1 << 31


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array; `shape` leaves out the dimension of rows, which comes first where `of_rows`."""

    dtype: DType
    shape: tuple[int, ...]
    of_rows: bool = True


class BodyCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ATen call that makes `result`; `arguments` and `layouts` as in a call of an ATen function in a program."""

    function: str
    operands: tuple[int, ...]
    arguments: str
    layouts: str
    result: Value


class RecurrenceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`out` and `new_states` are numbers of values: the rows' result, and what takes the place of each state."""

    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    calls: tuple[BodyCall, ...]
    out: int
    new_states: tuple[int, ...]

    def value(self, number: int) -> Value:
        known = (*self.inputs, *self.states)
        return known[number] if number < len(known) else self.calls[number - len(known)].result

    @property
    def rows(self) -> int:
        """How many of the inputs are of rows."""
        return sum(value.of_rows for value in self.inputs)


def encode_body(body: RecurrenceBody) -> str:
    return msgspec.json.encode(body).decode()


def decode_body(text: object, where: str) -> RecurrenceBody:
    """The body, checked. Raises PlanError, naming `where`, for one that no runtime may run."""
    try:
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise msgspec.ValidationError(f"no text of at most {MAX_TEXT} characters")
        body = msgspec.json.decode(text, type=RecurrenceBody)
    except msgspec.DecodeError as error:
        raise PlanError(
            "The body of a recurrence cannot be read.", where=where, got=str(error)[:200], fix="compile the plan again"
        ) from None
    problem = _problem(body)
    if problem:
        raise PlanError(
            "The body of a recurrence makes no sense.",
            where=where,
            expected=problem[0],
            got=problem[1],
            fix="compile the plan again",
        )
    return body


def peak_bytes(body: RecurrenceBody, rows: int) -> int:
    """Bytes of all values that a step over `rows` rows makes and reads at a time, its gathered inputs and states among them."""
    known = len(body.inputs) + len(body.states)
    last = {number: at for at, call in enumerate(body.calls) for number in call.operands}
    last |= dict.fromkeys((body.out, *body.new_states), len(body.calls))
    alive = sum(_bytes(value, rows) for value in (*body.inputs, *body.states) if value.of_rows)
    peak = alive
    for at, call in enumerate(body.calls):
        alive += _bytes(call.result, rows)
        peak = max(peak, alive)
        for number in {number for number in call.operands if last[number] == at and number >= known}:
            alive -= _bytes(body.value(number), rows)
        if last.get(known + at, -1) < at:
            alive -= _bytes(call.result, rows)
    return peak


def _bytes(value: Value, rows: int) -> int:
    size = DTYPE_BYTES[value.dtype] * (rows if value.of_rows else 1)
    for extent in value.shape:
        size *= extent
    return size


def _problem(body: RecurrenceBody) -> tuple[str, str] | None:
    """(expected, got) of what is wrong first."""
    ends_in_others = sorted(body.inputs, key=lambda value: not value.of_rows) == list(body.inputs)
    if not 1 <= len(body.inputs) <= MAX_VALUES or not ends_in_others or not body.inputs[0].of_rows:
        return f"1 to {MAX_VALUES} inputs, those of rows first", str([value.of_rows for value in body.inputs])
    if not 1 <= len(body.states) <= MAX_VALUES or not all(state.of_rows for state in body.states):
        return f"1 to {MAX_VALUES} states of rows", str(len(body.states))
    if len(body.calls) > MAX_CALLS:
        return f"at most {MAX_CALLS} calls", str(len(body.calls))
    for value in (*body.inputs, *body.states, *(call.result for call in body.calls)):
        if len(value.shape) > 8 or any(extent < 1 for extent in value.shape) or _bytes(value, 1) > MAX_ELEMENTS:
            return "values of at most 8 positive dimensions and 2 GiB a row", str(value.shape)
    known = len(body.inputs) + len(body.states)
    for at, call in enumerate(body.calls):
        if call.function not in ATEN_FUNCTIONS:
            return "ATen functions of the allow-list", repr(call.function)
        if not all(0 <= number < known + at for number in call.operands):
            return f"operands that are made before call {at}", str(call.operands)
    return _ends(body, known + len(body.calls))


def _ends(body: RecurrenceBody, count: int) -> tuple[str, str] | None:
    numbers: Sequence[int] = (body.out, *body.new_states)
    if len(body.new_states) != len(body.states) or not all(0 <= number < count for number in numbers):
        return "a result and one new value for each state", str(numbers)
    if not body.value(body.out).of_rows:
        return "a result of rows", "one that is the same for all rows"
    for state, number in zip(body.states, body.new_states, strict=True):
        if body.value(number) != state:
            return f"a new state of {state.dtype} {list(state.shape)}", str(body.value(number))
    return None
