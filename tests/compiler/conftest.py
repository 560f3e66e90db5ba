"""Traces are remembered for the session, and one thread does for arrays this small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ..tiny_models import remember_traces


@pytest.fixture(autouse=True, scope="package")
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)
