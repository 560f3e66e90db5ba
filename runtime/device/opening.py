"""Opens a plan's device ahead of its use: the driver takes a good part of a start for it, and imports need not wait meanwhile."""

from __future__ import annotations

import ctypes
import threading

from ...plans.errors import TokenspeedError
from .driver import Driver


def begin_to_open(vendor: str) -> None:
    """Make the first device's context in a thread of its own; who opens the device later finds it, or waits for it in the driver.

    What goes wrong is not told here: it goes wrong again for who opens the device.
    """
    threading.Thread(target=open_device, args=(vendor,), name="device-opening", daemon=True).start()


def open_device(vendor: str) -> None:
    """Make the first device's context, or do nothing."""
    try:
        driver = Driver.open(vendor)
        if driver.has("retain_context"):
            driver.call("retain_context", ctypes.byref(ctypes.c_void_p()), driver.device(0))
        else:
            driver.call("set_device", driver.device(0))
    except TokenspeedError:
        pass
