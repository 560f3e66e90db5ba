"""Builds launches ahead of time: Triton to machine code, gated on what the device can hold. Needs no device and no driver."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...plans.device_integrity import KERNELS_PREFIX
from ...plans.device_kernels import Computed, Constant, DeviceKernel, KernelReceipt, Parameter, Pointer, Scratch
from ...plans.device_limits import ELF_MACHINES, ENDINGS, LIMITS
from ...plans.errors import ModelError, UsageError
from ...plans.weight_layout import WEIGHT_BLOCKS
from ..accelerator import Accelerator
from .kernel import Launch
from .release import VERSION

_SOURCES = f"{__package__}.sources"
_POINTERS = {
    "f32": "*fp32",
    "bf16": "*bf16",
    "f16": "*fp16",
    "i32": "*i32",
    "i64": "*i64",
    "u8": "*u8",
    "i8": "*i8",
    # by their bits
    **dict.fromkeys((*WEIGHT_BLOCKS, "f8e4m3"), "*u8"),
}
_SCALARS = {"i32": "i32", "i64": "i64", "f32": "fp32"}
_DIVISIBILITY = 16
_MOST_SPILLS = 0


def require_triton() -> None:
    """Raises UsageError with the command that installs it unless the release of Triton that kernels are made for is there."""
    try:
        from triton import __version__ as found
    except ImportError:
        found = "none"
    if found.split("+")[0] != VERSION:
        raise UsageError(
            "plans for accelerators are compiled with Triton",
            where="triton",
            expected=VERSION,
            got=found,
            fix=f"pip install triton=={VERSION}",
        )


def build(launch: Launch, accelerator: Accelerator, cache: str | None = None) -> tuple[DeviceKernel, bytes]:
    """The kernel of a launch and its binary, whose entry is named by its digest.

    Launches that differ in numbers of their parameters alone have one binary. `cache` is a directory that Triton keeps what it
    made in, the user's own unless given. Raises UsageError without Triton, ModelError when the code does not fit the accelerator:
    too much shared memory, spilled registers.
    """
    with tempfile.TemporaryDirectory(prefix="tokenspeed-") as private:
        made = compiled(launch, accelerator, cache or str(_cache_folder()))
        ending = ENDINGS[accelerator.kind]
        binary: bytes = made.asm[ending[1:]]
        receipt = _receipt(made, accelerator.kind, binary, private)
    metadata = made.metadata
    digest = hashlib.sha256(binary).hexdigest()
    kernel = DeviceKernel(
        name=_name(launch, accelerator),
        entry=f"{KERNELS_PREFIX}{digest}{ending}",
        symbol=metadata.name,
        warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        parameters=launch.parameters,
        grid=launch.grid,
        cluster=metadata.num_ctas,
        global_scratch=_scratch(metadata, "global"),
        profile_scratch=_scratch(metadata, "profile"),
        dependent_launch=launch.dependent_launch,
        receipt=receipt,
    )
    _check(kernel, accelerator, binary)
    return kernel, binary


def target_of(accelerator: Accelerator) -> Any:
    """Triton's name for the architecture."""
    from triton.backends.compiler import GPUTarget

    if accelerator.kind == "hip":
        return GPUTarget("hip", accelerator.arch, accelerator.warp_size)
    number = re.fullmatch(r"sm_(\d+)a?", accelerator.arch)
    assert number is not None, accelerator.arch
    return GPUTarget("cuda", int(number[1]), accelerator.warp_size)


def signature_of(launch: Launch, names: list[str]) -> tuple[dict[str, str], dict[tuple[int, ...], list[list[object]]]]:
    """Types of a function's arguments, `names` in order, and what its code may rely on of each."""
    parameters = iter(launch.parameters)
    types: dict[str, str] = {}
    promises: dict[tuple[int, ...], list[list[object]]] = {}
    for index, name in enumerate(names):
        if name in launch.constants:
            types[name] = "constexpr"
            continue
        parameter = next(parameters)
        types[name] = _type(parameter)
        if _divides(parameter):
            promises[(index,)] = [["tt.divisibility", _DIVISIBILITY]]
    assert next(parameters, None) is None, f"{launch.source} has fewer arguments than parameters"
    return types, promises


def code_key(launch: Launch) -> str:
    """Equal for launches of the same code: all but the grid and the numbers of parameters."""
    maps = (sorted(launch.constants.items()), sorted(launch.options.items()))
    parameters = [(_type(parameter), _divides(parameter)) for parameter in launch.parameters]
    return repr((launch.source, maps, parameters, launch.warps, launch.stages, launch.dependent_launch))


