"""What goes wrong on a device, as users see it."""

from __future__ import annotations

from ...plans.errors import TokenspeedError


class DeviceError(TokenspeedError):
    """The driver refused something. `code` is the driver's own number, 0 where it was not asked."""

    exit_code = 9

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", fix: str = "", code: int = 0) -> None:
        super().__init__(what, where=where, expected=expected, got=got, fix=fix)
        self.code = code


class DeviceMemoryError(DeviceError):
    """The device has not as much free memory as was asked for."""


class DeviceLost(DeviceError):
    """Nothing more can be done on the device in this process: a kernel faulted, or the hardware did."""
