"""One generated sequence as its client sees it: token events in, text out."""

from __future__ import annotations

from dataclasses import dataclass

from ..detokenizer import detokenizer
from ..protocol import FinishReason, Submit, TokenEvent, TokenLogprob
from ..tokenizer import Tokenizer
from .stop_strings import StopStrings
from .tool_calls import ToolCallWatch
from .tool_formats.answer_parts import AnswerPart, CallPart
from .tool_formats.reader import AnswerReader


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability; `text_offset` counts characters of the choice's text before it."""

    logprob: TokenLogprob
    text_offset: int


@dataclass(frozen=True)
class Delta:
    """What is new. `stop_reason` is the stop string or stop token that ended the choice. `reasoning` is apart from the text for
    models that write messages."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    tokens: tuple[int, ...] = ()
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Choice:
    """Choice `index` of a request; `prompt` is the index of its prompt. Stop strings count once `min_tokens` are out.

    With a `reader` its text is read for tool calls; then `shown` are special tokens that the reader is to see.
    """

    def __init__(
        self,
        index: int,
        submit: Submit,
        tokenizer: Tokenizer | None,
        *,
        stops: tuple[str, ...] = (),
        prompt: int = 0,
        skip_special_tokens: bool = True,
        tool_calls: ToolCallWatch | None = None,
        reader: AnswerReader | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self.index, self.prompt, self.submit = index, prompt, submit
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._detokenizer = detokenizer(tokenizer, submit.prompt, skip_special_tokens=skip_special_tokens, shown=shown)
        self._stops = StopStrings(stops)
        self._characters = 0  # decoded so far, held back or not
        self._shown = 0
        self._scored: list[ScoredToken] = []
        self._tool_calls = tool_calls or ToolCallWatch(frozenset(), tools=False)
        self._reader = reader

    @property
    def whole_calls(self) -> int:
        """Tool calls that were read from the answer so far."""
        return self._reader.calls if self._reader else 0

    @property
    def calls_tool(self) -> bool:
        """Whether the answer so far calls a tool: as it was read, or, unread, as it looks."""
        return self.whole_calls > 0 if self._reader else self._tool_calls.found

    def feed(self, event: TokenEvent) -> Delta:
        """The news of one engine event. A delta with `finish_reason` is the last, even if the engine has not stopped yet."""
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        text: list[str] = []
        for count, token in enumerate(event.tokens, start=1):
            self.completion_tokens += 1
            if event.logprobs:
                self._scored.append(ScoredToken(event.logprobs[count - 1], self._characters))
            piece, stop = self._push(self._detokenizer.push(token))
            text.append(piece)
            if stop is not None:
                return self._delta("".join(text), event.tokens[:count], "stop", stop)
        if event.finish_reason is None:
            return self._delta("".join(text), event.tokens)
        if event.stop_token is not None:
            self.completion_tokens += 1
        piece, stop = self._push(self._detokenizer.flush())
        text.append(piece)
        if stop is not None:
            return self._delta("".join(text), event.tokens, "stop", stop)
        text.append(self._stops.flush())
        return self._delta("".join(text), event.tokens, event.finish_reason, event.stop_token)

    def _push(self, text: str) -> tuple[str, str | None]:
        self._characters += len(text)
        if self.completion_tokens <= self.submit.sampling.min_tokens:
            return text, None
        return self._stops.push(text)

    def _delta(
        self, text: str, tokens: tuple[int, ...], finish: FinishReason | None = None, stop: str | int | None = None
    ) -> Delta:
        """Scores go out with the text of their tokens; those of tokens cut away by a stop string never do."""
        self._shown += len(text)
        part = AnswerPart(text)
        if self._reader is None:
            self._tool_calls.see(text, tokens, stop)
        else:
            part = self._reader.push(text)
            if self._reader.ended and finish is None:
                finish = "stop"
            elif finish is not None:
                part = part.joined(self._reader.finish())
        if finish is not None and not isinstance(stop, str):
            ready = len(self._scored)
        else:
            ready = sum(1 for scored in self._scored if scored.text_offset < self._shown)
        scored, self._scored = self._scored[:ready], self._scored[ready:]
        return Delta(part.text, part.reasoning, part.calls, tokens, tuple(scored), finish, stop)
