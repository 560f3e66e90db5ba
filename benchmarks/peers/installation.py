"""Virtual environments of the peers, one each under one directory: their requirements never meet those of this project."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_FAILED = "failed.txt"
# g++ 12 takes the instruction that configures matrix tiles to read 8 of its 64 bytes, and leaves out the stores of the others.
# Without this llama.cpp's products of 8-bit and 4-bit weights end with an illegal instruction on processors with AMX.
_BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CXXFLAGS": "-fno-tree-dse -fno-dse"}


@dataclass(frozen=True)
class Environment:
    """`packages` are installed from the package index, with `variables` set; `unwanted` are then taken out again."""

    packages: tuple[str, ...]
    imported: str
    variables: dict[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()


def _environments() -> dict[str, Environment]:
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"  # the build of this project's own installation
    return {
        # built from source, by CMake, for this machine's instruction set
        "llama.cpp": Environment(("llama-cpp-python",), "llama_cpp", _BUILD),
        "openvino": Environment(
            (torch, "openvino-genai", "optimum-intel", "nncf"),
            "openvino_genai",
            unwanted=("torchvision",),  # comes along, in a build for another torch
        ),
        "onnxruntime-genai": Environment((torch, "onnxruntime-genai", "onnx_ir", "transformers<5.6"), "onnxruntime_genai"),
    }


def python_of(directory: Path, peer: str) -> Path | str:
    """The interpreter that has `peer`, or in words why there is none."""
    environment = _environments()[peer]
    failed, python = directory / peer / _FAILED, directory / peer / "bin" / "python"
    if failed.is_file():
        return failed.read_text().strip()
    if not python.exists():
        return f"not installed in {directory} (cpu_peers.py --install {directory})"
    done = _run([str(python), "-c", f"import {environment.imported}"], {})
    return _last_line(done) if done.returncode else python


def install(directory: Path, say: Callable[[str], None]) -> None:
    """Install every peer that is not there; one that fails leaves its reason behind."""
    for peer, environment in _environments().items():
        home = directory / peer
        (home / _FAILED).unlink(missing_ok=True)
        if isinstance(python_of(directory, peer), Path):
            say(f"{peer}: already there")
            continue
        say(f"{peer}: installing {', '.join(environment.packages)}")
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin" / "python"), "-m", "pip"]
        fresh = ["--no-cache-dir"] if environment.variables else []  # pip would take what it once built with others
        done = _run([*pip, "install", "--quiet", *fresh, *environment.packages], environment.variables)
        if not done.returncode and environment.unwanted:
            _run([*pip, "uninstall", "--quiet", "--yes", *environment.unwanted], {})
        if done.returncode:
            (home / _FAILED).write_text(f"pip install failed: {_last_line(done)}\n")
        found = python_of(directory, peer)
        say(f"{peer}: {found if isinstance(found, str) else 'installed'}")


def _run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    defaults = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=defaults | variables)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1]


def tool_of(python: Path, name: str) -> str:
    """A program that was installed beside an interpreter."""
    return str(python.with_name(name))


THIS_PYTHON = Path(sys.executable)
