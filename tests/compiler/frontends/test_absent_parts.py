"""Parts whose libraries are missing."""

from __future__ import annotations

from unittest import mock

import pytest
from tokenspeed.compiler.frontends.absent_parts import absent_parts_are_empty
from torch import nn
from transformers import AutoModel


def test_a_part_without_its_library_is_empty_within_and_an_error_outside() -> None:
    with mock.patch.object(AutoModel, "from_config", side_effect=ImportError("no such library")):
        with absent_parts_are_empty():
            part = AutoModel.from_config(None)
        assert isinstance(part, nn.Module) and not list(part.parameters())
        with pytest.raises(ImportError):
            AutoModel.from_config(None)
