"""/v1/completions with the real client: the fake model says the prompt again, so every answer is known."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from tokenspeed.runtime.tokenizer import Tokenizer

from .live_server import NAME, LiveServer
from .tiny_tokenizers import BEGIN, byte_level

TOKENIZER = Tokenizer(byte_level())
TEXT = "hello 😀 wörld, 漢字 and more"


def length(text: str) -> int:
    """Tokens of a prompt, the begin token included."""
    return len(TOKENIZER.encode(text, add_begin_token=False)) + 1


def test_whole_answer_and_usage(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=TEXT, max_tokens=length(TEXT))
    [choice] = answer.choices
    assert choice.text == TEXT
    assert choice.finish_reason == "length"
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer.model == NAME
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == length(TEXT)
    assert answer.usage.total_tokens == 2 * length(TEXT)


def test_stream_is_the_same_text(client: OpenAI) -> None:
    stream = client.completions.create(
        model=NAME, prompt=TEXT, max_tokens=length(TEXT), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == TEXT
    assert not any("\ufffd" in text for text in texts)
    assert [choice.finish_reason for choice in chunks[-2].choices] == ["length"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == length(TEXT)
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_usage_chunk_unless_asked(client: OpenAI) -> None:
    chunks = list(client.completions.create(model=NAME, prompt="hello", max_tokens=2, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_default_is_sixteen_tokens(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=TEXT)
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_tokens_as_prompt_and_token_ids_back(client: OpenAI) -> None:
    tokens = TOKENIZER.encode("hello world", add_begin_token=False)
    answer = client.completions.create(model=NAME, prompt=tokens, max_tokens=len(tokens), extra_body={"return_token_ids": True})
    assert answer.choices[0].text == "hello world"
    assert answer.choices[0].to_dict()["token_ids"] == tokens
    assert answer.choices[0].to_dict()["prompt_token_ids"] == tokens


def test_a_stream_gives_the_prompts_tokens_once(client: OpenAI) -> None:
    tokens = TOKENIZER.encode("hello world", add_begin_token=False)
    with client.completions.create(
        model=NAME, prompt=tokens, max_tokens=6, stream=True, extra_body={"return_token_ids": True}
    ) as stream:
        choices: list[dict[str, Any]] = [chunk.choices[0].to_dict() for chunk in stream]
    assert [choice.get("prompt_token_ids") for choice in choices] == [tokens] + [None] * (len(choices) - 1)
    assert [token for choice in choices for token in choice["token_ids"]] == [tokens[n % len(tokens)] for n in range(6)]


def test_several_prompts_and_choices_are_indexed(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=["hello", "world there"], n=2, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    starts = [choice.text[:5] for choice in answer.choices]
    assert starts == ["hello", "hello", "world", "world"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == length("hello") + length("world there")
    assert answer.usage.completion_tokens == 32


def test_streamed_choices_come_apart_by_index(client: OpenAI) -> None:
    texts, prompt = {0: "", 1: "", 2: ""}, "one two three"
    for chunk in client.completions.create(model=NAME, prompt=prompt, n=3, max_tokens=length(prompt), stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == dict.fromkeys(range(3), prompt)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_first(client: OpenAI, stream: bool) -> None:
    arguments = {"model": NAME, "prompt": "hello world", "max_tokens": length("hello world")}
    if stream:
        chunks = client.completions.create(**arguments, stream=True, extra_body={"echo": True})
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    else:
        text = client.completions.create(**arguments, echo=True).choices[0].text
    assert text == "hello worldhello world"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "expected"), [("lo w", "hel"), (["zzz", "😀"], "hello world "), ("absent", None)])
def test_stop_strings_across_tokens(client: OpenAI, stop: str | list[str], expected: str | None, stream: bool) -> None:
    prompt = "hello world 😀 more"
    arguments = {"model": NAME, "prompt": prompt, "max_tokens": length(prompt), "stop": stop}
    if stream:
        choices = [choice for chunk in client.completions.create(**arguments, stream=True) for choice in chunk.choices]
        text, reason = "".join(choice.text for choice in choices), choices[-1].finish_reason
    else:
        [choice] = client.completions.create(**arguments).choices
        text, reason = choice.text, choice.finish_reason
    assert text == (prompt if expected is None else expected)
    assert reason == ("length" if expected is None else "stop")


def test_stop_token_leaves_no_text(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt="hello<|end|> world", max_tokens=20)
    assert answer.choices[0].text == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == length("hello") + 1


def test_ignore_eos_and_own_stop_token(client: OpenAI) -> None:
    [world] = TOKENIZER.encode(" world", add_begin_token=False)[:1]
    answer = client.completions.create(
        model=NAME, prompt="hello<|end|> world", max_tokens=20, extra_body={"ignore_eos": True, "stop_token_ids": [world]}
    )
    assert answer.choices[0].text == "hello"
    assert answer.choices[0].to_dict()["stop_reason"] == world


def test_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt="hello there", max_tokens=length("hello there"), logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.text_offset
    spelled = logprobs.tokens[1:]  # the begin token is no text
    assert "".join(spelled) == "hello there"
    assert logprobs.text_offset[1:] == [sum(map(len, spelled[:n])) for n in range(len(spelled))]
    assert logprobs.token_logprobs == [-0.5] * len(logprobs.tokens)
    assert logprobs.top_logprobs is not None and all(len(top) == 2 for top in logprobs.top_logprobs)


def test_logprobs_are_cut_with_the_text(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt="one two three", max_tokens=20, logprobs=0, stop=" three")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens
    assert "".join(logprobs.tokens[1:]) == answer.choices[0].text == "one two"


def test_cached_tokens_are_reported(client: OpenAI) -> None:
    prompt = "a prompt that nobody sent before, long enough for the prefix cache"
    first, second = (client.completions.create(model=NAME, prompt=prompt, max_tokens=1).usage for _ in range(2))
    assert first is not None and first.prompt_tokens_details is not None and first.prompt_tokens_details.cached_tokens == 0
    assert second is not None and second.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == (length(prompt) - 1) // 8 * 8


def test_cache_salt_separates(client: OpenAI) -> None:
    prompt = "another prompt that nobody sent before, also long enough"
    cached = []
    for salt in ("a", "b", "a"):
        usage = client.completions.create(model=NAME, prompt=prompt, max_tokens=1, extra_body={"cache_salt": salt}).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[:2] == [0, 0]
    assert cached[2]


def test_max_tokens_is_cut_to_the_context(client: OpenAI) -> None:
    prompt = [BEGIN + 5] * 250
    answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=1000)
    assert answer.usage is not None and answer.usage.total_tokens == 256


def test_many_at_once_with_the_async_client(server: LiveServer) -> None:
    async def ask(client: AsyncOpenAI, n: int) -> str:
        prompt = f"question {n} 😀"
        stream = await client.completions.create(model=NAME, prompt=prompt, max_tokens=length(prompt), stream=True)
        return "".join([choice.text async for chunk in stream for choice in chunk.choices])

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=20) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(10)))

    assert asyncio.run(ask_all()) == [f"question {n} 😀" for n in range(10)]
