"""All formats, and which one a model's answers are in."""

from __future__ import annotations

from .deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from .glm import GLM
from .harmony import HARMONY
from .hermes import HERMES
from .kimi import KIMI
from .llama import LLAMA
from .minimax import MINIMAX
from .mistral import MISTRAL
from .names import AUTO, NONE
from .qwen_coder import QWEN_CODER
from .seed import SEED
from .tool_format import ToolFormat

FORMATS = (HARMONY, KIMI, DEEPSEEK_V3, DEEPSEEK_V31, GLM, SEED, MINIMAX, QWEN_CODER, MISTRAL, HERMES, LLAMA)
"""In the order in which they are tried: several have marks in common, and the more particular one comes first."""


def tool_format(choice: str, template: str) -> ToolFormat | None:
    """The format named `choice`; for "auto" the one that the chat template's source shows, if any does; None for "none"."""
    if choice == NONE:
        return None
    if choice == AUTO:
        return next((found for found in FORMATS if found.recognises(template)), None)
    return next(found for found in FORMATS if found.name == choice)
