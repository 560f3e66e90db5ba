"""Rows to the ranks of their experts and back, between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RANKS = 3


def test_rows_travel_to_their_experts_and_back(tmp_path: Path) -> None:
    script = Path(__file__).with_name("rows_to_experts.py")
    running = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(RANKS), str(tmp_path / "store")], stdin=subprocess.DEVNULL)
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * RANKS
