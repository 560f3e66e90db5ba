"""The engine's end of the two ZeroMQ sockets."""

from __future__ import annotations

import msgspec
import zmq

from .protocol import EngineCommand, EngineNews

_LINGER_MILLISECONDS = 2000  # the last news of a dying engine is the one that matters


class EngineChannel:
    """Commands in, news out; addresses as the entrypoint bound them. Used from one thread."""

    def __init__(self, commands: str, news: str) -> None:
        self._context = zmq.Context()
        self._receiver = self._connected(zmq.PULL, commands)
        self._sender = self._connected(zmq.PUSH, news)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(EngineCommand)

    def _connected(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, _LINGER_MILLISECONDS)
        socket.connect(address)
        return socket

    def receive(self, timeout: float | None = 0.0) -> list[EngineCommand]:
        """All commands there are; when there is none, wait up to `timeout` seconds for one (None: for ever)."""
        commands: list[EngineCommand] = []
        if self._receiver.poll(None if timeout is None else round(timeout * 1000)):
            try:
                while True:
                    commands.append(self._decoder.decode(self._receiver.recv(zmq.NOBLOCK)))
            except zmq.Again:
                pass
        return commands

    def send(self, news: EngineNews) -> None:
        self._sender.send(self._encoder.encode(news))

    def close(self) -> None:
        """Waits a little for what was sent last to be delivered."""
        self._receiver.close()
        self._sender.close()
        self._context.term()
