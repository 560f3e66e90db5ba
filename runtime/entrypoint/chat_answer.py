"""Response bodies of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol import TokenLogprob
from .answers import CommonAnswer, Json, finite
from .choice import Choice, Delta, ScoredToken
from .tool_formats.answer_parts import CallPart


class ChatAnswer(CommonAnswer):
    """`chat.completion` and `chat.completion.chunk`."""

    def start(self, choice: Choice) -> Json | None:
        return self._chunk_body({"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def chunk(self, choice: Choice, delta: Delta) -> Json | None:
        if not self.visible(delta):
            return None
        content: Json = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            content["reasoning_content"] = delta.reasoning
        if delta.calls:
            content["tool_calls"] = [_call_chunk(call) for call in delta.calls]
        logprobs = self._logprobs(choice, delta.scored)
        return self._chunk_body({"index": choice.index, "delta": content, "logprobs": logprobs} | self.ending(choice, delta))

    def whole(self, finished: Sequence[tuple[Choice, Delta]]) -> Json:
        choices = [
            {
                "index": choice.index,
                "message": _message(delta),
                "logprobs": self._logprobs(choice, delta.scored),
            }
            | self.ending(choice, delta)
            for choice, delta in finished
        ]
        return self.body("chat.completion", choices, usage=self.usage([choice for choice, _ in finished]))

    def usage_chunk(self, choices: Sequence[Choice]) -> Json:
        return self.body("chat.completion.chunk", [], usage=self.usage(choices))

    def _chunk_body(self, choice: Json) -> Json:
        return self.body("chat.completion.chunk", [choice])

    def _logprobs(self, choice: Choice, scored: Sequence[ScoredToken]) -> Json | None:
        if choice.submit.sampling.logprobs is None:
            return None
        return {"content": [self._scored(item.logprob) for item in scored]}

    def _scored(self, item: TokenLogprob) -> Json:
        top = [self._alternative(token, logprob) for token, logprob in item.top]
        return self._alternative(item.token, item.logprob) | {"top_logprobs": top}

    def _alternative(self, token: int, logprob: float) -> Json:
        spelled = self.token_bytes(token)
        return {"token": spelled.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(spelled)}


def _message(delta: Delta) -> Json:
    """Calls that were begun and are none are content already."""
    calls = [call for call in delta.calls if call.whole]
    message: Json = {"role": "assistant", "content": delta.text or None if calls else delta.text, "refusal": None}
    if delta.reasoning:
        message["reasoning_content"] = delta.reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
        ]
    return message


def _call_chunk(call: CallPart) -> Json:
    """Id and name come once, with the call's first part."""
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
