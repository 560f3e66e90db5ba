"""Every test here runs inside an IR context."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.ir import module


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield
