"""Parts of a model that need libraries which are not installed, left empty where only the text part's names are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import nn
from transformers import AutoModel


@contextlib.contextmanager
def absent_parts_are_empty() -> Iterator[None]:
    """Within, a part (an image encoder, say) whose library is missing is a module of nothing instead of an ImportError."""
    made = AutoModel.from_config

    def from_config(*given: Any, **named: Any) -> nn.Module:
        try:
            return made(*given, **named)
        except ImportError:
            return nn.Module()

    with mock.patch.object(AutoModel, "from_config", from_config):
        yield
