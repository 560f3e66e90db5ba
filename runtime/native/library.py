"""A plan's shared object of kernels, loaded from a sealed memory file: what was hashed is what runs."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...plans.errors import PlanError, TargetMismatch
from .records import CALL, TENSOR

ABI_VERSION = 1

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_DECLARATION = re.compile(r"(?P<name>\w+):(?P<kind>number|integer|flag|choice)(\((?P<choices>[\w,]+)\))?(=(?P<default>\S+))?")


@dataclass(frozen=True)
class AttributeDeclaration:
    """An attribute as a kernel declares it; `default` is None where it must be given."""

    name: str
    kind: Literal["number", "integer", "flag", "choice"]
    choices: tuple[str, ...]
    default: float | None


@dataclass(frozen=True)
class NativeFunction:
    """A kernel of a library: its address, the attributes it takes, and its checks."""

    name: str
    address: int
    attributes: tuple[AttributeDeclaration, ...]
    check: Any
    scratch: Any

    def refusal(self, call_address: int) -> str | None:
        """What the kernel expects, if the call is not that."""
        found: bytes | None = self.check(call_address)
        return found.decode() if found is not None else None

    def scratch_bytes(self, call_address: int, threads: int) -> int:
        """Shared scratch that the call needs."""
        return int(self.scratch(call_address, threads)) if self.scratch is not None else 0


class NativeLibrary:
    """The loaded shared object. `data` is its bytes, `sha256` what they must hash to (hex); the code is mapped once hashed."""

    def __init__(self, data: bytes | memoryview, sha256: str) -> None:
        self._library = _load_sealed(data, sha256)
        self._functions: dict[str, NativeFunction] = {}
        self._check_abi()
        self._request_tiles()
        for name in ("ts_open", "ts_set_scratch", "ts_work", "ts_run", "ts_resize", "ts_close"):
            function = getattr(self._library, name)
            function.restype = None
        self._library.ts_open.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32)
        self._library.ts_set_scratch.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self._library.ts_work.argtypes = (ctypes.c_void_p, ctypes.c_int32)
        self._library.ts_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._library.ts_resize.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._library.ts_close.argtypes = (ctypes.c_void_p,)

    @property
    def entry_points(self) -> Any:
        """The driver's functions (targets/cpu/native/driver.cpp)."""
        return self._library

    @property
    def shared_bytes(self) -> int:
        return self._number("ts_shared_bytes")

    def function(self, name: str) -> NativeFunction:
        """The kernel of that name. Raises PlanError when the library has none."""
        found = self._functions.get(name)
        if found is None:
            found = self._functions[name] = self._find(name)
        return found

    def _find(self, name: str) -> NativeFunction:
        try:
            run = getattr(self._library, f"ts_{name}")
            declared = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(self._library, f"ts_{name}_attributes"))).decode()
            check = getattr(self._library, f"ts_{name}_check")
        except (AttributeError, ValueError):
            raise PlanError(
                f"The plan calls a kernel that its own library does not have: {name!r}.",
                where="kernels",
                expected=f"a symbol ts_{name} with its attributes and its check",
                got="none",
                fix="compile the plan again with tokenspeed-compile",
            ) from None
        check.restype, check.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
        scratch = getattr(self._library, f"ts_{name}_scratch", None)
        if scratch is not None:
            scratch.restype, scratch.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int32)
        address = ctypes.cast(run, ctypes.c_void_p).value or 0
        return NativeFunction(name, address, _declarations(declared), check, scratch)

    def _number(self, name: str) -> int:
        kind = ctypes.c_int32 if name == "ts_abi_version" else ctypes.c_int64
        return kind.in_dll(self._library, name).value

    def _check_abi(self) -> None:
        expected = (ABI_VERSION, TENSOR.itemsize, CALL.itemsize)
        try:
            got = tuple(self._number(name) for name in ("ts_abi_version", "ts_tensor_bytes", "ts_call_bytes"))
        except ValueError:
            got = ()
        if got != expected:
            raise PlanError(
                "The plan's kernels were built for another version of the runtime.",
                where="kernels",
                expected=f"interface version {ABI_VERSION}, records of {expected[1:]} bytes",
                got=str(got),
                fix="run the plan with the runtime it was compiled for, or compile it again",
            )

    def _request_tiles(self) -> None:
        """Ask for the tile registers, of a library whose code uses them: once for the process, before any thread runs kernels."""
        request = getattr(self._library, "ts_request_tiles", None)
        if request is None:
            return
        request.restype, request.argtypes = ctypes.c_int64, ()
        refused = -int(request())
        if refused:
            raise TargetMismatch(
                "The operating system does not lend this process the tile registers (AMX) that the plan's kernels use.",
                where="target.features",
                expected="Linux 5.16 or newer, and a sandbox that lets arch_prctl(ARCH_REQ_XCOMP_PERM) through",
                got=os.strerror(refused),
                fix="compile the plan without them: tokenspeed-compile MODEL --target cpu-avx512-bf16",
            )


def _load_sealed(data: bytes | memoryview, sha256: str) -> ctypes.CDLL:
    """The library. Its file stays open as long as the process: the loader knows libraries by path, and this is one's path."""
    file = os.memfd_create("tokenspeed-kernels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    loaded = False
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as sealed:
            found = hashlib.sha256(sealed).hexdigest()
        if found != sha256:
            raise PlanError(
                "The plan's kernels are not those its manifest names.",
                where="kernels",
                expected=f"SHA-256 {sha256}",
                got=found,
                fix="fetch the plan again",
            )
        library = ctypes.CDLL(f"/proc/self/fd/{file}")
        loaded = True
        return library
    except OSError as error:
        raise PlanError(
            "The plan's kernels cannot be loaded on this machine.",
            where="kernels",
            expected="a shared object for this processor",
            got=str(error).splitlines()[0],
            fix="compile the plan for this machine (tokenspeed-compile --target cpu)",
        ) from None
    finally:
        if not loaded:
            os.close(file)


def _declarations(text: str) -> tuple[AttributeDeclaration, ...]:
    return tuple(_declaration(word) for word in text.split())


def _declaration(word: str) -> AttributeDeclaration:
    found = _DECLARATION.fullmatch(word)
    if found is None:
        raise PlanError("A kernel declares an attribute that cannot be read.", where="kernels", got=word, fix="compile again")
    choices = tuple((found["choices"] or "").split(",")) if found["choices"] else ()
    default = found["default"]
    value = None if default is None else float(choices.index(default) if choices else float(default))
    kind: Any = found["kind"]
    return AttributeDeclaration(found["name"], kind, choices, value)


def spelled(declarations: Sequence[AttributeDeclaration]) -> str:
    """Declarations as an error message shows them."""
    return ", ".join(f"{item.name}: {item.kind}" for item in declarations) or "none"
