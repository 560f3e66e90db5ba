"""The native sample program: against the library functions it stands for, token for token, and against float64.

Logits are multiples of 1/64 or 1/4 of small size, so that a cut never falls between values that e^x in two roundings could swap.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.sampling import LOGPROBS, TOP_LOGPROBS
from tokenspeed.runtime.functions.philox import uniform
from tokenspeed.runtime.native.runtime import NativeRuntime
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.targets.cpu.build import build_library, find_compiler

from ..sampler import MOST_ROWS, NOTHING, SLOTS, Sampler, adjusted, kept, logits_of
from .calling import MACHINES, on_every_machine

EDGE = 1e-6
"""How near to the edge between two tokens a draw may come out either way: e^x is good to an ulp of float32."""


@functools.cache
def runtime(machine: str, threads: int = 2) -> NativeRuntime:
    compiler = find_compiler()
    assert compiler is not None
    data = build_library(compiler, MACHINES[machine].compiler_flags)
    return NativeRuntime(data, hashlib.sha256(data).hexdigest(), threads)


@on_every_machine
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("vocabulary", [1, 31, 300, 5000])
def test_greedy_takes_the_first_of_the_largest(machine: str, dtype: str, vocabulary: int) -> None:
    sampler = Sampler(vocabulary, dtype, runtime(machine, 1 + vocabulary % 3))
    for slot in range(SLOTS):
        sampler.admit(slot)
    logits = np.round(logits_of(MOST_ROWS, vocabulary, seed=vocabulary, scale=1.0))
    logits[0] = -2.0
    logits[1, vocabulary // 2 + 1 :] = -math.inf
    logits[2], logits[2, -1] = -0.0, 0.0
    for rows in (1, 3, MOST_ROWS):
        assert sampler.tokens(logits[:rows], list(range(rows))) == logits[:rows].argmax(1).tolist()
        assert sampler.state["last_tokens"].data[:rows].tolist() == logits[:rows].argmax(1).tolist()
    assert sampler.state["output_position"].data.tolist() == [3, 2, 2] + [1] * (SLOTS - 3)


@on_every_machine
def test_greedy_alone_leaves_the_adjusted_logits_untouched(machine: str) -> None:
    sampler = Sampler(50, native=runtime(machine))
    sampler.admit(0)
    expansion = sampler.run(logits_of(1, 50), [0])
    assert np.isnan(expansion.array("adjusted").data).all() and np.isnan(expansion.array("chosen_logprobs").data).all()


@on_every_machine
def test_padded_rows_record_nothing(machine: str) -> None:
    sampler = Sampler(20, native=runtime(machine))
    sampler.admit(1)
    before = {name: array.data.copy() for name, array in sampler.state.items()}
    assert sampler.tokens(logits_of(2, 20), [-1, -1]) == [0, 0]
    assert all(np.array_equal(before[name], array.data) for name, array in sampler.state.items())
    assert sampler.tokens(logits_of(2, 20), [-1, 1]) == [0, int(logits_of(2, 20)[1].argmax())]


@on_every_machine
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"presence_penalty": 1.0}])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_rows_that_are_not_finite_fail_alone(machine: str, dtype: str, settings: dict[str, Any], bad: float) -> None:
    for place in (5, 4999):
        sampler, logits = Sampler(5000, dtype, runtime(machine)), logits_of(3, 5000)
        for slot in range(3):
            sampler.admit(slot, seed=slot, **settings)
        clean = sampler.tokens(logits, [0, 1, 2])
        for slot in range(3):
            sampler.admit(slot, seed=slot, **settings)
        logits[1, place] = bad
        assert sampler.tokens(logits, [0, 1, 2]) == [clean[0], -1, clean[2]]
        assert sampler.state["output_position"].data.tolist()[:3] == [1, 0, 1]
        logits[1] = -math.inf
        assert sampler.tokens(logits, [0, 1, 2])[1] == -1


def test_the_numbers_of_a_seed_are_those_of_the_library() -> None:
    """Equal weights: the token drawn among n is the number's first digits to the base n."""
    sampler = Sampler(4096, native=runtime(next(iter(MACHINES))))
    seeds = np.random.default_rng(0).integers(-(2**63), 2**63, 200, np.int64)
    seeds[:4] = -1, 0, 2**63 - 1, -(2**63)
    for start in range(0, len(seeds), SLOTS):
        part, positions = seeds[start : start + SLOTS], np.arange(start, start + SLOTS, dtype=np.int32)
        for slot, seed in enumerate(part.tolist()):
            sampler.admit(slot, temperature=1.0, seed=seed)
        sampler.state["output_position"].data[:] = positions
        drawn = sampler.tokens(np.zeros((SLOTS, 4096), np.float32), list(range(SLOTS)))
        assert drawn == (uniform(part, positions) * 4096).astype(int).tolist()


