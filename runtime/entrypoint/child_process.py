"""How a child ends. One that is stopped (SIGSTOP, a debugger) and stays so is ended: it would hold up everyone silently."""

from __future__ import annotations

import os
import subprocess
import time

_LOOK_SECONDS = 0.25


def exit_code_of(process: subprocess.Popen[bytes], patience: float) -> tuple[int, bool]:
    """The exit code, once it has exited, and whether it was killed because it had been stopped for `patience` seconds."""
    try:
        while _waited(process, os.WEXITED | os.WSTOPPED | os.WNOWAIT) == os.CLD_STOPPED:
            _waited(process, os.WSTOPPED)  # so that it is not told again
            if not _goes_on(process, patience):
                process.kill()
                return process.wait(), True
    except ChildProcessError:  # another thread has waited for it
        pass
    return process.wait(), False


def _goes_on(process: subprocess.Popen[bytes], patience: float) -> bool:
    """Whether a stopped process is continued, or ends, in time."""
    deadline = time.monotonic() + patience
    while _waited(process, os.WEXITED | os.WCONTINUED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    _waited(process, os.WCONTINUED | os.WNOHANG)
    return True


def _waited(process: subprocess.Popen[bytes], options: int) -> int | None:
    found = os.waitid(os.P_PID, process.pid, options)
    return None if found is None else found.si_code
