"""Processes that find no compiler: an empty PATH, and modules that cannot be imported, there or in processes they start."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

BLOCKED = ("triton", "torch_mlir", "transformers", "jax", "onnx", "networkx")
BLOCKED += ("tokenspeed.compiler", "tokenspeed.passes", "tokenspeed.targets", "tokenspeed.ir")

_SITE = """
import sys

BLOCKED = {blocked!r}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.startswith(tuple(each + "." for each in BLOCKED)):
            raise ImportError(name + " is out of reach")


sys.meta_path.insert(0, Blocker())
"""


def bare_environment(folder: Path, also: Sequence[str] = ()) -> dict[str, str]:
    """The environment of such processes; `folder` holds what blocks `BLOCKED` and `also`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE.format(blocked=(*BLOCKED, *also)))
    paths = [str(folder), *(path for path in sys.path if path)]
    return {**os.environ, "PATH": "", "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
