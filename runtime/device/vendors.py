"""What differs between the drivers of CUDA and HIP: the names of the same functions. Everything else is one code path."""

from __future__ import annotations

from dataclasses import dataclass

# A signature has one letter for each argument: p pointer or handle, i int32, u uint32, z size, q uint64, b byte, s text,
# h a handle of 64 bytes, by value.
_FUNCTIONS: dict[str, tuple[str | None, str | None, str]] = {
    "initialise": ("cuInit", "hipInit", "u"),
    "error_name": ("cuGetErrorName", "hipDrvGetErrorName", "ip"),
    "error_text": ("cuGetErrorString", "hipDrvGetErrorString", "ip"),
    "device_count": ("cuDeviceGetCount", "hipGetDeviceCount", "p"),
    "device": ("cuDeviceGet", "hipDeviceGet", "pi"),
    "device_name": ("cuDeviceGetName", "hipDeviceGetName", "pii"),
    "device_attribute": ("cuDeviceGetAttribute", None, "pii"),
    "device_properties": (None, "hipGetDevicePropertiesR0600", "pi"),
    "retain_context": ("cuDevicePrimaryCtxRetain", None, "pi"),
    "release_context": ("cuDevicePrimaryCtxRelease_v2", None, "i"),
    "set_context": ("cuCtxSetCurrent", None, "p"),
    "set_device": (None, "hipSetDevice", "i"),
    "memory_information": ("cuMemGetInfo_v2", "hipMemGetInfo", "pp"),
    "allocate": ("cuMemAlloc_v2", "hipMalloc", "pz"),
    "free": ("cuMemFree_v2", "hipFree", "p"),
    "allocate_host": ("cuMemHostAlloc", "hipHostMalloc", "pzu"),
    "free_host": ("cuMemFreeHost", "hipHostFree", "p"),
    "memory_handle": ("cuIpcGetMemHandle", "hipIpcGetMemHandle", "pp"),
    "map_memory": ("cuIpcOpenMemHandle_v2", "hipIpcOpenMemHandle", "phu"),
    "unmap_memory": ("cuIpcCloseMemHandle", "hipIpcCloseMemHandle", "p"),
    "copy_to_device": ("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync", "ppzp"),
    "copy_to_host": ("cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync", "ppzp"),
    "copy_on_device": ("cuMemcpyDtoDAsync_v2", "hipMemcpyDtoDAsync", "ppzp"),
    "copy_rows": ("cuMemcpy2DAsync_v2", None, "pp"),
    "copy_rows_of_kind": (None, "hipMemcpy2DAsync", "pzpzzzip"),
    "fill_bytes": ("cuMemsetD8Async", "hipMemsetD8Async", "pbzp"),
    "create_stream": ("cuStreamCreate", "hipStreamCreateWithFlags", "pu"),
    "destroy_stream": ("cuStreamDestroy_v2", "hipStreamDestroy", "p"),
    "synchronise_stream": ("cuStreamSynchronize", "hipStreamSynchronize", "p"),
    "create_event": ("cuEventCreate", "hipEventCreateWithFlags", "pu"),
    "destroy_event": ("cuEventDestroy_v2", "hipEventDestroy", "p"),
    "record_event": ("cuEventRecord", "hipEventRecord", "pp"),
    "synchronise_event": ("cuEventSynchronize", "hipEventSynchronize", "p"),
    "wait_in_stream": ("cuStreamWaitEvent", "hipStreamWaitEvent", "ppu"),
    "elapsed_time": ("cuEventElapsedTime", "hipEventElapsedTime", "ppp"),
    "load_module": ("cuModuleLoadData", "hipModuleLoadData", "pp"),
    "unload_module": ("cuModuleUnload", "hipModuleUnload", "p"),
    "module_function": ("cuModuleGetFunction", "hipModuleGetFunction", "pps"),
    # HIP gives a kernel all shared memory there is without being asked.
    "set_function_attribute": ("cuFuncSetAttribute", None, "pii"),
    "launch": ("cuLaunchKernel", "hipModuleLaunchKernel", "puuuuuuuppp"),
    "launch_with_attributes": ("cuLaunchKernelEx", None, "pppp"),
    "begin_capture": ("cuStreamBeginCapture_v2", "hipStreamBeginCapture", "pi"),
    "end_capture": ("cuStreamEndCapture", "hipStreamEndCapture", "pp"),
    "instantiate_graph": ("cuGraphInstantiateWithFlags", "hipGraphInstantiateWithFlags", "ppq"),
    "launch_graph": ("cuGraphLaunch", "hipGraphLaunch", "pp"),
    "destroy_graph": ("cuGraphDestroy", "hipGraphDestroy", "p"),
    "destroy_executable_graph": ("cuGraphExecDestroy", "hipGraphExecDestroy", "p"),
}


@dataclass(frozen=True)
class VendorDriver:
    """Where a vendor's driver is found, and what it calls an operation: (symbol, signature)."""

    name: str
    libraries: tuple[str, ...]
    functions: dict[str, tuple[str, str]]
    help: str


def _named(column: int) -> dict[str, tuple[str, str]]:
    rows = ((operation, row[column], row[2]) for operation, row in _FUNCTIONS.items())
    return {operation: (str(symbol), str(signature)) for operation, symbol, signature in rows if symbol is not None}


VENDORS: dict[str, VendorDriver] = {
    "cuda": VendorDriver("CUDA", ("libcuda.so.1",), _named(0), "nvidia-smi"),
    "hip": VendorDriver("HIP", ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"), _named(1), "rocm-smi"),
}

OUT_OF_MEMORY, WRONG_BINARY, SYMBOL_NOT_FOUND = 2, 209, 500
"""Driver error codes; both vendors number them alike."""

LOST_CODES = frozenset((4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999))
"""Codes after which a context is of no more use: faults of kernels and of hardware, a driver that is shutting down."""
