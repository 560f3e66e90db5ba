"""`recurrence` over ragged batches and slots against a plain loop; bodies that are refused."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.recurrence_body import BodyCall, RecurrenceBody, Value, decode_body, encode_body, peak_bytes
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.context import Context
from tokenspeed.runtime.functions.recurrence import recurrence

SLOTS, WIDTH = 5, 3
VECTOR = Value("f32", (WIDTH,))
PAIR = '{"args": [{"operand": 0}, {"operand": 1}], "kwargs": {}}'
DECAYING_SUM = RecurrenceBody(
    inputs=(VECTOR, Value("f32", (WIDTH,), False)),
    states=(VECTOR,),
    calls=(
        BodyCall("aten.mul.tensor", (2, 1), PAIR, "t.,-->t.", VECTOR),
        BodyCall("aten.add.tensor", (3, 0), PAIR, "t.,t.->t.", VECTOR),
    ),
    out=4,
    new_states=(4,),
)
"""state <- state * decay + x; the result is the new state."""

Steps = list[list[tuple[int, int]]]


def operands(body: str, rows: int, state: torch.Tensor, sequences: int) -> Operands:
    x, out = torch.zeros(rows, WIDTH), torch.full((rows, WIDTH), 7.0)
    step = [torch.zeros(size, dtype=torch.int32) for size in (rows, rows, sequences + 1, 4)]
    return Operands("recurrence", [x, torch.tensor([0.5, 1.0, 2.0]), *step], [out, state], {"body": body}, Context())


@st.composite
def ragged_steps(draw: st.DrawFn) -> Steps:
    """Steps of (slot, new tokens), each slot once a step."""
    sequence = st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 4))
    return draw(st.lists(st.lists(sequence, min_size=1, max_size=4, unique_by=lambda part: part[0]), min_size=1, max_size=5))


@settings(max_examples=60, deadline=None)
@given(ragged_steps(), st.sets(st.integers(0, SLOTS - 1)), st.integers(0, 3))
def test_it_is_the_loop_over_each_sequence(steps: Steps, restarted: set[int], padding: int) -> None:
    """Slots in `restarted` begin a new sequence in the last step; slots without rows keep what they hold."""
    generator = torch.Generator().manual_seed(3)
    state, position = torch.randn(SLOTS, WIDTH, generator=generator), [0] * SLOTS
    expected = state.clone()
    decay = torch.tensor([0.5, 1.0, 2.0])
    for number, step in enumerate(steps):
        rows = sum(count for _, count in step)
        bound = operands(encode_body(DECAYING_SUM), rows + padding, state, 4)
        x, _, slots, positions, starts, counts = bound.inputs
        x.copy_(torch.randn(x.shape, generator=generator))
        slots.fill_(-1)
        at, wanted = 0, []
        for sequence, (slot, count) in enumerate(step):
            if number == len(steps) - 1 and slot in restarted:
                position[slot] = 0
            for _ in range(count):
                expected[slot] = (0 if position[slot] == 0 else expected[slot]) * decay + x[at]
                wanted.append(expected[slot].clone())
                slots[at], positions[at] = slot, position[slot]
                position[slot] += 1
                at += 1
            starts[sequence + 1] = at
        counts[:] = torch.tensor([rows, 0, len(step), 0])
        bound.context.step += 1
        recurrence(bound)()
        assert torch.allclose(bound.outputs[0][:rows], torch.stack(wanted))
        assert bool((bound.outputs[0][rows:] == 7).all()), "padded rows are not written"
        assert torch.allclose(state, expected)


def changed(**fields: object) -> str:
    return encode_body(msgspec.structs.replace(DECAYING_SUM, **fields))


def first_call(**fields: object) -> str:
    one, other = DECAYING_SUM.calls
    return changed(calls=(msgspec.structs.replace(one, **fields), other))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "cannot be read"),
        (encode_body(DECAYING_SUM)[:-1] + ',"extra":1}', "cannot be read"),
        (first_call(function="aten.mul_.tensor"), "allow-list"),
        (first_call(function="os.system"), "allow-list"),
        (first_call(operands=(2, 3)), "made before call 0"),
        (first_call(operands=(2, -1)), "made before call 0"),
        (first_call(result=Value("f32", (1 << 40,))), "2 GiB"),
        (changed(out=5), "a result and one new value"),
        (changed(new_states=()), "a result and one new value"),
        (changed(new_states=(1,)), "a new state of f32"),
        (changed(inputs=DECAYING_SUM.inputs[::-1]), "those of rows first"),
        (changed(states=()), "states of rows"),
    ],
)
def test_bodies_that_are_refused_unread(body: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        decode_body(body, "here")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        first_call(layouts="t.->t."),
        first_call(arguments='{"args": ["x"], "kwargs": {}}'),
        first_call(result=Value("f32", (WIDTH, 1))),
        first_call(result=Value("i64", (WIDTH,))),
    ],
)
def test_calls_that_do_not_give_what_they_declare_are_refused(body: str) -> None:
    with pytest.raises(PlanError):
        recurrence(operands(body, 4, torch.zeros(SLOTS, WIDTH), 2))


def test_peak_memory() -> None:
    """Input, state and two results at most; the input that is the same for all rows is not gathered."""
    assert peak_bytes(DECAYING_SUM, 10) == 4 * 10 * WIDTH * 4
