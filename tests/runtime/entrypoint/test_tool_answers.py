"""Tool calls over HTTP, by the client that agents use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from .live_server import LiveServer, live_server
from .test_sessions import Heard, listening
from .tool_models import HERMES_STYLE, SAID_AGAIN, tool_model

LOOK = '<tool_call>\n{"name": "look", "arguments": {"at":[1, "é"]}}\n</tool_call>'
FIND = '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "look", "arguments": {"at": [1}}\n</tool_call>'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@contextmanager
def serving(parser: str, template: str = SAID_AGAIN) -> Iterator[tuple[LiveServer, OpenAI]]:
    with (
        live_server(model=tool_model(template, parser, 1024)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=20) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def hermes() -> Iterator[tuple[LiveServer, OpenAI]]:
    with serving("hermes") as found:
        yield found


def ask(client: OpenAI, text: str, **more: Any) -> Any:
    body = {"model": "tiny-model", "messages": [{"role": "user", "content": text}], "tools": TOOLS, "temperature": 0} | more
    return client.chat.completions.create(**body)


def streamed(client: OpenAI, text: str, **more: Any) -> tuple[list[Any], Any, list[str]]:
    """Deltas of a streamed answer, its choice put together by the client's own means, and its reasons to end."""
    body = {"model": "tiny-model", "messages": [{"role": "user", "content": text}], "tools": TOOLS} | more
    deltas, reasons = [], []
    with client.chat.completions.stream(**body) as stream:
        for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    deltas.append(choice.delta)
                    reasons += [choice.finish_reason] if choice.finish_reason else []
        return deltas, stream.get_final_completion().choices[0], reasons


def test_a_call(hermes: tuple[LiveServer, OpenAI]) -> None:
    [choice] = ask(hermes[1], f"I look.\n{LOOK}").choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    assert (call.type, call.function.name, call.function.arguments) == ("function", "look", '{"at":[1, "é"]}')
    assert call.id.startswith("call_")
    assert ask(hermes[1], LOOK).choices[0].message.content is None


def test_a_stream_of_calls(hermes: tuple[LiveServer, OpenAI]) -> None:
    deltas, choice, reasons = streamed(hermes[1], f"a < b\n{LOOK}\n{FIND}")
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert reasons == ["tool_calls"]
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content == "a < b"
    first, *rest = parts
    assert (first.index, first.type, first.function.name) == (0, "function", "look")
    assert [part.id for part in parts if part.id] == [call.id for call in choice.message.tool_calls]
    assert len([part for part in rest if part.index == 0]) > 5  # as they come
    assert all(part.function.name is None and part.type is None for part in rest if not part.id)
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("look", {"at": [1, "é"]}), ("find", {})]
    whole = ask(hermes[1], f"a < b\n{LOOK}\n{FIND}").choices[0].message
    assert [call.function.arguments for call in whole.tool_calls] == ['{"at":[1, "é"]}', "{}"]


def test_one_call_at_a_time(hermes: tuple[LiveServer, OpenAI]) -> None:
    answer = ask(hermes[1], f"{LOOK}\n{FIND}", parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["look"]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage.completion_tokens < ask(hermes[1], f"{LOOK}\n{FIND}").usage.completion_tokens
    assert len(streamed(hermes[1], f"{LOOK}\n{FIND}", parallel_tool_calls=False)[1].message.tool_calls) == 1


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (BROKEN, {}),
        (f"<think>I could say {LOOK}</think>\nNo.", {}),
        (LOOK, {"tools": []}),
        (LOOK, {"tool_choice": "none"}),
        ("<tool_call> is a tag", {"tool_choice": "auto"}),
    ],
)
def test_what_is_no_call_is_content(hermes: tuple[LiveServer, OpenAI], text: str, more: dict[str, Any]) -> None:
    [choice] = ask(hermes[1], text, **more).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
    deltas, _, reasons = streamed(hermes[1], text, **more)
    assert "".join(delta.content or "" for delta in deltas) == text and reasons == ["stop"]


