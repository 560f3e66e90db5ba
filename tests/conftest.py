"""Fixtures that every room may use."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .workers import LongestFirst, longest_first

ROOT = Path(__file__).parent.parent

gc.disable()  # until all is imported and collected: what is there by then stays


def pytest_collection_finish() -> None:
    """Libraries and tests are as many objects as all that the tests make: looking through them again and again takes a tenth of
    the time."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongestFirst:
    return LongestFirst(config, log)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct GGUF file, fetched once into .cache/.

    Where it cannot be, its tests fail: a skip would hide them.
    """
    command = [sys.executable, str(ROOT / "examples" / "fetch_smollm2.py"), str(ROOT / ".cache" / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"SmolLM2 could not be fetched: {done.stderr.strip()[:300]}")
    return Path(done.stdout.strip())
