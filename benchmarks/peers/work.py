"""What a measurement asks of a model, and the least time a machine needs for it.

The roofline (Williams, Waterman and Patterson, 2009): decoding by what must be read, prompts by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense decoder: `matrix_parameters` are those of its layers' linear layers, without embedding and head."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    matrix_parameters: int
    head_parameters: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a configuration of the llama or qwen3 kind."""
        hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        layer = attention + 3 * hidden * config["intermediate_size"]
        layers = config["num_hidden_layers"]
        return cls(layers, heads, kv_heads, head_dim, layers * layer, hidden * config["vocab_size"])

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


@dataclass(frozen=True)
class Work:
    """`kind` decode: one step of `size` sequences at `context` tokens. `kind` prefill: one prompt of `size` tokens."""

    kind: str
    size: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size}"

    def least_bytes(self, shape: Shape, weight_bytes: int, kv_element_bytes: int) -> float:
        """Bytes that a decode step must read: all weights once, and each sequence's keys and values."""
        return weight_bytes + self.size * self.context * shape.kv_bytes_per_token(kv_element_bytes)

    def flops(self, shape: Shape) -> float:
        """Operations of a prompt: its linear layers, causal attention's two products, the head for one row."""
        pairs = self.size * (self.size + 1) / 2
        attention = 4 * pairs * shape.layers * shape.heads * shape.head_dim
        return 2.0 * self.size * shape.matrix_parameters + attention + 2.0 * shape.head_parameters
