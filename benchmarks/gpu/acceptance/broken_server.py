"""tokenspeed-run whose engine is broken_engine.py: the arguments are those of tokenspeed-run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tokenspeed.runtime.entrypoint import engine_session
from tokenspeed.runtime.run_cli import main

ENGINE = "tokenspeed.runtime.engine_process"


def start(command: list[str], **options: Any) -> Any:
    assert command[-3:-1] == ["-m", ENGINE]
    return subprocess.Popen([*command[:-3], str(Path(__file__).with_name("broken_engine.py")), command[-1]], **options)


class Started:
    """The module subprocess as the session sees it."""

    PIPE = subprocess.PIPE
    Popen = staticmethod(start)


if __name__ == "__main__":
    engine_session.subprocess = Started  # pyright: ignore[reportAttributeAccessIssue]
    main()