adjustments = st.builds(
    SamplingParameters,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 9),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, 299), st.floats(-100, 100, width=16), max_size=5),
    min_tokens=st.sampled_from([0, 3]),
)
token_lists = st.lists(st.integers(0, 299), max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(["f32", "bf16"]),
    requests=st.lists(st.tuples(adjustments, token_lists, token_lists), min_size=1, max_size=5),
)
def test_adjustments_are_those_of_the_library(
    machine: str, threads: int, dtype: str, requests: list[tuple[SamplingParameters, list[int], list[int]]]
) -> None:
    ours, library = Sampler(300, dtype, runtime(machine, threads)), Sampler(300, dtype)
    end = (4, 17)
    slots = [(3 * row + 1) % SLOTS for row in range(len(requests))]
    for sampler in (ours, library):
        for slot, (request, prompt, output) in zip(slots, requests, strict=True):
            sampler.slots.admit(slot, request, end, np.array(prompt, np.int32), np.array(output, np.int32))
    for step in range(3):
        logits = logits_of(len(requests), 300, seed=step)
        found, expected = ours.run(logits, slots), library.run(logits, slots)
        for row, (request, _, _) in enumerate(requests):
            if request.logit_bias or request.repetition_penalty != 1 or request.presence_penalty or request.frequency_penalty:
                assert np.array_equal(found.array("adjusted").data[row], expected.array("adjusted").data[row])
        assert np.array_equal(found.array("tokens").data, expected.array("tokens").data)
        for name in ("last_tokens", "output_counts", "output_position"):
            assert np.array_equal(ours.state[name].data, library.state[name].data)


def test_adjustments_against_float64() -> None:
    request = SamplingParameters(
        max_tokens=9,
        temperature=0.0,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.4,
        logit_bias={3: 5.0, 299: -2.0},
        min_tokens=3,
    )
    sampler, logits = Sampler(300, native=runtime(next(iter(MACHINES)))), logits_of(1, 300)
    prompt, output = [1, 2, 250], [2, 2]
    sampler.slots.admit(5, request, (4, 17), np.array(prompt, np.int32), np.array(output, np.int32))
    found = sampler.run(logits, [5]).array("adjusted").data[0]
    assert np.allclose(found, adjusted(logits[0], prompt, output, (4, 17), request), rtol=1e-6, atol=1e-5)


filters = st.builds(
    SamplingParameters,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.3, 1.0, 2.0, 50.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 1500, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=60, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    vocabulary=st.sampled_from([7, 60, 2500]),
    dtype=st.sampled_from(["f32", "bf16"]),
    requests=st.lists(filters, min_size=1, max_size=6),
    step=st.sampled_from([0.0, 0.25, 1.0, 40.0]),
)
def test_draws_are_those_of_the_library(
    machine: str, vocabulary: int, dtype: str, requests: list[SamplingParameters], step: float
) -> None:
    logits = logits_of(len(requests), vocabulary)
    if step:
        logits = np.round(logits / step) * np.float32(step)
    logits[0, 1::3] = -math.inf
    drawn, shown = [], logits
    for native in (*(runtime(machine, threads) for threads in (1, 2, 3)), None):
        sampler = Sampler(vocabulary, dtype, native)
        for slot, request in enumerate(requests):
            sampler.slots.admit(slot, request, (), NOTHING, np.zeros(slot, np.int32))
        expansion = sampler.run(logits, list(range(len(requests))))
        drawn.append(expansion.array("tokens").data.tolist())
        shown = expansion.array("logits").as_float()
    one, two, three, expected = drawn
    assert one == two == three
    for row, request in enumerate(requests):
        if one[row] != expected[row]:
            assert at_an_edge(shown[row], request, row, one[row])


def at_an_edge(logits: np.ndarray, request: SamplingParameters, position: int, token: int) -> bool:
    """Whether an ulp more or less makes the draw this token: its number, or the nucleus, lies next to an edge."""
    chance = uniform(np.array([request.seed]), np.array([position], np.int32))[0]
    wide = logits.astype(np.float64)
    for top_p in (request.top_p, request.top_p * (1 - EDGE), min(1.0, request.top_p * (1 + EDGE))):
        for min_p in (request.min_p, request.min_p * (1 - EDGE), min(1.0, request.min_p * (1 + EDGE))):
            probabilities = kept(wide, SamplingParameters(**{**_fields(request), "top_p": top_p, "min_p": min_p}))
            edges = np.cumsum(probabilities)
            below = edges[token - 1] if token else 0.0
            if probabilities[token] > 0 and below - EDGE <= chance <= edges[token] + EDGE:
                return True
    return False


