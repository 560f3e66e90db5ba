"""transformers on the device for benchmarks: a static cache, decode steps as a captured graph or launched one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class TransformersArm:
    """The model of a config.json with made-up weights; `compiled` has torch.compile make its forward."""

    def __init__(self, config: str, *, compiled: bool) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self._shape: Any = AutoConfig.from_pretrained(config)
        with torch.device("cuda"), torch.no_grad():
            model: Any = AutoModelForCausalLM.from_config(self._shape, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
            for parameter in model.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        self._model = model
        self._decode: Any = torch.compile(model, dynamic=False) if compiled else model

    def decode(self, batch: int, context: int, steps: int, *, captured: bool) -> Callable[[], Tensor]:
        """A decode step; the cache is taken to hold `context` - 1 tokens, whatever they are, and has room for `steps` more."""
        from transformers import StaticCache

        cache = StaticCache(config=self._shape, max_cache_len=context + steps)
        token = torch.ones((batch, 1), dtype=torch.long, device="cuda")
        position = torch.full((1,), context - 1, device="cuda")

        def step() -> Tensor:
            places = {"cache_position": position, "position_ids": position[None]}
            out = self._decode(token, past_key_values=cache, use_cache=True, **places)
            token.copy_(out.logits[:, -1:].argmax(-1))
            position.add_(1)
            return token

        if not captured:
            step()
            position.fill_(context - 1)
            return step
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        position.fill_(context - 1)

        def replay() -> Tensor:
            graph.replay()
            return token

        return replay

    def prompt(self, tokens: int) -> Callable[[], Tensor]:
        """A prompt of that many tokens."""
        ids = torch.randint(0, self._shape.vocab_size, (1, tokens), device="cuda")
        return lambda: self._model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
