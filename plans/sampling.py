"""The sampling ABI: per-request slot buffers that the runtime fills and a plan's sample program reads.

A request holds one slot from its first step to its last. All tables have the slot as their first dimension.
"""

from __future__ import annotations

from .program import Buffer, DType

END_TOKENS = 16
BIAS_TOKENS = 300
TOP_LOGPROBS = 20

# What a slot asks for, as bits of `features`, so that a step that asks for nothing runs an argmax only.
RANDOM, FILTERS, PENALTIES, BIAS, MINIMUM_TOKENS, LOGPROBS = 1, 2, 4, 8, 16, 32
ADJUSTMENTS = PENALTIES | BIAS | MINIMUM_TOKENS

# What a sample program leaves for the runtime, one row for each logit row.
TOKENS, CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES = "tokens", "chosen_logprobs", "top_tokens", "top_logprobs"
RESULTS = (TOKENS, CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES)

_SCALARS: dict[str, DType] = {
    "last_tokens": "i32",
    "features": "i32",
    "temperature": "f32",
    "top_k": "i32",
    "top_p": "f32",
    "min_p": "f32",
    "repetition_penalty": "f32",
    "presence_penalty": "f32",
    "frequency_penalty": "f32",
    "seed": "i64",
    "output_position": "i32",
    "min_tokens": "i32",
    "logprobs_wanted": "i32",
}


def slot_buffers(vocabulary: int, slots: int) -> tuple[Buffer, ...]:
    """The slot buffers of `Manifest.slot_buffers`.

    - `last_tokens`: the token sampled last; `features`: the bits above; `output_position`: output tokens so far.
    - `end_tokens`[slots, 16], `bias_tokens`[slots, 300]: padded with -1. `bias_values` go with `bias_tokens`.
    - `prompt_seen`[slots, vocabulary] is 1 where the prompt holds the token; `output_counts` counts output tokens. Both are
      kept only for slots with `PENALTIES`.
    - `logprobs_wanted`: alternatives wanted, -1 for no log probabilities at all.
    """
    tables = (
        Buffer("end_tokens", "i32", (slots, END_TOKENS)),
        Buffer("prompt_seen", "u8", (slots, vocabulary)),
        Buffer("output_counts", "i32", (slots, vocabulary)),
        Buffer("bias_tokens", "i32", (slots, BIAS_TOKENS)),
        Buffer("bias_values", "f32", (slots, BIAS_TOKENS)),
    )
    return tuple(Buffer(name, dtype, (slots,)) for name, dtype in _SCALARS.items()) + tables
