"""Request bodies. Fields that OpenAI clients send and this server need not honour are ignored, like unknown ones; fields
that would change the answer and are not supported are listed in `refusals` and refused."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...plans.sampling import BIAS_TOKENS, END_TOKENS, TOP_LOGPROBS
from ..protocol import TurnEnd

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
PositiveCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Choices = Annotated[int, Meta(ge=1, le=128)]
TopLogprobs = Annotated[int, Meta(ge=0, le=TOP_LOGPROBS)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
LONGEST_NAME = 1024
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Milliseconds = Annotated[float, Meta(gt=0, le=1e9)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What chat and plain completions share. None means the default, as JSON null does for OpenAI."""

    model: str | None = None
    max_tokens: PositiveCount | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=BIAS_TOKENS)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=END_TOKENS)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Name | None = None
    session_id: Name | None = None
    prompt_cache_key: Name | None = None
    user: Name | None = None
    service_tier: str | None = None
    deadline_ms: Milliseconds | None = None
    inter_token_ms: Milliseconds | None = None
    prompt_cache_retention: str | None = None
    cache_control: Any = None

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logits_processors: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    best_of: Any = None


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions. Messages go to the template as they are, so that it sees every field it knows."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None

    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None
    continue_final_message: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions. `prompt`: text, tokens, or a list of either."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    echo: bool | None = None
    logprobs: TopLogprobs | None = None

    suffix: Any = None
    prompt_embeds: Any = None


class EndTurnRequest(msgspec.Struct, kw_only=True):
    """POST /v1/sessions/ID/end_turn."""

    end: TurnEnd


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: `prompt`, or `messages` for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