def _fields(request: SamplingParameters) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")}


@settings(max_examples=30, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    request=filters,
    vocabulary=st.sampled_from([60, 2500]),
    scale=st.sampled_from([0.01, 3.0, 30.0]),
)
def test_draws_are_the_inverse_cdf_over_what_the_filters_keep(
    machine: str, request: SamplingParameters, vocabulary: int, scale: float
) -> None:
    sampler, logits = Sampler(vocabulary, native=runtime(machine)), logits_of(1, vocabulary, seed=3, scale=scale)
    sampler.slots.admit(0, request, (), NOTHING, NOTHING)
    (token,) = sampler.tokens(logits, [0])
    assert at_an_edge(logits[0], request, 0, token)


@on_every_machine
def test_a_filter_far_below_the_largest(machine: str) -> None:
    """The k-th largest, and the mass, lie beyond where a cut usually is; among thousands of ties too."""
    logits = np.full((4, 3000), -200.0, np.float32)
    logits[:, 7] = 0.0
    logits[1, 11:500] = -30.0
    logits[2, 11:1500] = -15.0
    logits[3] = np.linspace(-15.99, -16.01, 3000, dtype=np.float32)
    logits[3, 7] = 0.0
    far: tuple[dict[str, Any], ...] = ({"top_k": 2000}, {"top_k": 300}, {"top_p": 1 - 1e-7}, {"top_k": 300, "top_p": 0.99999})
    for settings_ in far:
        drawn = []
        for native in (runtime(machine), None):
            sampler = Sampler(3000, native=native)
            for slot in range(4):
                sampler.admit(slot, temperature=1.0, seed=slot, **settings_)
            drawn.append([sampler.tokens(logits, [0, 1, 2, 3]) for _ in range(20)])
        assert drawn[0] == drawn[1]


@on_every_machine
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("vocabulary", [7, 20, 300, 3000])
def test_logprobs_are_of_the_raw_logits(machine: str, vocabulary: int, dtype: str) -> None:
    sampler, logits = Sampler(vocabulary, dtype, runtime(machine)), np.round(logits_of(4, vocabulary) * 4) / 4
    logits[3, 1:] = -math.inf
    sampler.admit(0, logprobs=5)
    sampler.admit(1)
    sampler.admit(2, logprobs=0, logit_bias={3: 50.0})
    sampler.admit(3, logprobs=20)
    expansion = sampler.run(logits, [0, 1, 2, 3])
    tokens, chosen = expansion.array("tokens").data.tolist(), expansion.array("chosen_logprobs").data.tolist()
    top, values = expansion.array("top_tokens").data.tolist(), expansion.array("top_logprobs").data.tolist()
    wide = logits.astype(np.float64)
    exact = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    assert tokens[2] == 3 and math.isnan(chosen[1])
    for row in (0, 2, 3):
        assert sampler.slots.features[row] & LOGPROBS
        assert chosen[row] == pytest.approx(exact[row, tokens[row]], abs=1e-5)
        ranked = sorted(range(vocabulary), key=lambda token: (-logits[row, token], token))[:TOP_LOGPROBS]
        assert top[row] == ranked + [-1] * (TOP_LOGPROBS - len(ranked))
        assert np.allclose(values[row][: len(ranked)], exact[row, ranked], atol=1e-5)


@on_every_machine
def test_logprobs_of_the_library_and_of_rows_that_fail(machine: str) -> None:
    found = []
    for native in (runtime(machine, 3), None):
        sampler, logits = Sampler(2000, native=native), logits_of(6, 2000)
        for slot in range(6):
            sampler.admit(slot, logprobs=20)
        logits[4, 70] = math.nan
        expansion = sampler.run(logits, [5, -1, 3, 2, 1, 0])
        found.append([expansion.array(name).data for name in ("tokens", "chosen_logprobs", "top_tokens", "top_logprobs")])
    rows = [0, 2, 3, 5]
    for ours, library in zip(*found, strict=True):
        assert np.allclose(ours[rows], library[rows], rtol=1e-6)
    assert found[0][0][4] == -1 and math.isnan(found[0][1][4]) and (found[0][2][4] == -1).all()
