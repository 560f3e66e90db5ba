"""The listening socket, taken before anything is loaded."""

from __future__ import annotations

import errno
import socket

from ...plans.errors import UsageError


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket; port 0 takes a free one. Raises UsageError when the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"port {port} is taken by another program" if taken else "cannot listen on this address",
            where=f"--host {host} --port {port}",
            got=str(error),
            fix="choose another with --port (0 takes any free one)" if taken else "choose another with --host and --port",
        ) from None


def url(server: socket.socket) -> str:
    host, port = server.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
