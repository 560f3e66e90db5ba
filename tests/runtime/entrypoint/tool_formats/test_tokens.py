"""Answers as tokens come: alone, or several in one event, with stop strings and special tokens on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.entrypoint.choice import Delta
from tokenspeed.runtime.entrypoint.choices import make_choices
from tokenspeed.runtime.entrypoint.completions import joined
from tokenspeed.runtime.entrypoint.prompts import Prompt
from tokenspeed.runtime.entrypoint.request_types import ChatRequest
from tokenspeed.runtime.entrypoint.tool_reading import tool_reading
from tokenspeed.runtime.entrypoint.turn import Turn
from tokenspeed.runtime.protocol import TokenEvent

from ..tiny_tokenizers import END
from ..tool_models import SAID_AGAIN, tool_model
from .writing import TOOLS, WRITERS

BEFORE = {"hermes": "hé 😀\n", "qwen3_coder": "hé 😀\n\n", "mistral": "hé 😀", "llama3_json": "", "harmony": ""}
ANSWERS = {name: before + WRITERS[name]([("look", {"text": "a😀\n", "number": 2})]) for name, before in BEFORE.items()}


def answered(name: str, groups: list[int], stop: str | None) -> Delta:
    """The whole answer, whose tokens come in groups of these sizes, ids left out."""
    model = tool_model(SAID_AGAIN, name)
    assert model.tokenizer is not None
    request = ChatRequest(messages=[{}], tools=TOOLS, stop=stop)
    prompt = Prompt((5,))
    reading = tool_reading(model, request, TOOLS, prompt, lambda call_id, arguments: None)
    [choice] = make_choices(request, model, [prompt], "r", Turn(), max_tokens=None, logprobs=None, reading=reading)
    tokens = model.tokenizer.encode(ANSWERS[name], add_begin_token=False)
    deltas = []
    while not deltas or deltas[-1].finish_reason is None:
        size = groups.pop() if groups else len(tokens)
        group, tokens = tuple(tokens[:size]), tokens[size:]
        deltas.append(choice.feed(TokenEvent("r-0", group) if tokens else TokenEvent("r-0", group, "stop", END)))
    whole = joined(deltas)
    return replace(whole, tokens=(), calls=tuple(replace(call, id="") for call in whole.calls))


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(groups=st.lists(st.integers(0, 9), max_size=60), stop=st.sampled_from([None, "number", "look"]))
def test_groups_of_tokens(name: str, groups: list[int], stop: str | None) -> None:
    whole = answered(name, [], stop)
    assert answered(name, groups, stop) == whole
    assert [call.whole for call in whole.calls] == ([] if stop == "look" else [stop is None])
