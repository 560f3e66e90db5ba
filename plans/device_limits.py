"""What the accelerators that plans may be for can hold: the vendors' published limits of one block and one grid."""

from __future__ import annotations

from dataclasses import dataclass

MAX_THREADS = 1024
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_CLUSTER = 8  # the largest that runs without a kernel's own consent

ELF_MACHINES = {"cuda": 190, "hip": 224}
"""EM_CUDA and EM_AMDGPU: `e_machine` of a binary."""

ENDINGS = {"cuda": ".cubin", "hip": ".hsaco"}


@dataclass(frozen=True)
class DeviceLimits:
    """`shared_bytes` is what one block may use at most, opted in; `clusters` says whether blocks may form any."""

    vendor: str
    warp_size: int
    shared_bytes: int
    clusters: bool


LIMITS = {
    "sm_80": DeviceLimits("cuda", 32, 163 << 10, False),
    "sm_90a": DeviceLimits("cuda", 32, 227 << 10, True),
    "sm_100a": DeviceLimits("cuda", 32, 227 << 10, True),
    "gfx942": DeviceLimits("hip", 64, 64 << 10, False),
    "gfx950": DeviceLimits("hip", 64, 160 << 10, False),
}
