"""transformers, eager mode with torch's scaled dot product attention, its own cache, greedy; bfloat16."""

from __future__ import annotations

import time
from typing import Any

import torch
from line_server import WARM_UP_STEPS, serve, timed, versions
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache


class Transformers:
    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self._vocabulary = self._model.config.vocab_size
        return {
            "weight_bytes": sum(parameter.nbytes for parameter in self._model.parameters()),
            "kv_element_bytes": 2,
            "versions": versions("transformers", "torch"),
            "note": "bfloat16, sdpa",
        }

    @torch.inference_mode()
    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        cache = DynamicCache(config=self._model.config)
        tokens = self._next(self._text(batch, context - 1), cache)

        def step() -> None:
            nonlocal tokens
            tokens = self._next(tokens, cache)

        assert cache.get_seq_length() + WARM_UP_STEPS + steps <= self._model.config.max_position_embeddings
        return timed(step, steps)

    @torch.inference_mode()
    def prefill(self, tokens: int) -> float:
        text, cache = self._text(1, tokens), DynamicCache(config=self._model.config)
        start = time.perf_counter()
        self._next(text, cache)
        return time.perf_counter() - start

    def _text(self, batch: int, tokens: int) -> torch.Tensor:
        return torch.randint(0, self._vocabulary, (batch, tokens))

    def _next(self, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The next token of each row, [batch, 1]."""
        out = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(Transformers())
