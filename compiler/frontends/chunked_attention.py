"""Attention within chunks (Llama 4): the same as attention to everything before, as long as the context is one chunk."""

from __future__ import annotations

from typing import Any

from ...plans.errors import ModelError


def require_one_chunk(config: Any, context: int) -> None:
    """Raises ModelError if a sequence of `context` tokens has more than one chunk: attention would see past its edge."""
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and context > chunk and "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError(
            f"layers of a {config.model_type} model attend within chunks, which is supported for one chunk only",
            where="--max-context",
            expected=f"at most {chunk} tokens (attention_chunk_size)",
            got=str(context),
            fix=f"compile with --max-context {chunk}",
        )
