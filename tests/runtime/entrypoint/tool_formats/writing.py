"""Answers as models of each format write them, and reading them in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from tokenspeed.runtime.entrypoint.tool_formats.answer_parts import AnswerPart
from tokenspeed.runtime.entrypoint.tool_formats.reader import AnswerReader
from tokenspeed.runtime.entrypoint.tool_formats.registry import FORMATS
from tokenspeed.runtime.entrypoint.tool_formats.tool_schemas import ToolSchemas

Call = tuple[str, dict[str, Any]]
PARAMETERS = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array"},
    "object": {"anyOf": [{"type": "object"}, {"type": "null"}]},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PARAMETERS}}}
    for name in ("look", "look_up.all-of:it")
]
BY_NAME = {found.name: found for found in FORMATS}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(call: Call, arguments: str = "arguments") -> str:
    return f'{{"name": {_json(call[0])}, "{arguments}": {_json(call[1])}}}'


def _untagged(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_object(call)}\n</tool_call>" for call in calls)


def _qwen_coder(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        inside = "".join(f"<parameter={key}>\n{_untagged(value)}\n</parameter>\n" for key, value in call[1].items())
        return f"<tool_call>\n<function={call[0]}>\n{inside}</function>\n</tool_call>"

    return "\n".join(map(one, calls))


def _glm(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        pairs = (f"<arg_key>{key}</arg_key>\n<arg_value>{_untagged(value)}</arg_value>\n" for key, value in call[1].items())
        return f"<tool_call>{call[0]}\n{''.join(pairs)}</tool_call>"

    return "\n".join(map(one, calls))


def _seed(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        inside = "".join(f"<parameter={key}>{_untagged(value)}</parameter>\n" for key, value in call[1].items())
        return f"<seed:tool_call>\n<function={call[0]}>\n{inside}</function>\n</seed:tool_call>"

    return "\n".join(map(one, calls))


def _minimax(calls: Sequence[Call]) -> str:
    def one(call: Call) -> str:
        inside = "".join(f'<parameter name="{key}">{_untagged(value)}</parameter>\n' for key, value in call[1].items())
        return f'<invoke name="{call[0]}">\n{inside}</invoke>\n'

    return f"<minimax:tool_call>\n{''.join(map(one, calls))}</minimax:tool_call>"


def _llama(calls: Sequence[Call]) -> str:
    return "; ".join(_object(call, "parameters") for call in calls)


def _mistral(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}" for name, arguments in calls)


def _deepseek_v3(calls: Sequence[Call]) -> str:
    inside = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Sequence[Call]) -> str:
    inside = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(arguments)}<｜tool▁call▁end｜>" for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"


def _kimi(calls: Sequence[Call]) -> str:
    inside = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{_json(arguments)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"


def _harmony(calls: Sequence[Call]) -> str:
    [(name, arguments)] = calls
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(arguments)}"


WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "harmony": _harmony,
    "kimi_k2": _kimi,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "glm45": _glm,
    "seed_oss": _seed,
    "minimax_m2": _minimax,
    "qwen3_coder": _qwen_coder,
    "mistral": _mistral,
    "hermes": _hermes,
    "llama3_json": _llama,
}


def read(name: str, pieces: Iterable[str], **options: Any) -> AnswerPart:
    """All parts of an answer that comes in pieces, joined; ids count up unless the model gives them."""
    numbers = iter(range(100))
    tool_format = replace(BY_NAME[name], new_id=lambda: f"id-{next(numbers)}")
    reader = AnswerReader(tool_format, ToolSchemas(TOOLS), **options)
    part = AnswerPart()
    for piece in pieces:
        part = part.joined(reader.push(piece))
    return part.joined(reader.finish())


def calls_of(part: AnswerPart) -> list[Call]:
    """Whole calls, as a client understands them."""
    return [(call.name, json.loads(call.arguments)) for call in part.calls if call.whole]
