"""The sample program's device functions, interpreted, choose what the runtime's own functions choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenspeed.plans.program import Call
from tokenspeed.plans.sampling import RESULTS
from tokenspeed.runtime.expand import Expansion
from tokenspeed.targets.triton import sampling
from tokenspeed.targets.triton.sampling import SAMPLING

from ...runtime.sampler import Sampler, logits_of
from .compared import SETTING
from .interpreter import Interpreter

VOCABULARY = 150


def on_device(
    interpreter: Interpreter, sampler: Sampler, state: dict[str, NDArray[Any]], logits: NDArray[np.float32], slots: list[int]
) -> dict[str, NDArray[Any]]:
    """Every buffer of the program and every slot buffer as the device functions leave them."""
    rows = len(slots)
    arrays = {name: array.copy() for name, array in state.items()}
    for buffer in sampler.program.buffers:
        shape = [rows if size == "logit_rows" else int(size) for size in buffer.shape]
        arrays[buffer.name] = np.zeros(shape, np.int32 if buffer.dtype == "i32" else np.float32)
    arrays["logits"], arrays["logit_slots"] = logits.copy(), np.array(slots, np.int32)
    for call in sampler.program.body:
        assert isinstance(call, Call)
        operation = SAMPLING[call.function](sampler.vocabulary, "f32", SETTING)
        names = (*call.inputs, *call.outputs)
        interpreter.run(operation, [arrays[name] for name in names], {"rows": rows, "logit_rows": rows})
    return arrays


def compare(interpreter: Interpreter, sampler: Sampler, logits: NDArray[np.float32], slots: list[int]) -> list[int]:
    before = {name: array.data.copy() for name, array in sampler.state.items()}
    expected: Expansion = sampler.run(logits, slots)
    got = on_device(interpreter, sampler, before, logits, slots)
    assert got["tokens"].tolist() == expected.array("tokens").data.tolist()
    asking = [row for row, slot in enumerate(slots) if slot >= 0 and before["features"][slot] & 32]
    for name in RESULTS[1:]:
        np.testing.assert_allclose(got[name][asking], expected.array(name).data[asking], rtol=1e-5, atol=1e-5)
    for name in ("last_tokens", "output_counts", "output_position"):
        assert np.array_equal(got[name], sampler.state[name].data), name
    return got["tokens"].tolist()


def test_greedy_rows_padding_and_what_is_not_finite(interpreter: Interpreter) -> None:
    sampler, logits = Sampler(VOCABULARY), logits_of(6, VOCABULARY)
    for slot in range(5):
        sampler.admit(slot)
    logits[1, 70:90] = logits[1].max() + 1  # the first of equals
    logits[2, 5] = np.nan
    logits[3] = -np.inf
    tokens = compare(interpreter, sampler, logits, [3, 0, 1, 2, 4, -1])
    assert tokens[1] == 70 and tokens[2:4] == [-1, -1] and tokens[5] == 0


def test_penalties_bias_minimum_and_logprobs(interpreter: Interpreter) -> None:
    sampler, logits = Sampler(VOCABULARY), logits_of(4, VOCABULARY)
    sampler.admit(0, prompt=[3, 9], output=[9, 9, 4], repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.7)
    sampler.admit(1, logit_bias={7: 50.0, 8: -50.0}, logprobs=3)
    sampler.admit(2, min_tokens=4, end_tokens=tuple(range(4)), logprobs=0)
    sampler.admit(3, logprobs=20)
    logits[2, :4] = 90
    tokens = compare(interpreter, sampler, logits, [0, 1, 2, 3])
    assert tokens[1] == 7 and tokens[2] > 3


@pytest.mark.parametrize(("room", "drawn"), [(256, 256), (8, 64)])
def test_draws(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, room: int, drawn: int) -> None:
    """Equal numbers, equal filters: the same tokens, but where rounding decides, which these seeds do not meet. Also where the
    values around a cut are more than there is room for, and a row is read in parts."""
    monkeypatch.setattr(sampling, "_ROOM", room)
    monkeypatch.setattr(sampling, "_DRAWN", drawn)
    sampler, logits = Sampler(VOCABULARY), logits_of(8, VOCABULARY)
    wanted: list[dict[str, float]] = [{}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.5}]
    wanted += [{"top_k": 3, "frequency_penalty": 1.0}, {"temperature": 0.2}, {"top_k": 1}]
    for slot, settings in enumerate(wanted):
        sampler.admit(slot, output=[1] * slot, **{"temperature": 1.3, "seed": 77 * slot - 9, **settings})
    logits[1, ::3] = 2.0  # ties are kept together
    logits[4, 40:] = -1.0
    for _ in range(2):
        compare(interpreter, sampler, logits, list(range(8)))
