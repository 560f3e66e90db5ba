"""What is not served is refused with the right status, the field's name and OpenAI's error form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from .live_server import KEY, NAME, LiveServer, live_server

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with live_server(keys=("other", KEY), body_limit=2000) as server:
        yield server


def post(server: LiveServer, path: str, **arguments: Any) -> httpx.Response:
    answer = httpx.post(f"{server.url}{path}", timeout=20, **arguments)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["message"]
    return answer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("n", 0),
        ("n", 1000),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [""]),
        ("stop", 5),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", {str(token): 1 for token in range(301)}),
        ("stop_token_ids", [99999]),
        ("stop_token_ids", list(range(2, 18))),
        ("seed", 1.5),
        ("min_tokens", 100),
        ("priority", 2**31),
        ("prompt", []),
        ("prompt", [99999]),
        ("prompt", [1, "a"]),
        ("prompt", {"text": "a"}),
        ("logprobs", 21),
        ("best_of", 3),
        ("suffix", "end"),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("stream_options", 5),
    ],
)
def test_completion_fields(server: LiveServer, field: str, value: object) -> None:
    answer = post(server, "/v1/completions", json={"prompt": "hello", "max_tokens": 4} | {field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split("[")[0].split(".")[0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "x"}}),
        ("functions", [{"name": "x"}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("top_logprobs", 2),
        ("top_logprobs", 21),
        ("chat_template", "{{ 1 }}"),
        ("messages", "hi"),
    ],
)
def test_chat_fields(server: LiveServer, field: str, value: object) -> None:
    answer = post(server, "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 4} | {field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_neutral_and_unknown_fields_pass(server: LiveServer) -> None:
    neutral = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "modalities": ["text"], "user": "me"}
    ignored = {"store": False, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True, "no_such_field": [1]}
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "seed", "logit_bias", "functions", "stream_options"))
    body = {"messages": MESSAGES, "max_tokens": 2} | neutral | ignored | nulls
    assert post(server, "/v1/chat/completions", json=body).status_code == 200


def test_echo_with_logprobs_is_refused(server: LiveServer) -> None:
    answer = post(server, "/v1/completions", json={"prompt": "hello", "echo": True, "logprobs": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": "a"} x', b"\xff", b'{"prompt": "\\ud800 x"}', b"[" * 100_000])
def test_bodies_that_are_no_request(server: LiveServer, body: bytes) -> None:
    answer = post(server, "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


def test_a_missing_field_is_named(server: LiveServer) -> None:
    answer = post(server, "/v1/completions", json={"model": NAME})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_other_content_types_are_refused(server: LiveServer) -> None:
    answer = post(server, "/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.parametrize("prompt", ["hello " * 400, [5] * 256])
def test_over_long_prompts(client: OpenAI, prompt: str | list[int]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=prompt)
    assert caught.value.code == "context_length_exceeded"


def test_unknown_models_and_paths(server: LiveServer, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-x", prompt="hi")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-x")
    assert post(server, "/v1/nothing", json={}).status_code == 404
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).to_dict()["max_model_len"] == 256


def test_bodies_over_the_limit(guarded: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    long = b'{"prompt": "' + b"a" * 3000 + b'"}'
    assert post(guarded, "/v1/completions", content=long, headers=headers).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from (long[start : start + 500] for start in range(0, len(long), 500))

    assert post(guarded, "/v1/completions", content=chunks(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer nope"}, {"Authorization": f"Basic {KEY}"}, {"x-api-key": "no"}]
)
def test_no_key_no_service(guarded: LiveServer, headers: dict[str, str]) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        assert post(guarded, path, json={"prompt": "hi"}, headers=headers).status_code == 401
    for path in ("/v1/models", "/metrics"):
        assert httpx.get(f"{guarded.url}{path}", headers=headers).status_code == 401
    for path in ("/health", "/ready", "/version"):
        assert httpx.get(f"{guarded.url}{path}", headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["other", KEY])
def test_every_key_opens(guarded: LiveServer, key: str) -> None:
    with OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
        assert client.completions.create(model=NAME, prompt="hello", max_tokens=1).choices
    assert httpx.get(f"{guarded.url}/v1/models", headers={"x-api-key": key}).status_code == 200


def test_keys_do_not_share_cached_prompts(guarded: LiveServer) -> None:
    cached = []
    for key in ("other", KEY, KEY):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": "the very same long prompt for two tenants of this server", "max_tokens": 1}
        answer = post(guarded, "/v1/completions", json=body, headers=headers)
        cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_a_full_queue_says_when_to_come_back(server: LiveServer) -> None:
    server.executor.step_seconds = 0.05
    try:
        answer = post(server, "/v1/completions", json={"prompt": "hello", "n": 128, "max_tokens": 2, "stream": True})
    finally:
        server.executor.step_seconds = 0.0
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "queue_full" and answer.headers["retry-after"] == "1"


def test_version(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/version").json() == {"version": "1.2.3", "plan_id": "0" * 64}
