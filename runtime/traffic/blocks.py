"""Prompts that a trace gives as hash ids of blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contents import named
from .session import Prompt


def block_prompt(contents: NDArray[np.uint64], block_tokens: int, tokens: int, owner: object) -> Prompt:
    """A prompt of `tokens` tokens whose first blocks are `contents`; what is behind them is the `owner`'s own."""
    count = min(len(contents), -(-tokens // block_tokens))
    ends = np.minimum(np.arange(1, count + 1, dtype=np.int64) * block_tokens, tokens)
    if not count or ends[-1] < tokens:
        ends = np.append(ends, np.int64(tokens))
        contents = np.append(contents[:count], np.uint64(named("tail", owner)))
    return Prompt(contents[: len(ends)], ends)


def tail_of_next(prompt: Prompt, following: Prompt, blocks: int) -> Prompt:
    """A prompt whose tail behind its `blocks` full blocks begins the block that the following prompt has there, if that one has
    all the blocks before it: the conversation goes on within the block."""
    tails = len(prompt.ends) > blocks
    if not tails or len(following.ends) <= blocks or prompt.common(following) < blocks or len(following) < len(prompt):
        return prompt
    contents = prompt.contents.copy()
    contents[blocks] = following.contents[blocks]
    return Prompt(contents, prompt.ends)
