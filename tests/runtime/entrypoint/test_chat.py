"""/v1/chat/completions with the real client, and /tokenize, which shows what the template made."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from .live_server import NAME, LiveServer
from .test_completions import TOKENIZER

USER: list[Any] = [{"role": "user", "content": "hello 😀 world"}]
RENDERED = "<|user|>hello 😀 world"


def tokenized(server: LiveServer, **body: Any) -> str:
    """The chat prompt's text for a request body, as the server makes it."""
    answer = httpx.post(f"{server.url}/tokenize", json={"messages": USER} | body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["count"] == len(answer.json()["tokens"])
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": answer.json()["tokens"]})
    return back.json()["prompt"]


def test_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=USER, max_completion_tokens=11)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content is not None and choice.message.content.startswith("hello 😀")
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 11
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


def test_stream_is_the_same_text(client: OpenAI) -> None:
    arguments: dict[str, Any] = {"model": NAME, "messages": USER, "max_tokens": 20, "n": 2}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]
    assert [choice.delta.role for chunk in chunks[:2] for choice in chunk.choices] == ["assistant"] * 2
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[0].object == "chat.completion.chunk"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: OpenAI, stream: bool) -> None:
    arguments: dict[str, Any] = {"model": NAME, "messages": USER, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = client.chat.completions.create(**arguments, stream=True)
        found = [
            item for chunk in chunks for choice in chunk.choices if choice.logprobs for item in choice.logprobs.content or []
        ]
    else:
        logprobs = client.chat.completions.create(**arguments).choices[0].logprobs
        found = list(logprobs.content or []) if logprobs else []
    assert len(found) == 12
    assert b"".join(bytes(item.bytes or []) for item in found[1:]).decode("utf-8", "ignore").startswith("hello 😀")
    assert [item.logprob for item in found[0].top_logprobs] == [-0.5, -1.5, -9999.0]


def test_no_limit_means_the_whole_context(client: OpenAI) -> None:
    usage = client.chat.completions.create(model=NAME, messages=USER).usage
    assert usage is not None and usage.total_tokens == 256


def test_the_template_makes_the_prompt(server: LiveServer) -> None:
    assert tokenized(server) == RENDERED
    assert tokenized(server, messages=[{"role": "assistant", "content": None}, *USER]) == "<|assistant|>" + RENDERED


def test_text_parts_are_joined_for_templates_that_want_strings(server: LiveServer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert tokenized(server, messages=[{"role": "user", "content": parts}]) == "<|user|>one\ntwo"


def test_tools_reach_the_template(server: LiveServer, client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert '"name": "look"' in tokenized(server, tools=[tool])
    answer = client.chat.completions.create(model=NAME, messages=USER, tools=[tool], max_tokens=60)  # pyright: ignore
    assert '"look"' in (answer.choices[0].message.content or "")


def test_a_long_conversation_is_tokenized_in_a_thread(server: LiveServer) -> None:
    answer = httpx.post(f"{server.url}/tokenize", json={"messages": [{"role": "user", "content": "hello " * 5000}]})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert len(TOKENIZER.encode("hello " * 5000, add_begin_token=False)) > 5000


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", None),
        ([{"content": "x"}], "messages[0].role", None),
        ([{"role": "user", "content": 5}], "messages[0].content", None),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type", None),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0].text", None),
        ([{"role": "refused", "content": "x"}], "messages", "chat_template_error"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls", None),
    ],
)
def test_bad_messages_are_named(server: LiveServer, messages: list[Any], param: str, code: str | None) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_template_arguments_cannot_replace_the_messages(server: LiveServer) -> None:
    body = {"messages": USER, "chat_template_kwargs": {"messages": []}}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 400
