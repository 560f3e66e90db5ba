"""Lists of kernel calls, marshalled once and run many times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...plans.errors import PlanError
from ...plans.program import Attribute
from .library import AttributeDeclaration, NativeFunction, NativeLibrary, spelled
from .records import CALL, TENSOR, NativeArray
from .team import ThreadTeam


class CallList:
    """Kernel calls in order. `add` all of them, `seal` once, then `run`."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._functions: list[NativeFunction] = []
        self._labels: list[str] = []
        self._arrays: list[Sequence[NativeArray]] = []
        self._numbers: list[list[float]] = []
        self._counts: list[tuple[int, int]] = []
        self._calls = np.empty(0, CALL)
        self._tensors = np.empty(0, TENSOR)
        self._values = np.empty(0, np.float64)
        self._sizes: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._functions)

    def add(
        self,
        name: str,
        inputs: Sequence[NativeArray],
        outputs: Sequence[NativeArray],
        attributes: Mapping[str, Attribute],
        label: str,
    ) -> None:
        """Append a call. Raises PlanError for a kernel the library has not, or attributes that are not those it takes."""
        function = self._library.function(name)
        self._functions.append(function)
        self._labels.append(label or name)
        self._arrays.append((*inputs, *outputs))
        self._numbers.append(_numbers(function, attributes, label or name))
        self._counts.append((len(inputs), len(outputs)))

    def seal(self, threads: int) -> int:
        """Write the records and let every kernel check its call; gives back the shared scratch they need, in bytes.

        Raises PlanError with what a kernel expects.
        """
        arrays = [array for group in self._arrays for array in group]
        self._tensors = np.zeros(len(arrays), TENSOR)
        for at, array in enumerate(arrays):
            self._tensors[at] = array.record()
        self._values = np.array([value for group in self._numbers for value in group], np.float64)
        self._calls = np.zeros(len(self._functions), CALL)
        tensor, number, scratch = self._tensors.ctypes.data, self._values.ctypes.data, 0
        for at, function in enumerate(self._functions):
            inputs, outputs = self._counts[at]
            self._calls[at] = (function.address, tensor, number, inputs, outputs)
            tensor += (inputs + outputs) * TENSOR.itemsize
            number += len(self._numbers[at]) * 8
            address = self._calls.ctypes.data + at * CALL.itemsize
            refused = function.refusal(address)
            if refused is not None:
                self._refuse(at, refused)
            scratch = max(scratch, function.scratch_bytes(address, threads))
        return scratch

    def resize(self, rows: int, logit_rows: int) -> None:
        """Make the arrays that follow a row count follow these, none larger than when the calls were checked."""
        if self._sizes != (rows, logit_rows):
            self._sizes = (rows, logit_rows)
            self._library.entry_points.ts_resize(self._tensors.ctypes.data, len(self._tensors), rows, logit_rows)

    def run(self, team: ThreadTeam) -> None:
        team.run(self._calls.ctypes.data, len(self._calls))

    def run_timed(self, team: ThreadTeam) -> list[tuple[str, float]]:
        """Run once, timed call by call: kernel name and seconds of each."""
        seconds = team.run_timed(self._calls.ctypes.data, len(self._calls))
        return [(function.name, spent) for function, spent in zip(self._functions, seconds, strict=True)]

    def _refuse(self, at: int, expected: str) -> None:
        got = ", ".join(f"{array.dtype}{list(array.shape)}" for array in self._arrays[at])
        inputs, outputs = self._counts[at]
        raise PlanError(
            f"The plan calls the kernel {self._functions[at].name} in a way it cannot run.",
            where=self._labels[at],
            expected=expected,
            got=f"{inputs} inputs and {outputs} outputs: {got}",
            fix="compile the plan again with tokenspeed-compile",
        )


def _numbers(function: NativeFunction, attributes: Mapping[str, Attribute], label: str) -> list[float]:
    unknown = attributes.keys() - {item.name for item in function.attributes}
    values = [None if unknown else _number(item, attributes.get(item.name)) for item in function.attributes]
    if unknown or None in values:
        raise PlanError(
            f"The plan gives the kernel {function.name} attributes that it does not take.",
            where=label,
            expected=spelled(function.attributes),
            got=str(dict(attributes)),
            fix="compile the plan again with tokenspeed-compile",
        )
    return [value for value in values if value is not None]


def _number(declared: AttributeDeclaration, value: Attribute | None) -> float | None:
    """The attribute as a number, None if it is not one of its kind."""
    if value is None:
        return declared.default
    if declared.kind == "choice":
        return float(declared.choices.index(value)) if isinstance(value, str) and value in declared.choices else None
    if declared.kind == "flag":
        return float(value) if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int,) if declared.kind == "integer" else (int, float)):
        return None
    return float(value) if math.isfinite(value) and abs(value) < 2**53 else None
