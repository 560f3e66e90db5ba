"""Which process of pytest-xdist runs what: a file is for one of them, and the longest come first, so that all end together.

Files that trace the same models are for one process, which remembers the traces (tests/tiny_models.py): most time is theirs.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = (
    "test_families.py",
    "test_ranks.py",
    "test_groups.py",
    "test_float8.py",
    "compiler/test_proof.py",
    "compiler/frontends/test_import.py",
    "compiler/frontends/test_trace.py",
    "compiler/test_stages.py",
    "test_served_ranks.py",
)
LONGEST = (
    "test_fallback_families.py",
    "test_recurrent_families.py",
    "test_greedy_smollm2.py",
    "runtime/scheduling/test_exhaustive.py",
    "targets/triton/test_instructions.py",
    "test_window_pools.py",
    "compiler/test_reproducible.py",
    "targets/triton/test_block_instructions.py",
    "targets/triton/test_build.py",
    "targets/test_third_party_example.py",
    "test_spine.py",
    "runtime/native/test_attention.py",
    "compiler/frontends/test_eager_attention.py",
    "compiler/test_cli.py",
    "runtime/scheduling/test_state_machine.py",
    "compiler/test_float8_plan.py",
)
"""By seconds of processor time, ten and more; about is good enough."""

_ORDER = {f"tests/{name}": place for place, name in enumerate((*TOGETHER, *LONGEST))}


class LongestFirst(LoadScopeScheduling):
    """Hands out files, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """What a test is handed out with."""
    file = file_of(nodeid)
    return TOGETHER[0] if file.removeprefix("tests/") in TOGETHER else file


def longest_first(items: list[pytest.Item]) -> None:
    """Sort collected tests, files as they are."""
    items.sort(key=lambda item: _ORDER.get(file_of(item.nodeid), len(_ORDER)))


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
