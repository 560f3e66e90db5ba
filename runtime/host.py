"""Whether this machine can run a plan: instruction set, ranks, memory. Decided before torch is imported."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ..plans.errors import MemoryPlanError, TargetMismatch
from ..plans.host_tier import host_tier_bytes
from ..plans.integrity import ranks
from ..plans.schema import Manifest
from ..plans.units import format_bytes

SUPPORTED_KINDS = ("cpu", "cuda", "hip")

_CPU_INFO = Path("/proc/cpuinfo")
_CONTROL_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def host_features(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """Instruction-set features of this machine by their /proc/cpuinfo names (`flags` on x86, `Features` on Arm), present on
    every core. Where there is no such file, the machine's architecture alone (`x86_64`, `arm64`).
    """
    try:
        text = cpu_info.read_text(errors="replace")
    except OSError:
        return frozenset({platform.machine()})
    cores = [
        frozenset(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.startswith(("flags\t", "flags ", "Features"))
    ]
    return frozenset.intersection(*cores) if cores else frozenset({platform.machine()})


def host_memory_bytes() -> int:
    """Memory this process may use: the machine's, or its control group's limit if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTROL_GROUP_LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def check_host(manifest: Manifest, *, features: frozenset[str] | None = None, memory_bytes: int | None = None) -> None:
    """Refuse a plan this machine cannot run; `features` and `memory_bytes` stand in for the machine's own.

    Raises `TargetMismatch` for another kind of device or missing features, and `MemoryPlanError` when the planned memory exceeds
    the machine's. A plan for an accelerator is compared with it when the engine opens it; here, what it asks of the host.
    """
    target, recompile = manifest.target, f"tokenspeed-compile {manifest.model.name} --target cpu"
    if target.kind not in SUPPORTED_KINDS:
        expected = " or ".join(SUPPORTED_KINDS)
        raise TargetMismatch(
            "The plan is for another kind of device.", where="target.kind", expected=expected, got=target.kind, fix=recompile
        )
    available = host_memory_bytes() if memory_bytes is None else memory_bytes
    if manifest.device is not None:  # the engine asks the device, whose driver this process must not open
        _check_host_tier(manifest, available)
        return
    _check_features(manifest, host_features() if features is None else features, recompile)
    _check_memory(manifest, available)


def _check_features(manifest: Manifest, present: frozenset[str], recompile: str) -> None:
    missing = [feature for feature in manifest.target.features if feature not in present]
    if missing:
        raise TargetMismatch(
            "This machine lacks instructions the plan was compiled for.",
            where="target.features",
            expected=" ".join(manifest.target.features),
            got=f"{platform.machine()} without {' '.join(missing)}",
            fix=f"{recompile}   (on this machine)",
        )


def _ranks_here(manifest: Manifest) -> int:
    """Ranks that run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks(manifest)))


def _check_host_tier(manifest: Manifest, available: int) -> None:
    needed = host_tier_bytes(manifest) * _ranks_here(manifest)
    if needed > available:
        raise MemoryPlanError(
            f"The plan's host tier needs {format_bytes(needed - available)} more page-locked memory than this machine has.",
            where="kv.host_blocks",
            expected=f"at most {format_bytes(available)} for all ranks on this host",
            got=format_bytes(needed),
            fix=f"tokenspeed-compile {manifest.model.name}, with a smaller --host-kv",
        )


def _check_memory(manifest: Manifest, available: int) -> None:
    tier = host_tier_bytes(manifest)
    smaller = ", --host-kv" if tier else ""
    needed = (manifest.memory.total + tier) * _ranks_here(manifest)
    if needed > available:
        raise MemoryPlanError(
            f"The plan needs {format_bytes(needed - available)} more memory than this machine has.",
            where="memory",
            expected=f"at most {format_bytes(available)}",
            got=format_bytes(needed),
            fix=f"tokenspeed-compile {manifest.model.name}, with a smaller KV pool{smaller} or --max-context",
        )
