"""Request to prompt tokens: chat templates and tokenization, long texts in a thread so that others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from ..call_arguments import CallArguments
from ..chat_template import ChatTemplate, ChatTemplateError
from ..tokenizer import Tokenizer
from .api_error import ApiError, invalid
from .given_calls import GivenCalls
from .served_model import ServedModel

Value = TypeVar("Value")
Spelling = Callable[[str, Mapping[str, Any]], CallArguments]
"""Arguments of a call, by its id, for a template."""

_LONG_TEXT = 2000  # characters tokenized in well under a millisecond


@dataclass(frozen=True)
class Prompt:
    tokens: tuple[int, ...]
    text: str = ""


async def completion_prompts(
    model: ServedModel,
    prompt: str | Sequence[str | int | list[int]],
    *,
    with_text: bool = False,
    scope: str | None = None,
) -> list[Prompt]:
    """The prompts of a completion request: one text, one token list, or several of either. `with_text`: of tokens too, which
    takes long for many of them. `scope` as for `chat_prompt`. Raises ApiError (400)."""
    if isinstance(prompt, str):
        return [await _text_prompt(model, prompt, scope)]
    kinds = set(map(type, prompt))  # of a long list of tokens in a millisecond
    if kinds <= {int}:
        return [_token_prompt(model, cast(Sequence[int], prompt), with_text)]
    if int in kinds:
        raise invalid("prompt", "`prompt` mixes tokens with texts or token lists")
    return [
        await _text_prompt(model, item, scope) if isinstance(item, str) else _token_prompt(model, item, with_text)
        for item in prompt
        if not isinstance(item, int)
    ]


async def chat_prompt(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    arguments: Mapping[str, Any] | None = None,
    scope: str | None = None,
    given: GivenCalls | None = None,
) -> Prompt:
    """The prompt the model's chat template makes of the messages; what is sent again in the same `scope` is tokenized once, and
    calls that were `given` out in it are spelled as they were. Raises ApiError (400)."""
    template = model.chat_template
    tokenizer = _tokenizer(model, "messages")
    if template is None:
        raise invalid("messages", f"the model {model.name!r} has no chat template; use /v1/completions", code="no_chat_template")
    if tools and not template.takes_tools:
        raise invalid("tools", "`tools`: the chat template of this model does not take tools", code="unsupported_parameter")
    arguments = _template_arguments(arguments)
    spell = partial((given or GivenCalls(0)).arguments, scope or "")
    prepared = [_prepare_message(message, index, template, spell) for index, message in enumerate(messages)]
    if any("tool_calls" in message for message in prepared) and model.call_layout.null_content:
        prepared = [message | {"content": None} if "tool_calls" in message else message for message in prepared]

    def render_and_encode() -> Prompt:
        try:
            text = template.render(
                prepared, tools=tools or None, add_generation_prompt=add_generation_prompt, arguments=arguments
            )
        except ChatTemplateError as error:
            raise invalid("messages", str(error), code="chat_template_error") from None
        try:
            return Prompt(tuple(tokenizer.encode(text, add_begin_token=False, scope=scope)), text)
        except TypeError:  # half of a character, from an escape in a call's arguments
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return Prompt(tuple(tokenizer.encode(text, add_begin_token=False, scope=scope)), text)

    length = sum(len(str(message.get("content") or "")) for message in prepared) + sum(len(str(tool)) for tool in tools or ())
    return _checked(await _in_thread_if(length > _LONG_TEXT, render_and_encode), model, "messages")


async def _text_prompt(model: ServedModel, text: str, scope: str | None) -> Prompt:
    tokenizer = _tokenizer(model, "prompt")

    def encode() -> Prompt:
        return Prompt(tuple(tokenizer.encode(text, add_begin_token=True, scope=scope)), text)

    return _checked(await _in_thread_if(len(text) > _LONG_TEXT, encode), model, "prompt")


def _token_prompt(model: ServedModel, tokens: Sequence[int], with_text: bool) -> Prompt:
    if max(tokens, default=0) >= model.vocabulary:
        raise invalid("prompt", f"`prompt` holds tokens outside the vocabulary of {model.vocabulary}")
    text = model.tokenizer.decode(tokens) if with_text and model.tokenizer else ""
    return _checked(Prompt(tuple(tokens), text), model, "prompt")


def _checked(prompt: Prompt, model: ServedModel, param: str) -> Prompt:
    if not prompt.tokens:
        raise invalid(param, f"`{param}` is empty: there is no token to start from")
    if len(prompt.tokens) >= model.max_context:
        raise context_length_exceeded(len(prompt.tokens), model.max_context, param)
    return prompt


def context_length_exceeded(tokens: int, max_context: int, param: str) -> ApiError:
    message = f"the prompt has {tokens} tokens; with at least one generated token the context of {max_context} is exceeded"
    return invalid(param, message, code="context_length_exceeded")


def _tokenizer(model: ServedModel, param: str) -> Tokenizer:
    if model.tokenizer is None:
        raise invalid(param, "this plan has no tokenizer: send `prompt` as a list of tokens to /v1/completions")
    return model.tokenizer


async def _in_thread_if(long: bool, work: Callable[[], Value]) -> Value:
    return await asyncio.to_thread(work) if long else work()


def _template_arguments(arguments: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"):
        if name in (arguments or {}):
            raise invalid("chat_template_kwargs", f"`chat_template_kwargs` may not set {name!r}")
    return arguments or {}


def _prepare_message(message: Mapping[str, Any], index: int, template: ChatTemplate, spell: Spelling) -> dict[str, Any]:
    where = f"messages[{index}]"
    prepared = dict(message)
    if not isinstance(prepared.get("role"), str):
        raise invalid(f"{where}.role", f"`{where}.role` must be a string")
    content = prepared.get("content")
    if isinstance(content, list):
        texts = _texts(content, where)
        prepared["content"] = content if template.takes_parts else "\n".join(texts)
    elif content is not None and not isinstance(content, str):
        raise invalid(f"{where}.content", f"`{where}.content` must be a string or a list of text parts")
    else:
        prepared["content"] = content or ""
    if not prepared.get("tool_calls"):
        prepared.pop("tool_calls", None)  # templates ask whether the field is there; clients send null
    elif isinstance(prepared["tool_calls"], list):
        prepared["tool_calls"] = [_prepare_tool_call(call, where, spell) for call in prepared["tool_calls"]]
    if prepared.get("reasoning_content") and template.reasoning_name and template.reasoning_name not in prepared:
        prepared[template.reasoning_name] = prepared["reasoning_content"]
        if prepared.get("tool_calls"):
            prepared["content"] = ""  # these templates take one of the two before a call
    return prepared


def _texts(parts: list[Any], where: str) -> list[str]:
    texts = []
    for index, part in enumerate(parts):
        param = f"{where}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise invalid(f"{param}.type", f'`{param}`: only parts of type "text" are supported')
        if not isinstance(part.get("text"), str):
            raise invalid(f"{param}.text", f"`{param}.text` must be a string")
        texts.append(part["text"])
    return texts


def _prepare_tool_call(call: Any, where: str, spell: Spelling) -> dict[str, Any]:
    """Templates walk over a call's arguments as an object, or take them as JSON text; clients send text."""
    if not isinstance(call, dict):
        raise invalid(f"{where}.tool_calls", f"`{where}.tool_calls` must be a list of objects")
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        if isinstance(arguments, dict):
            arguments = spell(str(call.get("id") or ""), arguments)
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}}
