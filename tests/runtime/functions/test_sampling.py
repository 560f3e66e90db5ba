"""The sample program's functions against straightforward references, one row at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.sampling import TOP_LOGPROBS
from tokenspeed.runtime.functions import draw_tokens
from tokenspeed.runtime.functions.philox import uniform
from tokenspeed.runtime.protocol import SamplingParameters

from ..sampler import NOTHING, SLOTS, Sampler, adjusted, kept, logits_of


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_greedy_takes_the_first_of_the_largest(dtype: str) -> None:
    sampler = Sampler(50, dtype)
    for slot in range(3):
        sampler.admit(slot)
    logits = np.zeros((3, 50), np.float32)
    logits[1, [7, 30]], logits[2, 49] = 2.0, 0.5
    assert sampler.tokens(logits, [2, 0, 1]) == [0, 7, 49]
    assert sampler.state["last_tokens"].data.tolist()[:3] == [7, 49, 0]
    assert sampler.state["output_position"].data.tolist()[:4] == [1, 1, 1, 0]


def test_greedy_alone_leaves_the_adjusted_logits_untouched() -> None:
    sampler = Sampler(50)
    sampler.admit(0)
    expansion = sampler.run(logits_of(1, 50), [0])
    assert expansion.array("adjusted").tensor.isnan().all() and expansion.array("chosen_logprobs").tensor.isnan().all()


def test_padded_rows_record_nothing() -> None:
    sampler = Sampler(20)
    sampler.admit(1)
    before = {name: array.data.copy() for name, array in sampler.state.items()}
    assert sampler.tokens(logits_of(2, 20), [-1, -1]) == [0, 0]
    assert all(np.array_equal(before[name], array.data) for name, array in sampler.state.items())


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"presence_penalty": 1.0}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_fail_alone(settings: dict[str, Any], bad: float) -> None:
    sampler = Sampler(40)
    for slot in range(3):
        sampler.admit(slot, seed=slot, **settings)
    logits = logits_of(3, 40)
    clean = sampler.tokens(logits, [0, 1, 2])
    for slot in range(3):
        sampler.admit(slot, seed=slot, **settings)
    logits[1, 5] = bad
    assert sampler.tokens(logits, [0, 1, 2]) == [clean[0], -1, clean[2]]
    assert sampler.state["output_position"].data.tolist()[:3] == [1, 0, 1]
    logits[1] = -math.inf
    assert sampler.tokens(logits, [0, 1, 2])[1] == -1


parameters = st.builds(
    SamplingParameters,
    max_tokens=st.just(9),
    temperature=st.just(0.0),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, 29), st.floats(-100, 100, width=16), max_size=5),
    min_tokens=st.sampled_from([0, 3]),
)
token_lists = st.lists(st.integers(0, 29), max_size=6)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.tuples(parameters, token_lists, token_lists), min_size=1, max_size=5))
def test_adjustments(requests: list[tuple[SamplingParameters, list[int], list[int]]]) -> None:
    sampler, end = Sampler(30), (4, 17)
    logits = logits_of(len(requests), 30)
    slots = [(3 * row + 1) % SLOTS for row in range(len(requests))]
    for slot, (request, prompt, output) in zip(slots, requests, strict=True):
        sampler.slots.admit(slot, request, end, np.array(prompt, np.int32), np.array(output, np.int32))
    expansion = sampler.run(logits, slots)
    expected = [
        adjusted(row, prompt, output, end, request) for row, (request, prompt, output) in zip(logits, requests, strict=True)
    ]
    found = expansion.array("adjusted").data
    if not np.isnan(found).all():
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    for token, row in zip(expansion.array("tokens").data.tolist(), expected, strict=True):
        assert row[token] >= row.max() - 1e-4
    assert np.array_equal(expansion.array("logits").data, logits)


def test_penalties_follow_what_is_sampled() -> None:
    sampler, logits = Sampler(10), np.zeros((1, 10), np.float32)
    sampler.admit(0, prompt=[0], frequency_penalty=1.0)
    sampler.admit(1)
    assert [sampler.tokens(logits, [0])[0] for _ in range(12)] == [*range(10), 0, 1]
    assert sampler.state["output_counts"].data[0].tolist() == [2, 2] + [1] * 8
    sampler.admit(0, output=[0, 0, 1], frequency_penalty=1.0)
    assert sampler.state["output_counts"].data[0].tolist() == [2, 1] + [0] * 8
    assert sampler.tokens(logits, [0]) == [2]


filters = st.builds(
    SamplingParameters,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=80, deadline=None)
@given(requests=st.lists(filters, min_size=1, max_size=6), ties=st.booleans(), candidates=st.sampled_from([3, 1024]))
def test_draws_are_the_inverse_cdf_over_what_the_filters_keep(
    requests: list[SamplingParameters], ties: bool, candidates: int
) -> None:
    sampler, logits = Sampler(60), logits_of(len(requests), 60)
    if ties:
        logits = np.round(logits)
    slots = list(range(len(requests)))
    for slot, request in enumerate(requests):
        sampler.slots.admit(slot, request, (), NOTHING, np.zeros(slot, np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_tokens, "CANDIDATES", candidates)
        tokens = sampler.tokens(logits, slots)
    for row, request in enumerate(requests):
        probabilities = kept(logits[row].astype(np.float64), request)
        assert probabilities[tokens[row]] > 0
        chance = uniform(np.array([request.seed]), np.array([row], np.int32))[0]
        edges = np.cumsum(probabilities)
        below = edges[tokens[row] - 1] if tokens[row] else 0.0
        assert below - 1e-5 <= chance <= edges[tokens[row]] + 1e-5


@settings(max_examples=20, deadline=None)
@given(request=filters, others=st.lists(filters, max_size=5), position=st.integers(0, 3))
def test_a_draw_does_not_depend_on_the_batch(
    request: SamplingParameters, others: list[SamplingParameters], position: int
) -> None:
    logits = logits_of(1 + len(others), 3000, scale=1.0)
    output = np.zeros(position, np.int32)
    drawn = []
    for row, batch in ((0, [request]), (len(others), [*others, request])):
        sampler = Sampler(3000)
        for slot, member in enumerate(batch):
            sampler.slots.admit(slot, member, (), NOTHING, output)
        shown = np.concatenate([logits[1:], logits[:1]])[-len(batch) :]
        drawn.append(sampler.tokens(shown, list(range(len(batch))))[row])
    assert drawn[0] == drawn[1]


def test_a_preempted_request_draws_on_where_it_was() -> None:
    logits, sampler = logits_of(1, 500, scale=1.0), Sampler(500)
    sampler.admit(0, temperature=1.0, seed=77)
    whole = [sampler.tokens(logits, [0])[0] for _ in range(6)]
    sampler.admit(3, temperature=1.0, seed=77, output=whole[:4])
    assert [sampler.tokens(logits, [3])[0] for _ in range(2)] == whole[4:]


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_the_distribution_is_that_of_the_filters(settings: dict[str, Any]) -> None:
    sampler, row = Sampler(12), logits_of(1, 12, scale=1.0)
    counts = np.zeros(12)
    sampler.admit(0, temperature=0.9, seed=5, **settings)
    for _ in range(2000):
        counts[sampler.tokens(row, [0])[0]] += 1
    probabilities = kept(row[0].astype(np.float64), SamplingParameters(max_tokens=1, temperature=0.9, **settings))
    assert not counts[probabilities == 0].any()
    expected = 2000 * probabilities[probabilities > 0]
    assert ((counts[probabilities > 0] - expected) ** 2 / expected).sum() < 31.3  # 11 degrees of freedom, p = 0.001


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("vocabulary", [7, 300])
def test_logprobs_are_of_the_raw_logits(vocabulary: int, dtype: str) -> None:
    sampler, logits = Sampler(vocabulary, dtype), np.round(logits_of(3, vocabulary))
    sampler.admit(0, logprobs=5)
    sampler.admit(1)
    sampler.admit(2, logprobs=0, logit_bias={3: 50.0})
    expansion = sampler.run(logits, [0, 1, 2])
    tokens, chosen = expansion.array("tokens").data.tolist(), expansion.array("chosen_logprobs").data.tolist()
    top, values = expansion.array("top_tokens").data.tolist(), expansion.array("top_logprobs").data.tolist()
    wide = logits.astype(np.float64)
    exact = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    assert tokens[2] == 3 and math.isnan(chosen[1])
    for row in (0, 2):
        assert chosen[row] == pytest.approx(exact[row, tokens[row]], abs=1e-5)
        ranked = sorted(range(vocabulary), key=lambda token: (-logits[row, token], token))[:TOP_LOGPROBS]
        assert top[row] == ranked + [-1] * (TOP_LOGPROBS - len(ranked))
        assert np.allclose(values[row][: len(ranked)], exact[row, ranked], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"logprobs": 21},
        {"logit_bias": {50: 1.0}},
        {"logit_bias": dict.fromkeys(range(301), 0.0)},
        {"logit_bias": {1: math.inf}},
        {"end_tokens": tuple(range(17))},
        {"prompt": [50]},
        {"output": [-1]},
    ],
)
def test_what_no_slot_can_hold_is_refused(settings: dict[str, Any]) -> None:
    sampler = Sampler(50)
    with pytest.raises(UsageError):
        sampler.admit(0, **settings)
    with pytest.raises(UsageError):
        sampler.admit(SLOTS)
    assert not any(array.data.any() for array in sampler.state.values())
