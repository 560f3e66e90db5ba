"""What the entrypoint knows of the model it serves, taken from the plan once."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ...plans.reader import Plan
from ...plans.schema import Manifest
from ..chat_template import ChatTemplate
from ..tokenizer import Tokenizer
from .call_layout import CallLayout, call_layout
from .tool_calls import tool_call_tokens
from .tool_formats.names import AUTO
from .tool_formats.registry import tool_format
from .tool_formats.tool_format import ToolFormat


@dataclass(frozen=True)
class ServedModel:
    """`tokenizer` is None for plans without one (compiled from shapes): such a model takes and gives tokens only. `tool_format`
    is how it writes tool calls, None when that is not known."""

    name: str
    plan_id: str
    version: str
    vocabulary: int
    max_context: int
    end_tokens: tuple[int, ...]
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    tool_format: ToolFormat | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def tool_call_tokens(self) -> frozenset[int]:
        """Tokens by which its answers call tools."""
        return tool_call_tokens(self.tokenizer)

    @cached_property
    def mark_tokens(self) -> Mapping[int, str]:
        """Special tokens that are marks of its tool format, with what they spell."""
        if self.tool_format is None or self.tokenizer is None:
            return {}
        found = {self.tokenizer.token_id(mark): mark for mark in self.tool_format.marks}
        return {token: mark for token, mark in found.items() if token is not None and token in self.tokenizer.special_tokens}

    @cached_property
    def call_layout(self) -> CallLayout:
        if self.chat_template is None:
            return CallLayout()
        return call_layout(self.chat_template, self.tool_format.opens if self.tool_format else ())


def served_model(plan: Plan, tool_parser: str = AUTO) -> ServedModel:
    """`tool_parser` names a format of tool calls, or says how to choose one. Raises PlanError when the plan's tokenizer or chat
    template cannot be read."""
    manifest = plan.manifest
    template = _chat_template(plan, manifest)
    return ServedModel(
        name=manifest.model.name,
        plan_id=plan.plan_id,
        version=importlib.metadata.version("tokenspeed-compile"),
        vocabulary=manifest.model.vocabulary,
        max_context=manifest.model.max_context,
        end_tokens=manifest.model.end_tokens,
        tokenizer=_tokenizer(plan, manifest),
        chat_template=template,
        tool_format=None if template is None else tool_format(tool_parser, template.source),
    )


def _tokenizer(plan: Plan, manifest: Manifest) -> Tokenizer | None:
    if manifest.tokenizer is None:
        return None
    begin_token = manifest.model.begin_token if manifest.model.add_begin_token else None
    return Tokenizer(bytes(plan.entry(manifest.tokenizer.entry)), begin_token)


def _chat_template(plan: Plan, manifest: Manifest) -> ChatTemplate | None:
    if manifest.tokenizer is None or not manifest.tokenizer.chat_template_entry:
        return None
    source = bytes(plan.entry(manifest.tokenizer.chat_template_entry)).decode("utf-8", "replace")
    return ChatTemplate(source, manifest.tokenizer.special_tokens)
