"""How a chat template lays out tool calls: found out by letting it render an answer that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..call_arguments import CallArguments
from ..chat_template import ChatTemplate, ChatTemplateError

_TEXT, _NAMES = "PROBE-TEXT", ("probe_one", "probe_two")


@dataclass(frozen=True)
class CallLayout:
    """`gap`: white space that the template puts between text and a call (None: no text is shown before calls, or something else
    is between), without which text that is given out comes back as the same tokens. `single`: it takes one call of an answer
    only. `null_content`: it shows calls of answers alone whose content is null."""

    gap: str | None = None
    single: bool = False
    null_content: bool = False


def call_layout(template: ChatTemplate, opens: Sequence[str] = ()) -> CallLayout:
    """`opens`: what calls of the model's format begin with."""
    with_text = _rendered(template, _TEXT, 1)
    null_content = not _shown(with_text) and not _shown(_rendered(template, "", 1)) and _shown(_rendered(template, None, 1))
    empty = None if null_content else ""
    one, two = _rendered(template, empty, 1), _rendered(template, empty, 2)
    single = _shown(one) and (two is None or two.count(_NAMES[1]) == (one or "").count(_NAMES[1]))
    return CallLayout(_gap(with_text or "", opens), single, null_content)


def _gap(rendered: str, opens: Sequence[str]) -> str | None:
    behind = rendered.partition(_TEXT)[2]
    found = [place for mark in opens if (place := behind.find(mark)) >= 0]
    gap = behind[: min(found)] if found else None
    return None if gap is None or gap.strip() else gap


def _shown(rendered: str | None) -> bool:
    """Whether the one call is there: both tools may be named beside it."""
    return rendered is not None and rendered.count(_NAMES[0]) > rendered.count(_NAMES[1])


def _rendered(template: ChatTemplate, content: str | None, calls: int) -> str | None:
    """A conversation that ends with so many calls; None when the template fails on it."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "."}]
    made_up = [_call(index, name) for index, name in enumerate(_NAMES[:calls])]
    messages.append({"role": "assistant", "content": content, "tool_calls": made_up})
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
