"""What every command of this package does with an error: a clean message and an exit code, never a stack trace."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click
import msgspec

from .errors import TokenspeedError
from .units import printable

TRACEBACK_VARIABLE = "TOKENSPEED_TRACEBACK"
INTERNAL_ERROR, FILE_ERROR, INTERRUPTED, BROKEN_PIPE = 70, 74, 130, 141

P = ParamSpec("P")
R = TypeVar("R")


def run_command(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a click command's function (below the options). With a parameter `as_json` set, errors are JSON.

    Exit codes: the error's own for `TokenspeedError`; 74 for a file that cannot be read or written; 130 on Ctrl-C; 141 when the
    reader of a pipe went away; 70 for anything unexpected (TOKENSPEED_TRACEBACK=1 shows the trace).
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except TokenspeedError as error:
            _show_trace()
            _print_error(error, bool(kwargs.get("as_json")))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # Python flushes stdout once more at exit; give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except OSError as error:
            _show_trace()
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            sys.exit(FILE_ERROR)
        except Exception as error:  # the process boundary: nothing may reach the user as a trace
            _show_trace()
            text = printable(" ".join(str(error).split())[:300])
            how = f"set {TRACEBACK_VARIABLE}=1 to see where"
            print(f"internal error: {type(error).__name__}: {text} ({how})", file=sys.stderr)
            sys.exit(INTERNAL_ERROR)

    return wrapper


def _print_error(error: TokenspeedError, as_json: bool) -> None:
    text = msgspec.json.encode(error.to_dict()).decode() if as_json else str(error)
    print(printable(text), file=sys.stderr)


def _show_trace() -> None:
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exc()
