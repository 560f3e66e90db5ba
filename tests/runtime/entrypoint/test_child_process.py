"""A child that is stopped is given some time, then ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from tokenspeed.runtime.entrypoint.child_process import exit_code_of

SLEEP = "import time; time.sleep(600)"


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.DEVNULL)


def test_one_that_ends_by_itself() -> None:
    assert exit_code_of(started("raise SystemExit(3)"), 60) == (3, False)


def test_one_that_stays_stopped_is_killed() -> None:
    child = started(SLEEP)
    os.kill(child.pid, signal.SIGSTOP)
    assert exit_code_of(child, 0.1) == (-signal.SIGKILL, True)


@pytest.mark.parametrize("last", [signal.SIGCONT, signal.SIGKILL])
def test_one_that_is_continued_or_ended_meanwhile(last: signal.Signals) -> None:
    child, found = started(SLEEP), list[tuple[int, bool]]()
    os.kill(child.pid, signal.SIGSTOP)
    waiting = threading.Thread(target=lambda: found.append(exit_code_of(child, 300)))
    waiting.start()
    os.kill(child.pid, last)
    if last == signal.SIGCONT:
        child.terminate()
    waiting.join(60)
    assert found == [(-signal.SIGTERM if last == signal.SIGCONT else -signal.SIGKILL, False)]
