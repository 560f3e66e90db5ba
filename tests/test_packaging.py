"""What is shipped: every subpackage listed, every room introduced, commands that start."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = {"tests", "benchmarks", "docs", "examples", "build"}
COMMANDS = ("tokenspeed-compile", "tokenspeed-run", "tokenspeed-plan", "tokenspeed-bench")


def _packages() -> dict[str, Path]:
    """Dotted names of all folders with an __init__.py, by the file."""
    found = {}
    for path in ROOT.rglob("__init__.py"):
        parts = path.relative_to(ROOT).parent.parts
        if not parts or not (parts[0] in NOT_SHIPPED or parts[0].startswith(".")):
            found[".".join(("tokenspeed", *parts))] = path
    return found


def test_every_subpackage_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(_packages())


@pytest.mark.parametrize("name", sorted(_packages()))
def test_every_folder_says_what_lives_there(name: str) -> None:
    assert ast.get_docstring(ast.parse(_packages()[name].read_text()))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_resolve(name: str) -> None:
    (command,) = entry_points(group="console_scripts", name=name)
    assert callable(command.load())


def test_lock_file_pins_every_direct_dependency() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*settings["dependencies"], *(item for group in settings["optional-dependencies"].values() for item in group)]
    locked = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in locked if "==" in line}
    names = {item.split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip().lower() for item in wanted}
    assert names <= pinned
