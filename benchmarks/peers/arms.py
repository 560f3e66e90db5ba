"""Who takes part: each peer's program, the precisions it has, and how its model file is made from a checkpoint."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenspeed.plans.errors import TokenspeedError

from .gguf_files import gguf_file
from .installation import THIS_PYTHON, python_of, tool_of

PRECISIONS = ("bf16", "int8", "int4")
_SERVERS = Path(__file__).resolve().parent / "servers"
_MAX_CONTEXT = 4608


class Absent(TokenspeedError):
    """An arm that cannot take part."""


@dataclass(frozen=True)
class Arm:
    """`model` is what the arm's program loads."""

    peer: str
    precision: str
    command: tuple[str, ...]
    model: Path


Prepare = Callable[[Path, str, Path], Path]
"""Checkpoint directory, precision and the peer's interpreter to the file or directory that its program loads."""


@dataclass(frozen=True)
class Peer:
    """`environment` names the peer's virtual environment; None: this project's own interpreter."""

    server: str
    environment: str | None
    precisions: tuple[str, ...]
    prepare: Prepare


def arm(peer: str, precision: str, checkpoint: Path, installed: Path | None) -> Arm:
    """An arm ready to start, its model file made. Raises Absent with the reason why there is none."""
    described = PEERS[peer]
    if precision not in described.precisions:
        raise Absent(f"{peer} has no {precision} on CPUs here")
    python: Path | str = THIS_PYTHON
    if described.environment is not None:
        python = python_of(installed, described.environment) if installed else "no --peers directory was given"
    if isinstance(python, str):
        raise Absent(python)
    model = described.prepare(checkpoint, precision, python)
    return Arm(peer, precision, (str(python), str(_SERVERS / described.server)), model)


def _plan(checkpoint: Path, precision: str, _python: Path) -> Path:
    """Compiled anew each time: it is this tree's compiler that is measured."""
    target = checkpoint.with_name(f"{precision}.plan.bin")
    command = [tool_of(THIS_PYTHON, "tokenspeed-compile"), str(checkpoint), "-o", str(target), "--bundle-weights"]
    command += ["--dtype", "bf16", "--max-context", str(_MAX_CONTEXT), "--max-sequences", "16"]
    command += [] if precision == "bf16" else ["--quantize", precision]
    _made(command, target)
    return target


def _gguf(checkpoint: Path, precision: str, _python: Path) -> Path:
    return gguf_file(checkpoint, precision)


def _checkpoint(checkpoint: Path, _precision: str, _python: Path) -> Path:
    return checkpoint


_OPENVINO_WEIGHTS = {
    "bf16": ("--weight-format", "fp16"),  # it stores 16-bit weights so, and computes in bfloat16
    "int8": ("--weight-format", "int8", "--sym"),
    "int4": ("--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0", "--all-layers"),  # as Q4_0 is
}


def _openvino(checkpoint: Path, precision: str, python: Path) -> Path:
    target = checkpoint.with_name(f"openvino-{precision}")
    if not target.is_dir():
        command = [
            tool_of(python, "optimum-cli"),
            "export",
            "openvino",
            "-m",
            str(checkpoint),
            "--task",
            "text-generation-with-past",
        ]
        _made_directory([*command, *_OPENVINO_WEIGHTS[precision]], target)
    return target


def _onnx(checkpoint: Path, precision: str, python: Path) -> Path:
    target = checkpoint.with_name(f"onnxruntime-{precision}")
    if not target.is_dir():
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-p", precision, "-e", "cpu"]
        command += ["-c", str(checkpoint.with_name("onnxruntime-cache"))]
        command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4", "-o"]
        _made_directory(command, target)
    return target


def _made_directory(command: list[str], target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    _made([*command, str(partial)], partial)
    partial.rename(target)


def _made(command: list[str], target: Path) -> None:
    """Raises Absent with the last line that `command` said, unless `target` is there afterwards."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    if done.returncode or not target.exists():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Absent(f"{Path(command[0]).name} failed: {(lines or ['no message'])[-1]}")


PEERS = {
    "tokenspeed": Peer("tokenspeed_server.py", None, PRECISIONS, _plan),
    "llama.cpp": Peer("llama_cpp_server.py", "llama.cpp", PRECISIONS, _gguf),
    "openvino": Peer("openvino_server.py", "openvino", PRECISIONS, _openvino),
    "openvino-genai": Peer("openvino_genai_server.py", "openvino", PRECISIONS, _openvino),
    "onnxruntime-genai": Peer("onnxruntime_server.py", "onnxruntime-genai", ("int8", "int4"), _onnx),
    "transformers": Peer("transformers_server.py", None, ("bf16",), _checkpoint),
}
