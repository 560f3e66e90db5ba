"""Whether and how a chat's answers are read for tool calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .prompts import Prompt
from .request_types import ChatRequest
from .served_model import ServedModel
from .tool_formats.reader import AnswerReader
from .tool_formats.tool_format import ToolFormat
from .tool_formats.tool_schemas import ToolSchemas


@dataclass(frozen=True)
class ToolReading:
    """As `AnswerReader` has it; `shown` are the special tokens that its text must hold."""

    tool_format: ToolFormat
    tools: ToolSchemas
    gap: str | None
    hidden: frozenset[str]
    shown: frozenset[int]
    thinking: bool
    single: bool
    called: Callable[[str, str], object]

    def reader(self) -> AnswerReader:
        """For one answer."""
        return AnswerReader(
            self.tool_format,
            self.tools,
            gap=self.gap,
            hidden=self.hidden,
            thinking=self.thinking,
            single=self.single,
            called=self.called,
        )


def tool_reading(
    model: ServedModel,
    request: ChatRequest,
    tools: Sequence[Any] | None,
    prompt: Prompt,
    called: Callable[[str, str], object],
) -> ToolReading | None:
    """None where no tools are offered, or the model's format is not known. Answers that are messages are always read."""
    tool_format = model.tool_format
    offered = bool(tools) and request.tool_choice != "none"
    if tool_format is None or not (offered or tool_format.answer):
        return None
    return ToolReading(
        tool_format,
        ToolSchemas(tools or () if offered else ()),
        gap=model.call_layout.gap,
        hidden=frozenset(model.mark_tokens.values()) if request.skip_special_tokens is not False else frozenset(),
        shown=frozenset(model.mark_tokens),
        thinking=prompt.text.rstrip().endswith(tool_format.thinking[0]),
        single=request.parallel_tool_calls is False or model.call_layout.single,
        called=called,
    )
