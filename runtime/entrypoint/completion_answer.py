"""Response bodies of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol import TokenLogprob
from ..tokenizer import Tokenizer
from .answers import CommonAnswer, Json, finite
from .choice import Choice, Delta, ScoredToken
from .prompts import Prompt


class CompletionAnswer(CommonAnswer):
    """`text_completion`. With `echo` the prompt's text comes first."""

    def __init__(
        self,
        request_id: str,
        model_name: str,
        tokenizer: Tokenizer | None,
        prompts: Sequence[Prompt],
        *,
        token_ids: bool,
        service_tier: str | None = None,
        echo: bool,
    ) -> None:
        super().__init__(request_id, model_name, tokenizer, prompts, token_ids=token_ids, service_tier=service_tier)
        self._echo = echo

    def start(self, choice: Choice) -> Json | None:
        if not self._echo:
            return None
        text = self.prompts[choice.prompt].text
        return self.body("text_completion", [{"index": choice.index, "text": text, "logprobs": None, "finish_reason": None}])

    def chunk(self, choice: Choice, delta: Delta) -> Json | None:
        if not self.visible(delta):
            return None
        return self.body("text_completion", [self._choice(choice, delta, delta.text)])

    def whole(self, finished: Sequence[tuple[Choice, Delta]]) -> Json:
        choices = [
            self._choice(choice, delta, (self.prompts[choice.prompt].text if self._echo else "") + delta.text)
            for choice, delta in finished
        ]
        return self.body("text_completion", choices, usage=self.usage([choice for choice, _ in finished]))

    def usage_chunk(self, choices: Sequence[Choice]) -> Json:
        return self.body("text_completion", [], usage=self.usage(choices))

    def _choice(self, choice: Choice, delta: Delta, text: str) -> Json:
        logprobs = self._logprobs(choice, delta.scored)
        return {"index": choice.index, "text": text, "logprobs": logprobs} | self.ending(choice, delta)

    def _logprobs(self, choice: Choice, scored: Sequence[ScoredToken]) -> Json | None:
        if choice.submit.sampling.logprobs is None:
            return None
        before = len(self.prompts[choice.prompt].text) if self._echo else 0
        return {
            "tokens": [self.token_text(item.logprob.token) for item in scored],
            "token_logprobs": [finite(item.logprob.logprob) for item in scored],
            "top_logprobs": [self._top(item.logprob) for item in scored],
            "text_offset": [before + item.text_offset for item in scored],
        }

    def _top(self, item: TokenLogprob) -> dict[str, float]:
        return {self.token_text(token): finite(logprob) for token, logprob in item.top}
