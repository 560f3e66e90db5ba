"""Compiles the native kernels (targets/cpu/native) into one shared object for an instruction set.

The object depends on nothing: no libc, no libstdc++, so that a plan moves to any host of its target. The same sources, flags and
C++ compiler give the same bytes. Objects are kept in a cache named by a digest of all three.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...plans.errors import ModelError
from ..machine import Machine

SOURCES = Path(__file__).parent / "native"

INTERFACE = 1
"""Version of abi.h, which a runtime must know."""

_KERNEL = re.compile(r"^KERNEL\((\w+),", re.MULTILINE)

NATIVE_DTYPES = ("f32", "bf16")

_COMPILE = (
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-ffreestanding", "-fvisibility=hidden"),
    *("-fno-exceptions", "-fno-rtti", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-threadsafe-statics"),
    # g++ 12 takes the undefined vectors inside its own intrinsics for ours
    *("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_LINK = ("-shared", "-nostdlib", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-undefined")


@dataclass(frozen=True)
class CxxCompiler:
    """A C++ compiler on this host; `identity` is the first line of its version."""

    path: str
    identity: str


@functools.cache
def find_compiler() -> CxxCompiler | None:
    """`$CXX`, g++ or clang++, the first that runs; None when there is none."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, env=_environment())
        except (OSError, subprocess.CalledProcessError):
            continue
        return CxxCompiler(path, version.stdout.splitlines()[0])
    return None


def why_not_native(machine: Machine, dtype: str) -> str | None:
    """Why a plan for the machine cannot carry native kernels; None when it can."""
    if not machine.compiler_flags:
        return f"there are no native kernels for {machine.name}"
    if dtype not in NATIVE_DTYPES:
        return f"native kernels compute in {' and '.join(NATIVE_DTYPES)}, not in {dtype}"
    if find_compiler() is None:
        return "no C++ compiler on this host (install g++ or clang)"
    return None


@functools.cache
def build_library(compiler: CxxCompiler, flags: tuple[str, ...], more: tuple[Path, ...] = ()) -> bytes:
    """The shared object of all kernels for the instruction set that `flags` name, and of those in `more`, files from elsewhere.

    Raises ModelError with the compiler's own words when it fails.
    """
    sources = [*sorted(SOURCES.glob("*.cpp")), *more]
    with tempfile.TemporaryDirectory(prefix="tokenspeed-") as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(scratch)
        made = list(pool.map(lambda source: _object(compiler, source, flags), sources))
        # numbered, because files from elsewhere may be called as ours are
        objects = [f"{number}-{source.stem}.o" for number, source in enumerate(sources)]
        for name, data in zip(objects, made, strict=True):
            (folder / name).write_bytes(data)
        _run([compiler.path, *_LINK, "-o", "kernels.so", *objects], folder)
        return (folder / "kernels.so").read_bytes()


def kernel_names() -> tuple[str, ...]:
    """Names of all kernels in the sources."""
    return kernels_in(SOURCES.glob("*.cpp"))


def kernels_in(sources: Iterable[Path]) -> tuple[str, ...]:
    """Names of the kernels that C++ files define."""
    return tuple(sorted(name for source in sources for name in _KERNEL.findall(source.read_text())))


def _object(compiler: CxxCompiler, source: Path, flags: Sequence[str]) -> bytes:
    digest = hashlib.sha256("\n".join([compiler.identity, *_COMPILE, *flags, source.name]).encode())
    for file in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(file.read_bytes())
    kept = _cache_folder() / f"{source.stem}-{digest.hexdigest()[:32]}.o"
    if kept.is_file():
        return kept.read_bytes()
    with tempfile.TemporaryDirectory(prefix="tokenspeed-") as scratch:
        folder = Path(scratch)
        for file in (source, *SOURCES.glob("*.h")):
            shutil.copy(file, folder)  # compiled by name in its own folder: no path of this host gets into the object
        _run([compiler.path, *_COMPILE, *flags, f"-frandom-seed={source.name}", "-c", source.name, "-o", "out.o"], folder)
        data = (folder / "out.o").read_bytes()
    _keep(kept, data)
    return data


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_environment())
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise ModelError(
            "The C++ compiler cannot build the native kernels.",
            where=" ".join(command[:1] + command[-3:]),
            got="\n".join(lines[:10]),
            fix="use g++ 12 or newer, or compile with --kernels library",
        )


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TMPDIR": tempfile.gettempdir()}


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", tempfile.gettempdir())) / ".cache"
    return Path(root) / "tokenspeed" / "native"


def _keep(path: Path, data: bytes) -> None:
    """Best effort: a cache that cannot be written costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError:
        return
