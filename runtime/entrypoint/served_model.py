"""What the entrypoint knows of the model it serves, taken from the plan once."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, field
from functools import cached_property

from ...plans.reader import Plan
from ...plans.schema import Manifest
from ..chat_template import ChatTemplate
from ..tokenizer import Tokenizer
from .tool_calls import tool_call_tokens


@dataclass(frozen=True)
class ServedModel:
    """`tokenizer` is None for plans without one (compiled from shapes): such a model takes and gives tokens only."""

    name: str
    plan_id: str
    version: str
    vocabulary: int
    max_context: int
    end_tokens: tuple[int, ...]
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def tool_call_tokens(self) -> frozenset[int]:
        """Tokens by which its answers call tools."""
        return tool_call_tokens(self.tokenizer)


def served_model(plan: Plan) -> ServedModel:
    """Raises PlanError when the plan's tokenizer or chat template cannot be read."""
    manifest = plan.manifest
    return ServedModel(
        name=manifest.model.name,
        plan_id=plan.plan_id,
        version=importlib.metadata.version("tokenspeed-compile"),
        vocabulary=manifest.model.vocabulary,
        max_context=manifest.model.max_context,
        end_tokens=manifest.model.end_tokens,
        tokenizer=_tokenizer(plan, manifest),
        chat_template=_chat_template(plan, manifest),
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
