"""What clients say of sessions, urgency and retention, with the real client, as far as the scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from tokenspeed.runtime.entrypoint.keys_file import TenantKey
from tokenspeed.runtime.scheduling.request import Request

from .live_server import NAME, LiveServer, live_server
from .test_chat import tokenized

USER: list[Any] = [{"role": "user", "content": "hello"}]
EPHEMERAL = {"type": "ephemeral"}


@dataclass
class Heard:
    """What reached the scheduler."""

    requests: list[Request] = field(default_factory=list)
    hints: list[tuple[str, ...]] = field(default_factory=list)

    def until_hints(self, count: int) -> list[tuple[str, ...]]:
        deadline = time.monotonic() + 10
        while len(self.hints) < count and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.hints


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveServer]:
    keys = (TenantKey("ours", "sk-ours"), TenantKey("ours", "sk-ours-too"), TenantKey("theirs", "sk-theirs"))
    with live_server(keys=("sk-unnamed",), named=keys) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    """Without what the real client checks before it sends."""
    with httpx.Client(base_url=server.url, timeout=20) as http:
        yield http


@pytest.fixture
def heard(server: LiveServer) -> Iterator[Heard]:
    yield from listening(server)


@pytest.fixture
def heard_shared(shared: LiveServer) -> Iterator[Heard]:
    yield from listening(shared)


def listening(server: LiveServer) -> Iterator[Heard]:
    heard, scheduler = Heard(), server.engine.scheduler
    submit, end_turn, close_session = scheduler.submit, scheduler.end_turn, scheduler.close_session
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "submit", lambda request: (heard.requests.append(request), submit(request)))
        patch.setattr(scheduler, "end_turn", lambda name, end: (heard.hints.append((name, end)), end_turn(name, end)))
        patch.setattr(scheduler, "close_session", lambda name: (heard.hints.append((name,)), close_session(name)))
        yield heard


def ask(client: OpenAI, **body: Any) -> Any:
    return client.chat.completions.create(model=NAME, messages=USER, max_tokens=2, extra_body=body)


@pytest.mark.parametrize(
    ("body", "header", "session"),
    [
        ({"session_id": "a", "prompt_cache_key": "c", "user": "d"}, "b", "/a"),
        ({"prompt_cache_key": "c", "user": "d"}, "b", "/b"),
        ({"prompt_cache_key": "c", "user": "d"}, "", "/c"),
        ({"user": "d"}, "", "/d"),
        ({"session_id": "", "user": None}, "", ""),
    ],
)
def test_which_session_it_is(client: OpenAI, heard: Heard, body: dict[str, Any], header: str, session: str) -> None:
    headers = {"X-Session-Id": header} if header else {}
    client.chat.completions.create(model=NAME, messages=USER, max_tokens=2, extra_body=body, extra_headers=headers)
    assert [request.session_id for request in heard.requests] == [session]
    assert heard.until_hints(bool(session)) == ([(session, "end_of_turn")] if session else [])


def test_all_choices_of_a_request_are_one_turn(client: OpenAI, heard: Heard) -> None:
    client.completions.create(model=NAME, prompt=[[5, 6], [7, 8]], n=2, max_tokens=2, extra_body={"session_id": "s"})
    assert [request.session_id for request in heard.requests] == ["/s"] * 4
    assert heard.until_hints(1) == [("/s", "end_of_turn")]


def test_urgency(client: OpenAI, heard: Heard) -> None:
    before = time.monotonic()
    answers = [
        ask(client),
        ask(client, service_tier="priority", priority=3),
        ask(client, service_tier="flex", deadline_ms=5000, inter_token_ms=200.5),
        ask(client, service_tier="auto", priority=-(2**31)),
    ]
    plain, urgent, patient, first = heard.requests
    assert (plain.priority, plain.deadline, plain.inter_token_seconds) == (0, None, None)
    assert (urgent.priority, urgent.inter_token_seconds) == (-7, None)
    assert urgent.deadline is not None and before < urgent.deadline < time.monotonic() + 1
    assert (patient.priority, patient.inter_token_seconds) == (10, 0.2005)
    assert patient.deadline is not None and patient.deadline > before + 5
    assert first.priority == -(2**31) + 1
    assert [answer.service_tier for answer in answers] == [None, "priority", "flex", "default"]


def test_a_tier_is_told_to_streams_too(client: OpenAI) -> None:
    stream = client.chat.completions.create(model=NAME, messages=USER, max_tokens=2, stream=True, service_tier="flex")
    assert {chunk.service_tier for chunk in stream} == {"flex"}


MARKED = [
    {"role": "system", "content": [{"type": "text", "text": "rules", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    {"role": "user", "content": "hello", "cache_control": EPHEMERAL},
]


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({}, None),
        ({"messages": MARKED}, 3600),
        ({"messages": MARKED[1:]}, 300),
        ({"messages": [MARKED[1] | {"cache_control": None}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral", "ttl": "5m"}}]}, 300),
        ({"cache_control": EPHEMERAL}, 300),
        ({"prompt_cache_retention": "24h", "messages": MARKED}, 86400),
        ({"prompt_cache_retention": "in_memory"}, None),
    ],
)
def test_how_long_a_prompt_is_wanted(http: httpx.Client, heard: Heard, body: dict[str, Any], seconds: float | None) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 1} | body)
    assert answer.status_code == 200, answer.text
    assert [request.retention_seconds for request in heard.requests] == [seconds]


def test_no_mark_reaches_the_template(server: LiveServer) -> None:
    parameters = {"type": "object", "properties": {"cache_control": {"type": "string"}}}
    function = {"name": "f", "parameters": parameters}
    plain = [{"role": message["role"], "content": "rules" if n == 0 else "hello"} for n, message in enumerate(MARKED)]
    marked_tool = {"type": "function", "function": function | {"cache_control": EPHEMERAL}, "cache_control": EPHEMERAL}
    marked = tokenized(server, messages=MARKED, tools=[marked_tool])
    assert marked == tokenized(server, messages=plain, tools=[{"type": "function", "function": function}])
    assert marked.count("cache_control") == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"session_id": "s" * 1025}, "session_id"),
        ({"session_id": 5}, "session_id"),
        ({"service_tier": "best"}, "service_tier"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"inter_token_ms": "soon"}, "inter_token_ms"),
        ({"prompt_cache_retention": "1h"}, "prompt_cache_retention"),
        ({"cache_control": "ephemeral"}, "cache_control"),
        ({"messages": [MARKED[1] | {"cache_control": {"type": "lasting"}}]}, "messages[0].cache_control"),
        ({"messages": [MARKED[1] | {"cache_control": EPHEMERAL | {"ttl": "2h"}}]}, "messages[0].cache_control.ttl"),
        ({"messages": [{"role": "user", "content": [{"cache_control": 1}]}]}, "messages[0].content[0].cache_control"),
        ({"tools": [{"cache_control": {"type": "ephemeral", "ttl": []}}]}, "tools[0].cache_control.ttl"),
    ],
)
def test_what_makes_no_sense_is_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": USER} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_long_session_header_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "hi"}, headers={"X-Session-Id": "s" * 1025})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Session-Id")


def test_a_mark_nested_beyond_all_reason_is_no_error(http: httpx.Client) -> None:
    content: Any = "x"
    for _ in range(300):
        content = [{"type": "text", "content": content}]
    answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("text", "tools", "end"),
    [
        ("say <tool_call>{}</tool_call>", False, "tool_call"),
        ("nothing of the kind", True, "end_of_turn"),
        ('{"name": "look", "arguments": {}}', True, "tool_call"),
        ('{"name": "look", "arguments": {}}', False, "end_of_turn"),
    ],
)
def test_an_answer_that_calls_a_tool_ends_its_turn_so(http: httpx.Client, heard: Heard, text: str, tools: bool, end: str) -> None:
    """The executor says the prompt again."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 80, "session_id": "s", "stream": True}
    if tools:
        body |= {"tools": [{"type": "function"}]}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert heard.until_hints(1) == [("/s", end)]


