"""Known request fields this server cannot honour. Ignoring them would give a wrong answer, so they are refused by name."""

from __future__ import annotations

from typing import Any

from .api_error import invalid
from .request_types import ChatRequest, CompletionRequest, GenerationRequest

_UNSUPPORTED = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "logits_processors",
    "allowed_token_ids", "bad_words", "prompt_logprobs", "truncate_prompt_tokens", "use_beam_search",
)  # fmt: skip
_UNSUPPORTED_CHAT = ("functions", "function_call", "audio", "web_search_options", "chat_template", "continue_final_message")
_UNSUPPORTED_COMPLETION = ("suffix", "prompt_embeds")


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raises ApiError (400) naming the first field that is asked for and not supported; neutral values pass."""
    fields = _UNSUPPORTED
    if isinstance(request, ChatRequest):
        fields += _UNSUPPORTED_CHAT
        _refuse_chat(request)
    if isinstance(request, CompletionRequest):
        fields += _UNSUPPORTED_COMPLETION
        if request.echo and request.logprobs is not None:
            raise invalid("logprobs", "`logprobs` together with `echo` is not supported: prompts are not scored")
    for name in fields:
        if getattr(request, name):
            raise _unsupported(name)
    if request.response_format is not None and not _is_text_format(request.response_format):
        raise _unsupported("response_format", 'only {"type": "text"}: output cannot be constrained yet')
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise _unsupported("best_of", "only the value of `n`")


def _refuse_chat(request: ChatRequest) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice", 'only "none" and "auto": a model cannot be made to call a tool yet')
    if request.modalities not in (None, ["text"]):
        raise _unsupported("modalities", 'only ["text"]')
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true")


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _unsupported(field: str, supported: str = "") -> Exception:
    detail = f" (supported: {supported})" if supported else ""
    return invalid(field, f"`{field}` is not supported by this server{detail}", code="unsupported_parameter")
