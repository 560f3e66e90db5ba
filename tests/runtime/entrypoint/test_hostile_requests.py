"""Whatever the body holds, decoding ends with a request or with a 4xx that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.entrypoint.access import ANYONE, ApiKeys, cache_salt
from tokenspeed.runtime.entrypoint.api_error import ApiError
from tokenspeed.runtime.entrypoint.cache_control import take_marks
from tokenspeed.runtime.entrypoint.choices import make_choices
from tokenspeed.runtime.entrypoint.decoding import decode
from tokenspeed.runtime.entrypoint.prompts import Prompt
from tokenspeed.runtime.entrypoint.refusals import refuse_unsupported
from tokenspeed.runtime.entrypoint.request_types import ChatRequest, CompletionRequest
from tokenspeed.runtime.entrypoint.sampling import choice_seed
from tokenspeed.runtime.entrypoint.service_tiers import DEFAULT_TIERS
from tokenspeed.runtime.entrypoint.turn import Turn, turn_of

from .live_server import tiny_model

MODEL = tiny_model()
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0, 1, 2]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("019a", max_size=3), inner, max_size=3)
)
FIELDS = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), st.sampled_from([ChatRequest, CompletionRequest]))
def test_any_fields(fields: dict[str, Any], kind: type[ChatRequest] | type[CompletionRequest]) -> None:
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]} | fields
    try:
        request = decode(json.dumps(body).encode(), kind)
        refuse_unsupported(request)
        if isinstance(request, ChatRequest):
            take_marks(request.messages, "messages")
            take_marks(request.tools, "tools")
        turn = turn_of(request, {}, ANYONE, DEFAULT_TIERS, 0.0)
        choices = make_choices(request, MODEL, [Prompt((5, 6))], "r", turn, max_tokens=request.max_tokens, logprobs=None)
    except ApiError as error:
        assert error.status == 400
        return
    for choice in choices:
        sampling = choice.submit.sampling
        assert 1 <= sampling.max_tokens <= MODEL.max_context - 2
        assert 0 <= sampling.temperature <= 2 and 0 < sampling.top_p <= 1 and sampling.top_k >= 0
        assert 0 <= sampling.seed < 2**63


@given(st.binary(max_size=60))
def test_any_bytes(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode(body, CompletionRequest)
    assert caught.value.status == 400


def test_a_seed_gives_the_first_choice_and_others_their_own() -> None:
    assert choice_seed(7, 0) == 7
    assert len({choice_seed(7, n) for n in range(50)} | {choice_seed(8, n) for n in range(50)}) == 100


def test_without_a_seed_two_requests_differ() -> None:
    request = CompletionRequest(prompt="x")
    made = [make_choices(request, MODEL, [Prompt((5,))], "r", Turn(), max_tokens=4, logprobs=None)[0] for _ in range(2)]
    assert made[0].submit.sampling.seed != made[1].submit.sampling.seed


def test_salts_differ_by_key_and_by_salt() -> None:
    keys = ApiKeys(["one", "two"])
    one, two = keys.authenticate("Bearer one"), keys.authenticate("Bearer two")
    salts = {cache_salt(caller.identity, salt) for caller in (one, two, ANYONE) for salt in (None, "a", "b")}
    assert len(salts) == 9
    assert cache_salt(b"", None) == ""
    assert not any("one" in salt for salt in salts)