def test_a_client_that_leaves_says_nothing_of_the_turn(server: LiveServer, http: httpx.Client, heard: Heard) -> None:
    body = {"prompt": "hello", "max_tokens": 200, "session_id": "s", "stream": True}
    server.executor.step_seconds = 0.005
    try:
        with http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_raw())
    finally:
        server.executor.step_seconds = 0.0
    http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 1, "user": "next"})
    assert heard.until_hints(1) == [("/next", "end_of_turn")]


def test_hints_between_turns(client: OpenAI, heard: Heard) -> None:
    ended = client.post("/sessions/a%2Fb/end_turn", body={"end": "tool_call"}, cast_to=httpx.Response).json()
    closed = client.delete("/sessions/a%2Fb", cast_to=httpx.Response).json()
    assert ended == {"id": "a/b", "object": "session", "end": "tool_call"}
    assert closed == {"id": "a/b", "object": "session", "deleted": True}
    assert heard.until_hints(2) == [("/a/b", "tool_call"), ("/a/b",)]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/sessions/a/end_turn", body={"end": "bored"}, cast_to=httpx.Response)
    assert caught.value.param == "end"


def test_a_tenant_has_its_own_sessions(shared: LiveServer, heard_shared: Heard) -> None:
    for key in ("sk-ours", "sk-ours-too", "sk-theirs", "sk-unnamed"):
        with OpenAI(base_url=f"{shared.url}/v1", api_key=key, max_retries=0) as client:
            ask(client, session_id="s", tenant="ours")
            client.delete("/sessions/s", cast_to=httpx.Response)
    ours, too, theirs, unnamed = heard_shared.requests
    assert (ours.tenant, too.tenant, theirs.tenant) == ("ours", "ours", "theirs") and unnamed.tenant.startswith("key-")
    assert len({request.salt for request in heard_shared.requests}) == 4
    assert [request.session_id for request in heard_shared.requests] == [f"{r.tenant}/s" for r in heard_shared.requests]
    closed = [hint for hint in heard_shared.until_hints(8) if len(hint) == 1]
    assert closed == [("ours/s",), ("ours/s",), ("theirs/s",), (f"{unnamed.tenant}/s",)]
    assert httpx.delete(f"{shared.url}/v1/sessions/s").status_code == 401
    assert httpx.post(f"{shared.url}/v1/sessions/s/end_turn", json={"end": "tool_call"}).status_code == 401
