"""What the response bodies of chat and plain completions share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from ..tokenizer import Tokenizer
from .choice import Choice, Delta
from .prompts import Prompt

Json = dict[str, Any]
_LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity


class AnswerFormat(Protocol):
    def start(self, choice: Choice) -> Json | None:
        """The chunk a stream opens with."""
        ...

    def chunk(self, choice: Choice, delta: Delta) -> Json | None:
        """None when there is nothing a client would see."""
        ...

    def whole(self, finished: Sequence[tuple[Choice, Delta]]) -> Json: ...

    def usage_chunk(self, choices: Sequence[Choice]) -> Json: ...


class CommonAnswer:
    """Identity, usage and the fields all choices have."""

    def __init__(
        self,
        request_id: str,
        model_name: str,
        tokenizer: Tokenizer | None,
        prompts: Sequence[Prompt],
        *,
        token_ids: bool,
        service_tier: str | None = None,
    ) -> None:
        self._id, self._model_name, self._tokenizer = request_id, model_name, tokenizer
        self.prompts = prompts
        self._token_ids = token_ids
        self._with_prompt: set[int] = set()
        self._common: Json = {} if service_tier is None else {"service_tier": service_tier}
        self._created = int(time.time())

    def body(self, kind: str, choices: list[Json], **more: Any) -> Json:
        return (
            {"id": self._id, "object": kind, "created": self._created, "model": self._model_name, "choices": choices}
            | self._common
            | more
        )

    def visible(self, delta: Delta) -> bool:
        shown = delta.text or delta.reasoning or delta.calls
        return bool(shown or delta.scored or delta.finish_reason or (self._token_ids and delta.tokens))

    def ending(self, choice: Choice, delta: Delta) -> Json:
        reason = "tool_calls" if delta.finish_reason == "stop" and choice.whole_calls else delta.finish_reason
        fields: Json = {"finish_reason": reason, "stop_reason": delta.stop_reason}
        if self._token_ids:
            fields["token_ids"] = delta.tokens
            if choice.index not in self._with_prompt:  # once, however many parts a stream has: it may be long
                self._with_prompt.add(choice.index)
                fields["prompt_token_ids"] = self.prompts[choice.prompt].tokens
        return fields

    def usage(self, choices: Sequence[Choice]) -> Json:
        """Prompts count once each, however many choices were made of them."""
        prompt_tokens = sum(len(prompt.tokens) for prompt in self.prompts)
        cached = {choice.prompt: choice.cached_tokens for choice in reversed(choices)}
        completion_tokens = sum(choice.completion_tokens for choice in choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }

    def token_text(self, token: int) -> str:
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token) if self._tokenizer else b""


def finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
