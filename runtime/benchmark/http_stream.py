"""A small HTTP/1.1 client on asyncio streams: one request a connection, answers read as they arrive.

The runtime has no HTTP client among its dependencies, and a load generator wants its own clock on every read. The server is
not trusted: head, chunks and lines are bounded; time is bounded by the caller (asyncio.timeout).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ...plans.errors import UsageError

MAX_LINE_BYTES, MAX_HEAD_LINES = 64 << 10, 100
MAX_CHUNK_BYTES, MAX_BODY_BYTES = 16 << 20, 16 << 20
MAX_EVENT_BYTES = 8 << 20  # the tokens of a long prompt, told again


class HttpFailed(Exception):
    """The server could not be reached, answered with an error, or not with HTTP; the message says which."""


@dataclass(frozen=True)
class Server:
    """Where to send requests. `headers` go with each of them."""

    host: str
    port: int
    tls: bool
    path: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Server:
        """http(s)://HOST[:PORT][/PATH]; a last path segment "v1" is left out. Raises UsageError."""
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError:
            parts, port, host = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
            raise UsageError("This is not the URL of a server.", where="--url", expected="http(s)://HOST[:PORT][/PATH]", got=url)
        tls = parts.scheme == "https"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("This is not an API key.", where="--api-key", expected="printable ASCII", got="other characters")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or (443 if tls else 80), tls, path, headers)


@dataclass(frozen=True)
class Answer:
    """`body` yields parts as they arrive and ends with the answer."""

    status: int
    body: AsyncGenerator[bytes, None]

    async def whole(self) -> bytes:
        """All of the body. Raises HttpFailed beyond MAX_BODY_BYTES."""
        data = bytearray()
        async with aclosing(self.body) as parts:
            async for part in parts:
                data += part
                if len(data) > MAX_BODY_BYTES:
                    raise HttpFailed("the answer is too long")
        return bytes(data)


@asynccontextmanager
async def request(server: Server, method: str, path: str, body: bytes = b"") -> AsyncIterator[Answer]:
    """Send one request and read its head. Raises HttpFailed for whatever goes wrong with connection or protocol."""
    writer: asyncio.StreamWriter | None = None
    try:
        context = ssl.create_default_context() if server.tls else None
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context, limit=MAX_LINE_BYTES)
        writer.write(_head(server, method, path, len(body)) + body)
        await writer.drain()
        status, headers = await _read_head(reader)
        yield Answer(status, _body(reader, headers))
    except (OSError, EOFError, ValueError) as error:  # ValueError: a line beyond the limit, or a number that is none
        raise HttpFailed(f"{type(error).__name__}: {error}") from None
    finally:
        if writer is not None:
            writer.close()


async def events(body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events (one `data:` line each, as all OpenAI-compatible servers send them)."""
    pending = bytearray()
    async with aclosing(body) as parts:
        async for part in parts:
            pending += part
            if b"\n" in part:
                *lines, rest = pending.split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield bytes(line[5:].strip())
                pending = bytearray(rest)
            if len(pending) > MAX_EVENT_BYTES:
                raise HttpFailed("an event is too long")


def _head(server: Server, method: str, path: str, length: int) -> bytes:
    host = f"[{server.host}]" if ":" in server.host else server.host
    headers = {
        "Host": f"{host}:{server.port}",
        "Accept": "text/event-stream, application/json",
        "Content-Type": "application/json",
        "Content-Length": str(length),
        "Connection": "close",
    }
    fields = [f"{name}: {value}" for name, value in (headers | server.headers).items()]
    return "\r\n".join([f"{method} {server.path}{path} HTTP/1.1", *fields, "", ""]).encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    status = rest.split(" ", 1)[0].strip()
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise HttpFailed("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for _ in range(MAX_HEAD_LINES):
        line = (await reader.readline()).decode("latin-1")
        if line in ("\r\n", "\n", ""):
            return int(status), headers
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    raise HttpFailed("the answer has too many header lines")


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := _chunk_size(await reader.readline()):
            yield (await reader.readexactly(size + 2))[:size]
        return
    left = int(headers["content-length"]) if "content-length" in headers else None
    while left is None or left > 0:
        part = await reader.read(MAX_LINE_BYTES if left is None else min(left, MAX_LINE_BYTES))
        if not part:
            if left is None:
                return
            raise EOFError("the connection ended before the answer did")
        yield part
        left = None if left is None else left - len(part)


def _chunk_size(line: bytes) -> int:
    size = int(line.split(b";", 1)[0].strip() or b"-1", 16)
    if not 0 <= size <= MAX_CHUNK_BYTES:
        raise HttpFailed("the answer has a chunk of impossible size")
    return size