def test_an_answer_that_is_cut_off(hermes: tuple[LiveServer, OpenAI]) -> None:
    [choice] = ask(hermes[1], LOOK, max_tokens=30).choices
    assert choice.finish_reason == "length" and choice.message.content.startswith("<tool_call>\n{")
    [choice] = ask(hermes[1], f"{FIND}\n{LOOK}", max_tokens=60).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["find"]
    assert choice.finish_reason == "length"


def test_all_choices_and_their_logprobs(hermes: tuple[LiveServer, OpenAI]) -> None:
    answer = ask(hermes[1], LOOK, n=2, logprobs=True)
    ids = {choice.message.tool_calls[0].id for choice in answer.choices}
    assert len(ids) == 2
    spelled = b"".join(bytes(item.bytes or []) for item in answer.choices[1].logprobs.content)
    assert spelled.decode() == LOOK


def test_why_a_turn_ended(hermes: tuple[LiveServer, OpenAI]) -> None:
    """What was read decides, where answers are read."""
    server, client = hermes
    heard: Heard
    for heard in listening(server):
        for text in (LOOK, BROKEN):
            ask(client, text, extra_body={"session_id": "s"})
        assert heard.until_hints(2) == [("/s", "tool_call"), ("/s", "end_of_turn")]


def test_the_next_turn_finds_keys_and_values_of_the_call() -> None:
    """The client writes the arguments anew, as many do."""
    with serving("hermes", "{{ script }}<|end|>" + HERMES_STYLE) as (_, client):
        messages: list[Any] = [{"role": "user", "content": "Look."}]
        script = {"chat_template_kwargs": {"script": f"I look.\n{LOOK}"}}
        first = ask(client, "", messages=messages, extra_body=script)
        [call] = first.choices[0].message.tool_calls
        written = json.dumps(json.loads(call.function.arguments))
        assert written != call.function.arguments
        for arguments in (written, '{"at": 2}'):
            function = {"name": "look", "arguments": arguments}
            called = {"id": call.id, "type": "function", "function": function}
            answer = {"role": "assistant", "content": "I look.", "tool_calls": [called]}
            result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
            usage = ask(client, "", messages=[*messages, answer, result], extra_body=script).usage
            known, cached = first.usage.total_tokens, usage.prompt_tokens_details.cached_tokens
            assert (cached > known - 12) == (arguments == written), (cached, known)
            assert cached > first.usage.prompt_tokens - 12


def test_calls_are_forced_by_no_grammar_yet(hermes: tuple[LiveServer, OpenAI]) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            ask(hermes[1], LOOK, tool_choice=choice)


@pytest.mark.parametrize(
    ("parser", "text", "content", "reasoning"),
    [
        ("mistral", '[TOOL_CALLS]look[ARGS]{"at": 1}', None, None),
        ("llama3_json", '<|python_tag|>{"name": "look", "parameters": {"at": 1}}', None, None),
        (
            "harmony",
            "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>commentary<|message|>I look.<|start|>assistant"
            '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": 1}',
            "I look.",
            "Hm.",
        ),
    ],
)
def test_marks_that_are_special_tokens(parser: str, text: str, content: str | None, reasoning: str | None) -> None:
    with serving(parser) as (_, client):
        assert client.models.retrieve("tiny-model").model_dump()["tool_parser"] == parser
        message = ask(client, text).choices[0].message
        assert (message.content, getattr(message, "reasoning_content", None)) == (content, reasoning)
        assert [call.function.arguments for call in message.tool_calls] == ['{"at": 1}']
        deltas, choice, reasons = streamed(client, text)
        assert choice.message.content == (content or "") and reasons == ["tool_calls"]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == (reasoning or "")
        plain = ask(client, text + " and more", tools=[]).choices[0]
        assert plain.finish_reason == "stop" and "<|" not in plain.message.content and "[TOOL" not in plain.message.content
