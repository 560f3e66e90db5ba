"""Triton's interpreter in a process of its own: Triton decides when it is imported whether functions are interpreted.

Both ends of the pipe are this file, so that what is unpickled is what it pickled itself.
"""

from __future__ import annotations

import importlib
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tokenspeed.plans.device_kernels import Computed, Constant, Pointer, evaluate
from tokenspeed.targets.triton.kernel import DeviceOperation, FunctionTemplate, Launch

Arrays = list[NDArray[Any]]


class Interpreter:
    """Runs launches on arrays of this process. One at a time; close it."""

    def __init__(self) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def launch(
        self,
        launch: Launch,
        operands: Sequence[NDArray[Any]],
        symbols: Mapping[str, int],
        addressed: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Run it; what it writes is in `operands` afterwards. `addressed` ones begin with the addresses of others, by number."""
        job = {
            "source": launch.source,
            "constants": dict(launch.constants),
            "arguments": [_argument(item, symbols) for item in launch.parameters],
            "grid": tuple(evaluate(size, symbols) for size in launch.grid),
            "operands": [np.ascontiguousarray(operand) for operand in operands],
            "addressed": dict(addressed or {}),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(self._process.stdin, job)
        error, results = _receive(self._process.stdout)
        assert error is None, error
        for operand, result in zip(operands, results, strict=True):
            operand[...] = result

    def run(self, operation: DeviceOperation, operands: Arrays, symbols: Mapping[str, int]) -> None:
        """All steps of an operation, as the plan's bucket with these rows runs them."""
        made: dict[str, NDArray[Any]] = {}
        for item in operation.intermediates:
            shape = [symbols[size] if isinstance(size, str) else size for size in item.shape]
            made[item.name] = np.full(shape, np.nan if item.dtype == "f32" else 77, _NUMPY[item.dtype])
        for step in operation.steps:
            chosen = chosen_launch(step.function, symbols)
            if chosen is not None:
                places = (*step.inputs, *step.outputs)
                self.launch(chosen, [made[at] if isinstance(at, str) else operands[at] for at in places], symbols)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def chosen_launch(function: FunctionTemplate, symbols: Mapping[str, int]) -> Launch | None:
    """What runs for a bucket with these counts."""
    decode = function.decode is not None and symbols["rows"] == symbols["logit_rows"]
    choices = function.decode if decode and function.decode is not None else function.variants
    return choices([symbols[function.by]])[0][1]


_NUMPY = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "u8": np.uint8}


def _argument(parameter: Pointer | Constant | Computed, symbols: Mapping[str, int]) -> tuple[str, int | float]:
    if isinstance(parameter, Pointer):
        return "operand", parameter.operand
    value = parameter.value if isinstance(parameter, Constant) else evaluate(parameter.size, symbols)
    return "number", value


def _send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


def _serve() -> None:
    """Run jobs from standard input until it ends."""
    import torch

    source, target = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            job = _receive(source)
        except EOFError:
            return
        tensors = [torch.from_numpy(operand) for operand in job["operands"]]
        for at, others in job["addressed"].items():
            tensors[at][: len(others)] = torch.tensor([tensors[other].data_ptr() for other in others])
        file, _, name = job["source"].partition(".")
        function = getattr(importlib.import_module(f"tokenspeed.targets.triton.sources.{file}"), name)
        names = [argument for argument in function.arg_names if argument not in job["constants"]]
        values = [tensors[value] if kind == "operand" else value for kind, value in job["arguments"]]
        error = None
        try:
            function[job["grid"]](**dict(zip(names, values, strict=True)), **job["constants"])
        except Exception as problem:
            error = f"{job['source']}: {problem!r}: {problem.__cause__!r}"
        _send(target, (error, [tensor.numpy() for tensor in tensors]))


if __name__ == "__main__":
    _serve()
