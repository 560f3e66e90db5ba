"""By which of its network interfaces this machine reaches another one."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR
_NAME_BYTES, _REQUEST_BYTES = 15, 256
_ANY_PORT = 9


def interface_towards(host: str) -> str | None:
    """The interface's name; None where it is not known (no route, no IPv4). Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.connect((host, _ANY_PORT))
            own = found.getsockname()[0]
            if ipaddress.ip_address(own).is_loopback:
                own = "127.0.0.1"
            return next((name for _, name in socket.if_nameindex() if _address(found, name) == own), None)
    except OSError:
        return None


def _address(any_socket: socket.socket, name: str) -> str | None:
    asked = struct.pack(f"{_REQUEST_BYTES}s", name.encode()[:_NAME_BYTES])
    with suppress(OSError):  # an interface without an address
        return socket.inet_ntoa(fcntl.ioctl(any_socket, _ADDRESS_OF_INTERFACE, asked)[20:24])
    return None
