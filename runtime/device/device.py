"""One device with its context and one stream: memory, modules, events and capture as typed calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .driver import Driver, MemoryHandle
from .errors import DeviceError

_NON_BLOCKING, _THREAD_LOCAL, _NO_TIMING = 1, 1, 2
_REACH_PEERS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_SHARED_SIZE_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED_WITHOUT_ASKING = 48 << 10

_HOST_MEMORY, _DEVICE_MEMORY = 1, 2  # CU_MEMORYTYPE_*
_TO_DEVICE, _TO_HOST = 1, 2  # hipMemcpyHostToDevice, hipMemcpyDeviceToHost
MOST_PITCH = (1 << 31) - 1
"""Bytes from one row to the next of a copy of rows: CU_DEVICE_ATTRIBUTE_MAX_PITCH of every device so far."""

Launch = Callable[[], None]


class Rows(NamedTuple):
    """Rows of bytes in memory, `pitch` bytes from each to the next."""

    address: int
    pitch: int


class RowCopy(ctypes.Structure):
    """CUDA_MEMCPY2D. Where a side has a `*_host` and a `*_device` address, `*_memory` says which one counts."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_memory", ctypes.c_uint32),
        ("source_host", ctypes.c_uint64),
        ("source_device", ctypes.c_uint64),
        ("source_array", ctypes.c_uint64),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_memory", ctypes.c_uint32),
        ("target_host", ctypes.c_uint64),
        ("target_device", ctypes.c_uint64),
        ("target_array", ctypes.c_uint64),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )

    @classmethod
    def of(cls, source: Rows, target: Rows, width: int, height: int, source_memory: int, target_memory: int) -> RowCopy:
        """Each side's address is given for either kind of memory."""
        return cls(
            *(0, 0, source_memory, source.address, source.address, 0, source.pitch),
            *(0, 0, target_memory, target.address, target.address, 0, target.pitch),
            *(width, height),
        )


