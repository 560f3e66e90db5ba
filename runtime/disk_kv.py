"""`--disk-kv`: which plans can have a tier on disk, and the store for one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..plans.errors import UsageError
from ..plans.integrity import ranks
from ..plans.schema import Manifest

if TYPE_CHECKING:  # a refusal must not wait for numpy
    from .kv_store import KvStore, StoreLayout

_FORM = b"tokenspeed-kv-store-1"


def check_disk_kv(manifest: Manifest, folder: Path, most_bytes: int | None) -> int:
    """How large the tier may be. Raises UsageError for a plan that can have none, where nobody says how large it is to be, and
    where there is no such folder."""
    kv, count = manifest.kv, ranks(manifest)
    refused = (
        (count > 1, "one rank: each rank has a part of every block", f"{count} ranks", "compile for one device"),
        (
            bool(kv.windows),
            "no pools of window layers",
            f"{len(kv.windows)} of them",
            "compile with --no-window-pools",
        ),
        (not kv.shares_prefixes, "a model whose blocks hold all that a prefix leaves", "recurrent states", ""),
        (not kv.host_blocks, "a plan with a tier in host memory, above the one on disk", "none", "compile with --host-kv SIZE"),
    )
    for wrong, expected, got, fix in refused:
        if wrong:
            fix = f"{fix}, or serve without --disk-kv" if fix else "serve without --disk-kv"
            raise UsageError("this plan can have no tier of KV on disk", where="--disk-kv", expected=expected, got=got, fix=fix)
    if most_bytes is None:
        raise UsageError(
            "how large the tier on disk may be is not said",
            where="--disk-kv-bytes",
            expected="a size, such as 500GiB",
            got="nothing",
            fix="give --disk-kv-bytes SIZE",
        )
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder for KV on disk",
            where=f"--disk-kv {folder}",
            expected="a folder",
            got="a file" if folder.exists() else "nothing",
            fix=f"mkdir -p {folder}",
        )
    return most_bytes


def layout_of(manifest: Manifest) -> StoreLayout:
    """What a unit is on disk. Two plans read each other's where their KV is interchangeable and lies alike in memory."""
    from .kv_store import StoreLayout

    kv = manifest.kv
    groups = [msgspec.structs.replace(group, name="") for group in kv.groups if group.layers]
    form = msgspec.json.encode((kv.compatibility, kv.identity_tokens, kv.block_tokens, groups))
    unit_blocks = kv.identity_tokens // kv.block_tokens
    return StoreLayout(unit_blocks * kv.bytes_per_block, kv.identity_tokens, sha256(_FORM + form).digest())


def open_store(manifest: Manifest, folder: str, most_bytes: int) -> KvStore:
    """Raises UsageError where the folder cannot be used."""
    from .kv_store import KvStore

    return KvStore(Path(folder), most_bytes, layout_of(manifest))
