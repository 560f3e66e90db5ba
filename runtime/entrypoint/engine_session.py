"""One engine process and everything around it: sockets, the task that listens, the one that notices its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from ...plans.errors import TokenspeedError
from ..protocol import EngineFailed
from .child_process import exit_code_of
from .engine_client import EngineClient, Sockets

_LAST_NEWS_SECONDS = 0.5
_EXIT_SECONDS = 5.0
_STOPPED_SECONDS = 60.0
ENGINE_MODULE = "tokenspeed.runtime.engine_process"


class EngineError(TokenspeedError):
    """The engine's own error, as it told it; printed as the engine would have."""

    def __init__(self, failure: EngineFailed) -> None:
        details = {name: text for name, text in failure.details.items() if name != "error"}
        what = details.pop("what", failure.message)
        super().__init__(what, **details)
        self.exit_code = failure.exit_code


class EngineProcess:
    """A started engine. `options` are `EngineOptions` but for the two socket addresses. Needs no event loop to start,
    so that it loads while the entrypoint still imports. `module` is what runs, with the options as its one argument."""

    def __init__(self, sockets: Sockets, options: dict[str, object], module: str = ENGINE_MODULE) -> None:
        arguments = msgspec.json.encode(options | {"commands": sockets.commands, "news": sockets.news}).decode()
        # -P: the current directory must not decide which `tokenspeed` runs. Its own session: Ctrl-C is for the entrypoint.
        command = [sys.executable, "-P", "-m", module, arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
        self._patience = float(str(options.get("step_timeout", _STOPPED_SECONDS)))
        self.was_stopped = False
        """Whether it was ended because it had been stopped for too long."""

    async def wait(self) -> int:
        """The exit code, once it has exited."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def finish(code: int) -> None:
            if not ended.done():
                ended.set_result(code)

        def watch() -> None:
            code, self.was_stopped = exit_code_of(self._process, self._patience)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, code)

        threading.Thread(target=watch, name="engine watch", daemon=True).start()
        return await ended

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs."""
        self.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()


@asynccontextmanager
async def engine_session(client: EngineClient, process: EngineProcess) -> AsyncIterator[None]:
    """Listens to the engine inside; on leaving, the process is stopped and killed if it does not stop."""
    listening = asyncio.create_task(client.listen())
    listening.add_done_callback(lambda task: _listening_ended(client, task))
    watching = asyncio.create_task(_watch(client, process, listening))
    try:
        yield
    finally:
        try:
            client.shut_down(drain=False)
            await asyncio.wait({watching}, timeout=_EXIT_SECONDS if client.ready else 0)
        finally:
            process.kill()
            for task in (listening, watching):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def _listening_ended(client: EngineClient, task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        client.fail(EngineFailed(f"the engine's news cannot be read: {error}", 1))


async def _watch(client: EngineClient, process: EngineProcess, listening: asyncio.Task[None]) -> None:
    """When the process ends, whatever it said last is heard first; then every open request is told."""
    code = await process.wait()
    await asyncio.wait({listening}, timeout=_LAST_NEWS_SECONDS)
    if not client.drained.is_set():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if process.was_stopped:
            how = "it had been stopped, and was not continued"
        client.fail(EngineFailed(f"the engine process ended unexpectedly ({how})", 1))