class Device:
    """An open device; all but the upload of weights and copies of KV blocks goes through one stream, in order. Use it `with` it
    current, from one thread at a time; copies in streams of one's own may be made by other threads meanwhile.

    The context is the device's primary one, which torch uses as well.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver, self.ordinal = driver, ordinal
        self._handle = driver.device(ordinal)
        self.name, self.architecture = driver.device_name(self._handle), driver.architecture(self._handle)
        self._context: int | None = None
        if driver.has("retain_context"):
            self._context = self._made("retain_context", self._handle)
        self.make_current()
        self.stream = self._made("create_stream", _NON_BLOCKING)
        self._allocations: dict[int, str] = {}
        self._mapped: list[int] = []
        self._modules: list[int] = []
        self._events: list[int] = []
        self._streams: list[int] = []
        self._graphs: list[int] = []
        self._closed = False

    def __enter__(self) -> Self:
        self.make_current()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def make_current(self) -> None:
        """Bind the calling thread to this device."""
        self.driver.call(*self._binding())

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.call("memory_information", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, count: int, purpose: str, *, zeroed: bool = True) -> int:
        """Address of `count` bytes of device memory. Raises DeviceMemoryError."""
        address = self._made("allocate", max(count, 1), where=f"{purpose}, {count} bytes")
        self._allocations[address] = "free"
        if count and zeroed:
            self.driver.call("fill_bytes", address, 0, count, self.stream, where=purpose)
        return address

    def free(self, address: int) -> None:
        """Give device memory back; nothing that uses it may be under way."""
        self.driver.call(self._allocations.pop(address), address)

    def allocate_host(self, count: int, purpose: str, *, zeroed: bool = True) -> NDArray[np.uint8]:
        """Page-locked host memory that copies reach without a detour; it lives until the device is closed."""
        address = self._made("allocate_host", max(count, 1), 0, where=f"{purpose}, {count} bytes of page-locked memory")
        self._allocations[address] = "free_host"
        data = np.ctypeslib.as_array((ctypes.c_uint8 * max(count, 1)).from_address(address))[:count]
        if zeroed:
            data[:] = 0
        return data

    def free_host(self, data: NDArray[np.uint8]) -> None:
        """Give page-locked memory back; no copy from it may be under way."""
        self.driver.call(self._allocations.pop(data.ctypes.data), data.ctypes.data)

    def handle_of(self, address: int) -> bytes:
        """What another process on this host maps an allocation by."""
        handle = MemoryHandle()
        self.driver.call("memory_handle", ctypes.byref(handle), address)
        return bytes(handle.bytes)

    def map_memory(self, handle: bytes, where: str) -> int:
        """Address of another process's allocation, by its handle; until the device is closed. Raises DeviceError."""
        address = self._made("map_memory", MemoryHandle.from_buffer_copy(handle), _REACH_PEERS, where=where)
        self._mapped.append(address)
        return address

    def upload(self, address: int, source: NDArray[Any], stream: int | None = None) -> None:
        """Begin to copy a dense host array to the device; from page-locked memory it must stay as it is until then."""
        if source.nbytes:
            self.driver.call("copy_to_device", address, source.ctypes.data, source.nbytes, stream or self.stream)

    def download(self, target: NDArray[Any], address: int) -> None:
        """Begin to copy device memory into a dense host array."""
        if target.nbytes:
            self.driver.call("copy_to_host", target.ctypes.data, address, target.nbytes, self.stream)

    def copy(self, target: int, source: int, count: int) -> None:
        """Begin to copy bytes from one place of device memory to another."""
        if count:
            self.driver.call("copy_on_device", target, source, count, self.stream)

    def copy_rows(self, target: Rows, source: Rows, width: int, count: int, stream: int, *, to_device: bool) -> None:
        """Begin to copy `count` rows of `width` bytes between the device and page-locked memory, in whichever direction."""
        if self.driver.has("copy_rows"):
            sides = (_HOST_MEMORY, _DEVICE_MEMORY) if to_device else (_DEVICE_MEMORY, _HOST_MEMORY)
            # the driver has read it when the call returns; it is the calling thread's own
            self.driver.call("copy_rows", ctypes.byref(RowCopy.of(source, target, width, count, *sides)), stream)
        else:
            kind = _TO_DEVICE if to_device else _TO_HOST
            where = (target.address, target.pitch, source.address, source.pitch)
            self.driver.call("copy_rows_of_kind", *where, width, count, kind, stream)

    def synchronise(self, stream: int | None = None) -> None:
        """Wait for all work. A kernel's fault may show here: raises DeviceLost."""
        self.driver.call("synchronise_stream", stream or self.stream, where="waiting for the device")

    def create_stream(self) -> int:
        """A further stream, for copies that need not wait for other work, nor it for them."""
        stream = self._made("create_stream", _NON_BLOCKING)
        self._streams.append(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Of `create_stream`; what is under way in it ends by itself."""
        self._streams.remove(stream)
        self.driver.call("destroy_stream", stream)

    def create_event(self, timed: bool = False) -> int:
        event = self._made("create_event", 0 if timed else _NO_TIMING)
        self._events.append(event)
        return event

    def destroy_event(self, event: int) -> None:
        """Of `create_event`."""
        self._events.remove(event)
        self.driver.call("destroy_event", event)

    def record(self, event: int, stream: int | None = None) -> None:
        """The event comes to pass when all work so far is done."""
        self.driver.call("record_event", event, stream or self.stream)

    def wait(self, event: int) -> None:
        """Wait on the host for an event; one that was never recorded has come to pass."""
        self.driver.call("synchronise_event", event)

    def wait_in_stream(self, event: int, stream: int | None = None) -> None:
        """What comes in that stream from now on waits for the event, as it was recorded last; the host does not."""
        self.driver.call("wait_in_stream", stream or self.stream, event, 0)

    def seconds_between(self, start: int, end: int) -> float:
        """Of two timed events that came to pass."""
        milliseconds = ctypes.c_float()
        self.driver.call("elapsed_time", ctypes.byref(milliseconds), start, end)
        return milliseconds.value / 1e3

    def load_function(self, binary: bytes | memoryview, symbol: str, shared_bytes: int, where: str) -> int:
        """The function of a binary (a module of its own), which may use that much dynamic shared memory. Raises DeviceError."""
        module = self.load_module(binary, where)
        function = self._made("module_function", module, symbol.encode(), where=f"{where}, symbol {symbol}")
        if shared_bytes > SHARED_WITHOUT_ASKING and self.driver.has("set_function_attribute"):
            self.driver.call("set_function_attribute", function, _SHARED_SIZE_ATTRIBUTE, shared_bytes, where=where)
        return function

    def load_module(self, binary: bytes | memoryview, where: str) -> int:
        image = ctypes.create_string_buffer(bytes(binary), len(binary))
        module = self._made("load_module", image, where=where)
        self._modules.append(module)
        return module

    def capture(self, launches: tuple[Launch, ...], where: str) -> Launch:
        """One launch that does what `launches` do, recorded now without running them."""
        self.driver.call("begin_capture", self.stream, _THREAD_LOCAL, where=where)
        try:
            for launch in launches:
                launch()
            graph = self._made("end_capture", self.stream, trailing=True, where=where)
        except DeviceError:
            self._end_capture_quietly()
            raise
        try:
            executable = self._made("instantiate_graph", graph, 0, where=where)
            self._graphs.append(executable)
        finally:
            self.driver.function("destroy_graph")(graph)  # what was instantiated stands alone
        run, stream, driver = self.driver.function("launch_graph"), self.stream, self.driver

        def replay() -> None:
            code = run(executable, stream)
            if code:
                raise driver.error("launch_graph", code, where)

        return replay

    def close(self) -> None:
        """Free everything. What fails then is not told: a lost device refuses all of it."""
        if self._closed:
            return
        self._closed = True
        operation, handle = self._binding()
        self.driver.function(operation)(handle)
        steps: list[tuple[str, int]] = [("destroy_executable_graph", graph) for graph in self._graphs]
        steps += [("destroy_event", event) for event in self._events]
        steps += [("destroy_stream", stream) for stream in self._streams]
        steps += [("unload_module", module) for module in self._modules]
        steps += [("unmap_memory", address) for address in self._mapped]
        steps += [(operation, address) for address, operation in self._allocations.items()]
        self.driver.function("synchronise_stream")(self.stream)
        for operation, handle in steps:
            self.driver.function(operation)(handle)
        self.driver.function("destroy_stream")(self.stream)
        if self._context is not None:
            self.driver.function("release_context")(self._handle)

    def _binding(self) -> tuple[str, int | None]:
        """What makes the device current on the calling thread."""
        return ("set_context", self._context) if self.driver.has("set_context") else ("set_device", self._handle)

    def _made(self, operation: str, *arguments: object, where: str = "", trailing: bool = False) -> int:
        """The handle that an operation gives through its first (with `trailing`: last) argument."""
        handle = ctypes.c_void_p()
        place = ctypes.byref(handle)
        self.driver.call(operation, *((*arguments, place) if trailing else (place, *arguments)), where=where)
        return handle.value or 0

    def _end_capture_quietly(self) -> None:
        graph = ctypes.c_void_p()
        self.driver.function("end_capture")(self.stream, ctypes.byref(graph))
        if graph.value:
            self.driver.function("destroy_graph")(graph.value)
