"""Functions of the allow-list on a device: torch, over the executor's memory and stream. Imported only where a plan calls one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch

from ...plans.errors import TargetMismatch
from ...plans.program import DTYPE_BYTES
from ..device_arrays import TORCH_TYPES
from .arrays import DeviceArray
from .device import Device, Launch
from .errors import DeviceError, DeviceMemoryError

_INTERFACE_TYPES = {
    "bf16": "<i2",
    "f64": "<f8",
    "f32": "<f4",
    "f16": "<f2",
    "i64": "<i8",
    "i32": "<i4",
    "i8": "|i1",
    "u8": "|u1",
    "i1": "|b1",
}
"""As arrays of other libraries are described to torch; bfloat16 comes as its bits, which no such description has a name for."""


class DeviceLibrary:
    """What library functions run in, and the tensors that they see. Make one with `open_library`."""

    def __init__(self, device: Device, stream: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._device, self._stream = device, stream

    @contextmanager
    def running(self) -> Iterator[None]:
        """The device current, torch on its stream and without gradients."""
        with self._device, torch.inference_mode(), self._stream():
            yield

    def close(self) -> None:
        """Give back what torch keeps for later calls on this stream: the next executor of this process counts its own."""
        with suppress(RuntimeError):  # a lost device refuses
            torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            torch.cuda.empty_cache()

    def tensor(self, array: DeviceArray) -> torch.Tensor:
        """The same memory as a tensor."""
        return torch.as_tensor(_Described(array), device=f"cuda:{self._device.ordinal}").view(TORCH_TYPES[array.dtype])

    def guarded(self, launch: Launch, where: str) -> Launch:
        """The launch, with what torch raises turned into errors of the device."""

        def run() -> None:
            try:
                launch()
            except torch.OutOfMemoryError as error:
                raise DeviceMemoryError(
                    "Library functions need more device memory than the plan gives them.",
                    where=where,
                    got=_first_line(error),
                    fix="compile the plan with a smaller --prefill-chunk or --max-sequences",
                ) from error
            except RuntimeError as error:
                self._device.synchronise()  # a fault of the device ends here
                raise DeviceError("A library function failed on the device.", where=where, got=_first_line(error)) from error

        return run


class _Described:
    """An array as other libraries of the vendor describe theirs (`__cuda_array_interface__`, on HIP too)."""

    def __init__(self, array: DeviceArray) -> None:
        width = DTYPE_BYTES[array.dtype]
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "strides": tuple(step * width for step in array.strides),
            "typestr": _INTERFACE_TYPES[array.dtype],
            "data": (array.address, False),
            "version": 2,
        }


def open_library(device: Device, functions: Sequence[str], most_bytes: int) -> DeviceLibrary:
    """torch on a device that is open, its memory limited to `most_bytes`. Raises TargetMismatch where torch cannot use it."""
    if not torch.cuda.is_available():
        raise TargetMismatch(
            "The plan runs operations through torch, which cannot use this device.",
            where=f"calls of {', '.join(functions[:3])}{f' and {len(functions) - 3} more' if len(functions) > 3 else ''}",
            expected=f"torch built for {device.driver.vendor.name}",
            got=f"torch {torch.__version__}",
            fix="install the build of torch for this device (https://pytorch.org/get-started)",
        )
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as everywhere else
    _, total = device.memory()
    torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total), device.ordinal)
    stream = torch.cuda.ExternalStream(device.stream, device=device.ordinal)
    return DeviceLibrary(device, lambda: torch.cuda.stream(stream))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
