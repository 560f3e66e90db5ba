"""The example plugin, by its own test: in another process, found on its path as an installed distribution is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "third-party-target"


def install(folder: Path) -> None:
    """What pip would write beside the package: a distribution with the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with (info / "entry_points.txt").open("w") as file:
        for group, points in project["entry-points"].items():
            file.write(f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in points.items()))


def test_the_example_passes_its_own_test(tmp_path: Path) -> None:
    install(tmp_path)
    path = os.pathsep.join(filter(None, (str(tmp_path), str(EXAMPLE), os.environ.get("PYTHONPATH"))))
    settings = ("-p", "no:cacheprovider", "-p", "no:logging", "-c", os.devnull, "--rootdir", str(EXAMPLE))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *settings, "tests"],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout or "1 passed, 1 skipped" in done.stdout
