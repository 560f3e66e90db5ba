"""Whether an answer calls a tool, as its tokens and its text show: models mark calls in ways of their own, and no parser is
needed to see that there is one."""

from __future__ import annotations

from collections.abc import Sequence

from ..tokenizer import Tokenizer

_MARKS = (
    "<tool_call>",  # Hermes, Qwen, GLM
    "<tool_calls>",
    "<function=",  # Llama 3.1, Qwen3 Coder
    "<function_calls>",
    "<|python_tag|>",  # Llama 3.1
    "<|tool_call|>",  # Granite, Phi 4
    "<|tool_call>",  # Gemma 4
    "<|tool_call_start|>",  # LFM2
    "<|tool_calls_section_begin|>",  # Kimi K2
    "<｜tool▁calls▁begin｜>",  # DeepSeek
    "<start_function_call>",  # FunctionGemma
    "<minimax:tool_call>",
    "[TOOL_CALLS]",  # Mistral
    "<|START_ACTION|>",  # Command
    "to=functions.",  # gpt-oss
)
_ENDS = ("<|call|>", "<|eom_id|>")
"""Tokens that end an answer because a tool is to run: gpt-oss, Llama 3.1."""

_LONGEST = max(len(mark) for mark in _MARKS)
_HEAD = 512


def tool_call_tokens(tokenizer: Tokenizer | None) -> frozenset[int]:
    """The tokens of a vocabulary that show a tool call, whether or not they are shown as text."""
    if tokenizer is None:
        return frozenset()
    found = (tokenizer.token_id(mark) for mark in _MARKS + _ENDS)
    return frozenset(token for token in found if token is not None)


class ToolCallWatch:
    """Reads an answer as it comes. `tokens` as `tool_call_tokens` gives them.

    With `tools` (the request offered some) an answer that is a JSON object with a name and arguments is a call as well.
    """

    def __init__(self, tokens: frozenset[int], *, tools: bool) -> None:
        self.found = False
        self._tokens, self._tools = tokens, tools
        self._tail = ""
        self._head = ""

    def see(self, text: str, tokens: Sequence[int], stop: str | int | None) -> None:
        if self.found:
            return
        tail = self._tail + text
        self.found = stop in self._tokens or not self._tokens.isdisjoint(tokens) or any(mark in tail for mark in _MARKS)
        self._tail = tail[-_LONGEST:]
        if self._tools and len(self._head) < _HEAD:
            self._head = (self._head + text).lstrip()[:_HEAD]
            self.found = self.found or _is_call(self._head)


def _is_call(head: str) -> bool:
    return head.startswith(("{", "[{")) and '"name"' in head and ('"arguments"' in head or '"parameters"' in head)
