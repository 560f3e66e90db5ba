"""A decoder in plain torch for benchmarks: a loop over layers, static caches, steps captured as a graph; compiled if asked.

Llama's and Qwen3's shapes (grouped queries, gated MLP, RMS norms, norms of heads where the type has them), merged projections,
bfloat16, greedy tokens that stay on the device. Weights are made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Shape:
    """Sizes from a config.json."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    theta: float
    epsilon: float
    norms_of_heads: bool

    @classmethod
    def read(cls, path: str) -> Shape:
        """Raises ValueError for a type this loop does not know."""
        found: dict[str, Any] = json.loads(Path(path).read_text())
        if found["model_type"] not in SUPPORTED:
            raise ValueError(f"{found['model_type']} is none of {', '.join(SUPPORTED)}")
        heads = found["num_attention_heads"]
        return cls(
            hidden=found["hidden_size"],
            inner=found["intermediate_size"],
            layers=found["num_hidden_layers"],
            heads=heads,
            kv_heads=found.get("num_key_value_heads", heads),
            width=found.get("head_dim") or found["hidden_size"] // heads,
            vocabulary=found["vocab_size"],
            theta=found.get("rope_theta", 10000.0),
            epsilon=found.get("rms_norm_eps", 1e-6),
            norms_of_heads=found["model_type"] == "qwen3",
        )


class TorchLoop:
    """The model; `compiled` has torch.compile fuse what lies between products of a layer."""

    def __init__(self, shape: Shape, *, compiled: bool) -> None:
        self._shape = shape
        self._layers = [self._made_layer() for _ in range(shape.layers)]
        self._table, self._head = (self._made(shape.vocabulary, shape.hidden) for _ in range(2))
        self._last_norm = torch.ones(shape.hidden, dtype=torch.bfloat16, device="cuda")
        powers = torch.arange(0, shape.width, 2, device="cuda", dtype=torch.float32) / shape.width
        self._frequencies = shape.theta**-powers
        self._layer: Callable[..., Tensor] = self.layer
        if compiled:
            # layers are alike: one is compiled, for each shape
            self._layer = torch.compile(self.layer, fullgraph=True, dynamic=False)

    def forward(self, tokens: Tensor, position: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """tokens[B, T] from `position` on -> the next token of each sequence, [B]; caches [B, kv heads, room, width] are written.

        A single token sees all that its caches have room for; more see what is at or before them, of themselves.
        """
        places = position + torch.arange(tokens.shape[1], device=tokens.device)
        angles = places.float()[:, None] * self._frequencies
        turn = torch.cat((angles, angles), -1)
        tables = turn.cos().bfloat16(), turn.sin().bfloat16()
        x = self._table[tokens]
        for layer, key_cache, value_cache in zip(self._layers, keys, values, strict=True):
            x = self._layer(x, layer, key_cache, value_cache, places, *tables)
        return (self._norm(x[:, -1], self._last_norm) @ self._head.T).argmax(-1)

    def layer(
        self,
        x: Tensor,
        layer: dict[str, Tensor],
        key_cache: Tensor,
        value_cache: Tensor,
        places: Tensor,
        cosine: Tensor,
        sine: Tensor,
    ) -> Tensor:
        """One of them: x[B, T, hidden] -> the same."""
        shape = self._shape
        batch, count = x.shape[:2]
        kv = shape.kv_heads * shape.width
        normed = self._norm(x, layer["input_norm"])
        q, k, v = (normed @ layer["qkv"].T).split((shape.heads * shape.width, kv, kv), -1)
        q, k, v = (part.view(batch, count, -1, shape.width) for part in (q, k, v))
        if shape.norms_of_heads:
            q, k = self._norm(q, layer["q_norm"]), self._norm(k, layer["k_norm"])
        q, k, v = (part.transpose(1, 2) for part in (_turned(q, cosine, sine), _turned(k, cosine, sine), v))
        key_cache.index_copy_(2, places, k)
        value_cache.index_copy_(2, places, v)
        seen = (key_cache, value_cache) if count == 1 else (k, v)
        mixed = functional.scaled_dot_product_attention(q, *seen, is_causal=count > 1, enable_gqa=True)
        x = x + mixed.transpose(1, 2).reshape(batch, count, -1) @ layer["o"].T
        gate, up = (self._norm(x, layer["mlp_norm"]) @ layer["gate_up"].T).chunk(2, -1)
        return x + (functional.silu(gate) * up) @ layer["down"].T

    def captured(self, batch: int, context: int) -> Callable[[], Tensor]:
        """A decode step at `context` tokens as one graph; it gives the tokens."""
        token = torch.ones((batch, 1), dtype=torch.long, device="cuda")
        position = torch.full((1,), context - 1, device="cuda")
        keys, values = ([self._cache(batch, context) for _ in self._layers] for _ in range(2))

        def step() -> None:
            token.copy_(self.forward(token, position, keys, values)[:, None])

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def replay() -> Tensor:
            graph.replay()
            return token

        return replay

    def prompt(self, tokens: int) -> Callable[[], Tensor]:
        """A prompt of that many tokens; it gives the next token."""
        ids = torch.randint(0, self._shape.vocabulary, (1, tokens), device="cuda")
        start = torch.zeros(1, dtype=torch.long, device="cuda")
        keys, values = ([self._cache(1, tokens) for _ in self._layers] for _ in range(2))
        return lambda: self.forward(ids, start, keys, values)

    def _cache(self, batch: int, room: int) -> Tensor:
        return torch.randn((batch, self._shape.kv_heads, room, self._shape.width), dtype=torch.bfloat16, device="cuda")

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self._shape.epsilon)

    def _made_layer(self) -> dict[str, Tensor]:
        shape = self._shape
        ones = {"input_norm": shape.hidden, "mlp_norm": shape.hidden}
        if shape.norms_of_heads:
            ones |= {"q_norm": shape.width, "k_norm": shape.width}
        return {
            "qkv": self._made((shape.heads + 2 * shape.kv_heads) * shape.width, shape.hidden),
            "o": self._made(shape.hidden, shape.heads * shape.width),
            "gate_up": self._made(2 * shape.inner, shape.hidden),
            "down": self._made(shape.hidden, shape.inner),
            **{name: torch.ones(size, dtype=torch.bfloat16, device="cuda") for name, size in ones.items()},
        }

    def _made(self, rows: int, columns: int) -> Tensor:
        return torch.randn((rows, columns), dtype=torch.bfloat16, device="cuda") * columns**-0.5


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, halves of a head against each other; x[B, T, heads, width]."""
    first, second = x.chunk(2, -1)
    return x * cosine[:, None] + torch.cat((-second, first), -1) * sine[:, None]
