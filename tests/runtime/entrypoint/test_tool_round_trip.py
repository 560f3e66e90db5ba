"""What was generated, given out as a client's API has it and sent back by the client, is the next prompt's beginning, token by
token: only so are its keys and values found again."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from tokenspeed.runtime.chat_template import ChatTemplate
from tokenspeed.runtime.entrypoint.call_layout import CallLayout, call_layout
from tokenspeed.runtime.entrypoint.chat_answer import ChatAnswer
from tokenspeed.runtime.entrypoint.choices import make_choices
from tokenspeed.runtime.entrypoint.given_calls import GivenCalls
from tokenspeed.runtime.entrypoint.prompts import chat_prompt
from tokenspeed.runtime.entrypoint.request_types import ChatRequest
from tokenspeed.runtime.entrypoint.tool_formats.registry import FORMATS
from tokenspeed.runtime.entrypoint.tool_reading import tool_reading
from tokenspeed.runtime.entrypoint.turn import Turn
from tokenspeed.runtime.protocol import TokenEvent

from .tiny_tokenizers import END
from .tool_models import HERMES_STYLE, LLAMA_STYLE, tool_model

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("look", "find")
]
NULL_CONTENT = """
{%- for message in messages %}
{%- if message.content is none %}{% for call in message.tool_calls %}{{ call.function.name }}{% endfor %}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}"""
ASKED: list[Any] = [{"role": "user", "content": "Look, please."}]


def shared(template: str, answer: str, *, as_client: Any = json.dumps, scopes: tuple[str, str] = ("", "")) -> tuple[int, int]:
    """How many tokens of the prompt, the answer and its end come again in the next turn's prompt, of how many. `as_client` writes
    arguments as the client does that sends the answer back."""
    model, given, tokenizer = tool_model(template), GivenCalls(), tool_model(template).tokenizer
    assert tokenizer is not None
    prompt = asyncio.run(chat_prompt(model, ASKED, tools=TOOLS, scope=scopes[0], given=given))
    request = ChatRequest(messages=ASKED, tools=TOOLS)
    reading = tool_reading(model, request, TOOLS, prompt, partial(given.remember, scopes[0]))
    [choice] = make_choices(request, model, [prompt], "r", Turn(), max_tokens=None, logprobs=None, reading=reading)
    tokens = tokenizer.encode(answer, add_begin_token=False)
    delta = choice.feed(TokenEvent(choice.submit.request_id, tuple(tokens), "stop", END))
    message = ChatAnswer("r", model.name, tokenizer, [prompt], token_ids=False).whole([(choice, delta)])["choices"][0]["message"]
    assert message["tool_calls"], message
    for call in message["tool_calls"]:
        call["function"]["arguments"] = as_client(json.loads(call["function"]["arguments"]))
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in message["tool_calls"]]
    later = asyncio.run(chat_prompt(model, [*ASKED, message, *results], tools=TOOLS, scope=scopes[1], given=given))
    generated = [*prompt.tokens, *tokens, END]
    same = next((at for at, token in enumerate(generated) if later.tokens[at : at + 1] != (token,)), len(generated))
    return same, len(generated)


def comes_again(*arguments: Any, **options: Any) -> bool:
    same, of = shared(*arguments, **options)
    return same == of


def compact(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


SPELLINGS = ['{"at": [1, 2.50], "é": "ü"}', '{"at":1}', '{ "at" : "\\u00fc\\/" }', "{}", '{"at": 1e2, "b": {"c":null}}']


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("as_client", [json.dumps, compact])
def test_calls_in_the_style_of_hermes(spelled: str, as_client: Any) -> None:
    look = f'<tool_call>\n{{"name": "look", "arguments": {spelled}}}\n</tool_call>'
    for answer in (look, f"I look.\n{look}", f"I look.\n\n\n{look}", f"{look}\n{look.replace('look', 'find')}"):
        assert comes_again(HERMES_STYLE, answer, as_client=as_client), answer


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("as_client", [json.dumps, compact])
def test_calls_in_the_style_of_llama(spelled: str, as_client: Any) -> None:
    assert comes_again(LLAMA_STYLE, f'{{"name": "look", "parameters": {spelled}}}', as_client=as_client)


def test_where_the_template_makes_it_impossible() -> None:
    """It writes what is around arguments its own way."""
    tag = '{"name": "look", "parameters": {"at": 1}}'
    for template, answer in (
        (HERMES_STYLE, '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
        (HERMES_STYLE, '<tool_call>\n{"arguments": {}, "name": "look"}\n</tool_call>'),
        (LLAMA_STYLE, f"<|python_tag|>{tag}"),
        (LLAMA_STYLE, f"{tag}; {tag}"),
    ):
        assert not comes_again(template, answer), answer


def test_another_scope_knows_nothing_of_it() -> None:
    answer = '{"name": "look", "parameters": {"at":1}}'
    assert comes_again(LLAMA_STYLE, answer, scopes=("a", "a"))
    assert not comes_again(LLAMA_STYLE, answer, scopes=("a", "b"))


def test_changed_arguments_are_the_clients_own() -> None:
    given = GivenCalls()
    given.remember("", "id", '{"a":1}')
    assert str(given.arguments("", "id", {"a": 1})) == '{"a":1}'
    assert str(given.arguments("", "id", {"a": 2})) == '{"a": 2}'
    assert str(given.arguments("", "other", {"a": 1})) == '{"a": 1}'


def test_only_unusual_spellings_are_kept_and_not_for_ever() -> None:
    given = GivenCalls(most=20)
    for number in range(5):
        given.remember("", str(number), '{"a": 1}')
    assert len(given) == 0
    for number in range(5):
        given.remember("", str(number), '{"a":1}')
        given.arguments("", "0", {"a": 1})
    assert len(given) == 2
    assert str(given.arguments("", "0", {"a": 1})) == '{"a":1}'
    given.remember("", "long", '{"a":"' + "x" * 30 + '"}')
    assert len(given) == 2


@pytest.mark.parametrize(
    ("source", "layout"),
    [
        (HERMES_STYLE, CallLayout("\n")),
        (LLAMA_STYLE, CallLayout(None, single=True)),
        ("{{ messages[-1].content }}", CallLayout()),
        ("{{ raise_exception('no') }}", CallLayout()),
        ("{{ messages[-1].content }}<tool_call>{{ messages[-1].tool_calls[0].function.name }}", CallLayout("", single=True)),
        ("{{ messages[-1].content }}:<tool_call>", CallLayout()),
        (NULL_CONTENT, CallLayout(null_content=True)),
    ],
)
def test_how_a_template_lays_out_calls(source: str, layout: CallLayout) -> None:
    by_name = {found.name: found for found in FORMATS}
    found = by_name["llama3_json" if source is LLAMA_STYLE else "hermes"]
    assert call_layout(ChatTemplate(source, {}), found.opens) == layout


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ arguments | tojson }}", '{"b":1, "a": []}'),
        ("{{ '<' + arguments + '>' }}", '<{"b":1, "a": []}>'),
        ("{{ arguments }}", '{"b":1, "a": []}'),
        ("{{ call | tojson }}", '{"name": "look", "arguments": {"b":1, "a": []}}'),
        ("{{ call | tojson(separators=(',', ':')) }}", '{"name":"look","arguments":{"b":1,"a":[]}}'),
        ("{{ arguments | tojson(indent=1) }}", '{\n "b": 1,\n "a": []\n}'),
        ("{% for name, value in arguments | items %}{{ name }}={{ value }};{% endfor %}", "b=1;a=[];"),
        ("{% for name in arguments %}{{ name }}{{ arguments[name] }}{{ arguments.b }}{% endfor %}", "b11a[]1"),
        ("{{ arguments is mapping }} {{ arguments is string }} {{ arguments | length }}", "True False 2"),
    ],
)
def test_templates_may_use_arguments_as_object_or_text(template: str, rendered: str) -> None:
    source = "{% set call = messages[0].tool_calls[0].function %}{% set arguments = call.arguments %}" + template
    given = GivenCalls()
    given.remember("", "id", '{"b":1, "a": []}')
    call = {"id": "id", "function": {"name": "look", "arguments": '{"b": 1, "a": []}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert asyncio.run(chat_prompt(tool_model(source), [message], given=given)).text == rendered


def test_templates_that_see_calls_by_null_content() -> None:
    call = {"id": "id", "function": {"name": "look", "arguments": "{}"}}
    for content in ("I look.", "", None):
        messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": content, "tool_calls": [call]}]
        assert asyncio.run(chat_prompt(tool_model(NULL_CONTENT), messages)).text == "alook"


def test_fields_that_clients_leave_null() -> None:
    source = "{% if 'tool_calls' in messages[0] %}{{ messages[0].tool_calls | length }}{% else %}none{% endif %}"
    for calls in (None, []):
        message = {"role": "assistant", "content": "x", "tool_calls": calls}
        assert asyncio.run(chat_prompt(tool_model(source), [message])).text == "none"


def test_arguments_that_are_no_object_or_too_deep_stay_as_they_are() -> None:
    given, deep = GivenCalls(), '{"a":' * 900 + "1" + "}" * 900
    given.remember("", "id", deep)
    for arguments in ("[1]", "{", deep * 9, {"a": json.loads("[" * 900 + "]" * 900)}):
        call = {"id": "id", "function": {"name": "look", "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        assert asyncio.run(chat_prompt(tool_model("x{{ messages[0].tool_calls[0].function.name }}"), [message])).text == "xlook"


def test_half_a_character_in_arguments_ends_no_conversation() -> None:
    call = {"id": "id", "function": {"name": "look", "arguments": '{"a": "\\ud83d"}'}}
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert asyncio.run(chat_prompt(tool_model(source), [message])).text == '{"a": "\ufffd"}'


def test_reasoning_goes_back_under_the_name_that_the_template_knows() -> None:
    source = "{% for message in messages %}{{ message.thinking }}|{{ message.content }}{% endfor %}"
    message: dict[str, Any] = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm."}
    model = tool_model(source)
    assert asyncio.run(chat_prompt(model, [message])).text == "Hm.|I look."
    calls = [{"id": "a", "function": {"name": "look", "arguments": "{}"}}]
    assert asyncio.run(chat_prompt(model, [message | {"tool_calls": calls}])).text == "Hm.|"
