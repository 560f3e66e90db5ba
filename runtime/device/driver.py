"""The vendor's driver library, called through ctypes; each failure becomes a typed error with the driver's own words."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import DeviceError, DeviceLost, DeviceMemoryError
from .vendors import LOST_CODES, OUT_OF_MEMORY, SYMBOL_NOT_FOUND, VENDORS, WRONG_BINARY, VendorDriver


class MemoryHandle(ctypes.Structure):
    """CUipcMemHandle, hipIpcMemHandle_t: what another process maps memory by."""

    _fields_ = (("bytes", ctypes.c_ubyte * 64),)


_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int32,
    "u": ctypes.c_uint32,
    "z": ctypes.c_size_t,
    "q": ctypes.c_uint64,
    "b": ctypes.c_ubyte,
    "s": ctypes.c_char_p,
    "h": MemoryHandle,
}
_MAPPINGS = Path("/proc/self/maps")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES, _PROPERTIES_BYTES = 256, 8192
_ARCHITECTURE = re.compile(rb"gfx[0-9a-f]{3,6}")


class Driver:
    """A loaded and initialised driver. Make one with `Driver.open`."""

    def __init__(self, vendor: VendorDriver, library: ctypes.CDLL) -> None:
        self.vendor = vendor
        self._library = library
        self._functions: dict[str, Callable[..., int]] = {}
        for operation, (symbol, signature) in vendor.functions.items():
            self._functions[operation] = self._bind(symbol, signature)

    @classmethod
    def open(cls, vendor: str, libraries: Iterable[str] | None = None) -> Driver:
        """The driver of `vendor` ("cuda" or "hip"), from the first of `libraries` (the vendor's own by default) that loads.

        Raises DeviceError where there is none, or none that works.
        """
        table = VENDORS[vendor]
        candidates = tuple(libraries or (*_already_mapped(table.libraries[0]), *table.libraries))
        for name in candidates:
            try:
                library = ctypes.CDLL(name)
            except OSError:
                continue
            driver = cls(table, library)
            driver.call("initialise", 0)
            return driver
        raise DeviceError(
            f"There is no {table.name} driver on this machine.",
            where="the system's libraries",
            expected=" or ".join(candidates),
            got="none of them",
            fix=f"install the vendor's driver (check with {table.help}), or compile the plan for --target cpu",
        )

    def has(self, operation: str) -> bool:
        """Whether this vendor has the operation at all."""
        return operation in self._functions

    def function(self, operation: str) -> Callable[..., int]:
        """The operation as the driver's own function: gives back an error code, 0 for success."""
        return self._functions[operation]

    def call(self, operation: str, *arguments: object, where: str = "") -> None:
        """Run an operation. `where` says for whom, for the error. Raises DeviceError, or DeviceLost."""
        code = self._functions[operation](*arguments)
        if code:
            raise self.error(operation, code, where)

    def error(self, operation: str, code: int, where: str = "") -> DeviceError:
        """The error that `code` of an operation stands for."""
        symbol = self.vendor.functions[operation][0]
        got = f"{symbol} gave {code}, {self._text('error_name', code)}: {self._text('error_text', code)}"
        if code in LOST_CODES:
            return DeviceLost(
                "The device is lost to this process.",
                where=where or operation,
                got=got,
                fix=f"start the server again; if it recurs, check the hardware with {self.vendor.help}",
                code=code,
            )
        if code == OUT_OF_MEMORY:
            return DeviceMemoryError(
                "The device has too little free memory.",
                where=where or operation,
                got=got,
                fix=f"end what else uses the device ({self.vendor.help} lists it), or compile the plan for less memory",
                code=code,
            )
        fixes = {
            WRONG_BINARY: "compile the plan for this device (tokenspeed-compile --target)",
            SYMBOL_NOT_FOUND: "compile the plan again with tokenspeed-compile",
        }
        fix = fixes.get(code, f"check the driver's installation with {self.vendor.help}")
        return DeviceError("The device's driver refused.", where=where or operation, got=got, fix=fix, code=code)

    def device_count(self) -> int:
        count = ctypes.c_int32()
        self.call("device_count", ctypes.byref(count))
        return count.value

    def device(self, ordinal: int) -> int:
        """The driver's handle of a device. Raises DeviceError where there are not as many."""
        count = self.device_count()
        if not 0 <= ordinal < count:
            raise DeviceError(
                "There is no such device.",
                where=f"{self.vendor.name} device {ordinal}",
                expected=f"one of {count} devices",
                got=str(ordinal),
                fix=f"list the devices with {self.vendor.help}",
            )
        handle = ctypes.c_int32()
        self.call("device", ctypes.byref(handle), ordinal)
        return handle.value

    def device_name(self, handle: int) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("device_name", text, _NAME_BYTES, handle)
        return text.value.decode(errors="replace")

    def architecture(self, handle: int) -> str:
        """As compilers name it, without features: sm_90, gfx942."""
        if self.has("device_attribute"):
            major, minor = (self._attribute(handle, which) for which in (_MAJOR, _MINOR))
            return f"sm_{major}{minor}"
        # The record's layout changes with the driver's version; the name is the last text in it that looks like one.
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("device_properties", properties, handle)
        found = _ARCHITECTURE.findall(properties.raw)
        return found[-1].decode() if found else "unknown"

    def _attribute(self, handle: int, which: int) -> int:
        value = ctypes.c_int32()
        self.call("device_attribute", ctypes.byref(value), which, handle)
        return value.value

    def _text(self, operation: str, code: int) -> str:
        text = ctypes.c_char_p()
        failed = self._functions[operation](code, ctypes.byref(text))
        return text.value.decode(errors="replace") if not failed and text.value else "unknown"

    def _bind(self, symbol: str, signature: str) -> Callable[..., int]:
        try:
            function = getattr(self._library, symbol)
        except AttributeError:
            raise DeviceError(
                f"The {self.vendor.name} driver is too old.",
                where=str(self._library._name),
                expected=f"a function {symbol}",
                got="none",
                fix="update the vendor's driver",
            ) from None
        function.restype, function.argtypes = ctypes.c_int32, [_TYPES[letter] for letter in signature]
        return function


def _already_mapped(library: str) -> list[str]:
    """The copy of a library that is in this process already (torch brings its own): a second one would have its own state."""
    try:
        lines = _MAPPINGS.read_text(errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if f"/{library}" in line}
    return sorted(path for path in paths if path.startswith("/"))[:1]