def compiled(launch: Launch, accelerator: Accelerator, cache: str) -> Any:
    """What Triton makes of a launch: its metadata, and by name each stage of the code."""
    require_triton()
    import triton
    from triton import knobs
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = source_of(launch)
    types, promises = signature_of(launch, function.arg_names)
    kind = ASTSource
    if function.is_gluon():
        kind = GluonASTSource
        _hide_report_of_leaks()
    source = kind(fn=function, signature=types, constexprs=dict(launch.constants), attrs=promises)
    options: dict[str, object] = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    options |= launch.options
    if launch.dependent_launch:
        options["launch_pdl"] = True
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = cache
        knobs.compilation.disable_line_info = True
        return triton.compile(source, target=target_of(accelerator), options=options)


@cache
def _hide_report_of_leaks() -> None:
    """Triton's bindings lose an object for each asynchronous copy of a Gluon function, and list them on stderr when the process
    ends: pages that nobody can act on, after all that has to be said."""

    def close() -> None:
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    atexit.register(close)


def source_of(launch: Launch) -> Any:
    """The Triton function of a launch."""
    file, _, function = launch.source.partition(".")
    return getattr(importlib.import_module(f"{_SOURCES}.{file}"), function)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", tempfile.gettempdir())) / ".cache"
    return Path(root) / "tokenspeed" / "triton"


def _type(parameter: Parameter) -> str:
    if isinstance(parameter, Pointer):
        return _POINTERS[parameter.dtype]
    return _SCALARS[parameter.type] if isinstance(parameter, Constant) else "i32"


def _divides(parameter: Parameter) -> bool:
    if isinstance(parameter, Pointer):
        return parameter.alignment % _DIVISIBILITY == 0
    if isinstance(parameter, Computed):
        return parameter.divisor % _DIVISIBILITY == 0
    return isinstance(parameter.value, int) and parameter.value % _DIVISIBILITY == 0


def _name(launch: Launch, accelerator: Accelerator) -> str:
    """Readable, and unique for what the launch depends on."""
    digest = hashlib.sha256(f"{launch.key} {accelerator.arch} {VERSION}".encode()).hexdigest()
    return f"{launch.source}.{digest[:16]}"


def _scratch(metadata: Any, kind: str) -> Scratch:
    size, alignment = getattr(metadata, f"{kind}_scratch_size"), getattr(metadata, f"{kind}_scratch_align")
    return Scratch(bytes=size, alignment=alignment) if size else Scratch()


def _receipt(made: Any, kind: str, binary: bytes, directory: str) -> KernelReceipt:
    registers, spills = _nvidia_usage(binary, directory) if kind == "cuda" else _amd_usage(made.asm["amdgcn"])
    return KernelReceipt(compiler="triton", version=VERSION, registers=registers, spills=spills)


def _nvidia_usage(binary: bytes, directory: str) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, which holds nothing but what was spilled."""
    from triton import knobs

    path = Path(directory) / "kernel.cubin"
    path.write_bytes(binary)
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), max(int(found[2]), int(found[3]))


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers of a thread (accumulation registers too), and bytes of memory that it spilled to.

    Scalar registers spill into lanes of vector registers, which costs no memory.
    """

    def figure(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", assembly, re.MULTILINE)
        assert found is not None, name
        return int(found[1])

    return figure("vgpr_count"), figure("private_segment_fixed_size")


def _check(kernel: DeviceKernel, accelerator: Accelerator, binary: bytes) -> None:
    limits = LIMITS[accelerator.arch]
    (machine,) = struct.unpack_from("<H", binary, 18)
    gates: Mapping[str, tuple[int, int, bool]] = {
        "bytes of shared memory": (kernel.shared_bytes, limits.shared_bytes, kernel.shared_bytes <= limits.shared_bytes),
        "bytes of spilled registers": (kernel.receipt.spills, _MOST_SPILLS, kernel.receipt.spills <= _MOST_SPILLS),
        "as ELF machine": (machine, ELF_MACHINES[accelerator.kind], machine == ELF_MACHINES[accelerator.kind]),
    }
    for what, (got, expected, passed) in gates.items():
        if not passed:
            raise ModelError(
                f"a kernel for {accelerator.name} does not fit the device",
                where=kernel.name,
                expected=f"{expected} {what}",
                got=str(got),
                fix="choose another --target; tile sizes are in targets/triton",
            )
