"""How a chat template lays out tool calls: found out by letting it render an answer that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..call_arguments import CallArguments
from ..chat_template import ChatTemplate, ChatTemplateError
from .tool_formats.tool_format import ToolFormat

_TEXT, _NAMES = "PROBE-TEXT", ("probe_one", "probe_two")


@dataclass(frozen=True)
class CallLayout:
    """`gap`: white space that the template puts between text and a call (None: no text is shown before calls, or something else
    is between), without which text that is given out comes back as the same tokens. `single`: it takes one call of an answer
    only."""

    gap: str | None = None
    single: bool = False


def call_layout(template: ChatTemplate, tool_format: ToolFormat) -> CallLayout:
    one, two = _rendered(template, _NAMES[:1]), _rendered(template, _NAMES)
    if one is None:
        return CallLayout()
    behind = one.partition(_TEXT)[2]
    found = [place for mark in tool_format.opens if (place := behind.find(mark)) >= 0]
    gap = behind[: min(found)] if found else None
    first_shown = one.count(_NAMES[0]) > one.count(_NAMES[1])
    single = two is None or (first_shown and two.count(_NAMES[1]) == one.count(_NAMES[1]))
    return CallLayout(None if gap is None or gap.strip() else gap, single)


def _rendered(template: ChatTemplate, names: Sequence[str]) -> str | None:
    """An answer with calls of these tools; both are offered, so that each is named once more."""
    calls = [_call(index, name) for index, name in enumerate(names)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "."}]
    messages.append({"role": "assistant", "content": _TEXT, "tool_calls": calls})
    try:
        return template.render(messages, tools=[_tool(name) for name in _NAMES], add_generation_prompt=False)
    except ChatTemplateError:
        return None


def _call(index: int, name: str) -> dict[str, Any]:
    arguments = CallArguments({"probe": "value"})
    return {"id": f"probe000{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}
