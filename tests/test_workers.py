"""How the suite's files are handed out."""

from __future__ import annotations

from pathlib import Path

from .workers import LONGEST, TOGETHER, unit_of

FOLDER = Path(__file__).parent


def test_files_that_are_named_are_there() -> None:
    assert [name for name in (*TOGETHER, *LONGEST) if not (FOLDER / name).is_file()] == []


def test_files_of_the_same_models_are_for_one_process() -> None:
    assert len({unit_of(f"tests/{name}::test_it[a::b]") for name in TOGETHER}) == 1
    assert unit_of("tests/ir/test_tables.py::test_it") == "tests/ir/test_tables.py"
