"""The fake driver library, built with the host's C compiler, and what tests tell it and ask of it."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.driver import Driver

SOURCE = Path(__file__).with_suffix(".c")
MACHINES = {"cuda": 190, "hip": 224}
Vendor = Literal["cuda", "hip"]


class FakeDriver:
    """One library; `reset` makes it new. `vendor` says which vendor's names are called."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library: Any = ctypes.CDLL(self.path)
        self._library.fake_log.restype = self._library.fake_problem.restype = ctypes.c_char_p
        self._library.fake_device_bytes.restype = ctypes.c_int64
        self.vendor: Vendor = "cuda"

    def reset(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self._library.fake_reset()
        self.be()

    def be(self, major: int = 9, minor: int = 0, shared_bytes: int = 227 << 10, memory_bytes: int = 1 << 30) -> None:
        self._library.fake_be(MACHINES[self.vendor], major, minor, shared_bytes, ctypes.c_int64(memory_bytes))

    def fail(self, nth: int, code: int) -> None:
        """The `nth` call from now gives that code."""
        self._library.fake_fail(nth, code)

    def put_off(self, *, first: bool = False, others: bool = False) -> None:
        """Whether work of the first stream, or of the others, is done once something waits for it; what waits now is done."""
        self._library.fake_put_off(int(first), int(others))

    def declare(self, symbol: str, kinds: str) -> None:
        """A kernel that does nothing; kinds of its parameters: p pointer, i int32, l int64, f float."""
        self._library.fake_declare(symbol.encode(), kinds.encode())

    def log(self) -> list[str]:
        return self._library.fake_log().decode().splitlines()

    def clear_log(self) -> None:
        self._library.fake_clear_log()

    @property
    def problem(self) -> str:
        """What was called wrongly first, "" if nothing was."""
        return self._library.fake_problem().decode()

    @property
    def device_bytes(self) -> int:
        return self._library.fake_device_bytes()

    @property
    def held(self) -> int:
        """Allocations, streams, events, modules and graphs that were not given back."""
        return self._library.fake_held()

    def driver(self) -> Driver:
        return Driver.open(self.vendor, (self.path,))

    def device(self) -> Device:
        return Device(self.driver(), 0)

    @property
    def architecture(self) -> str:
        return "sm_90a" if self.vendor == "cuda" else "gfx942"

    def binary(self, salt: int = 0) -> bytes:
        return elf_image(MACHINES[self.vendor], salt)


def elf_image(machine: int, salt: int = 0) -> bytes:
    """The header of an ELF image for a machine; the fake driver finds every kernel in it. `salt` makes binaries differ."""
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, machine) + struct.pack("<I", salt).ljust(44, b"\0")


def entry_name(binary: bytes, vendor: Vendor) -> str:
    return f"kernels/{hashlib.sha256(binary).hexdigest()}.{'cubin' if vendor == 'cuda' else 'hsaco'}"


def build(folder: Path) -> FakeDriver:
    """Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    target = folder / "libfake.so"
    subprocess.run([compiler, "-std=c11", "-O1", "-shared", "-fPIC", "-pthread", str(SOURCE), "-o", str(target)], check=True)
    return FakeDriver(target)
