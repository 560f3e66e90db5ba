"""The tier of KV blocks in host memory that a plan asks for: what it takes of each rank's host, and what it should buy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .perf_model import StepModel, chunk_work, prefill_chunks
from .schema import Manifest
from .stages import of_stage
from .units import format_bytes, format_seconds

HOST_LINK = "host_link"
"""The rate, in B/s each way, at which blocks go between a rank's device and its host's memory."""

_EXAMPLE_TOKENS = 32768


@dataclass(frozen=True)
class HostTier:
    """Of each rank. `seconds` are predictions for a session of `example_tokens`: to bring all of it back, and to compute it."""

    blocks: int
    tokens: int
    bytes: int
    page_locked: bool
    link: float
    link_basis: str
    example_tokens: int
    reload_seconds: float
    recompute_seconds: float

    @property
    def text(self) -> str:
        """On one line, for people."""
        kind = "page-locked host memory" if self.page_locked else "memory"
        size = f"{self.blocks} blocks = {self.tokens:,} tokens, {format_bytes(self.bytes)} of {kind} for each rank"
        reload = f"come back in {format_seconds(self.reload_seconds)} at {self.link / 1e9:.1f} GB/s ({self.link_basis})"
        recompute = f"computed anew in {format_seconds(self.recompute_seconds)}"
        return f"{size}; {self.example_tokens:,} tokens {reload}, {recompute}"

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def host_tier_bytes(manifest: Manifest) -> int:
    """Host memory that the tier takes of a rank; of the stage that needs most where there are several."""
    stages = [of_stage(manifest, number).kv.host_bytes for number in range(len(manifest.stages))]
    return max(stages, default=manifest.kv.host_bytes)


def host_tier(manifest: Manifest) -> HostTier | None:
    """None where the plan has no such tier."""
    kv, performance = manifest.kv, manifest.performance
    if not any(kv.pool_host_blocks):
        return None
    link = performance.rates[HOST_LINK]
    tokens = min(_EXAMPLE_TOKENS, manifest.model.max_context)
    chunks, model = prefill_chunks(tokens, 0, manifest.schedule.prefill_chunk), StepModel(performance)
    return HostTier(
        blocks=kv.host_blocks,
        tokens=kv.host_blocks * kv.block_tokens,
        bytes=host_tier_bytes(manifest),
        page_locked=manifest.device is not None,
        link=link.value,
        link_basis=link.basis,
        example_tokens=tokens,
        reload_seconds=_bytes_of_session(manifest, tokens) / link.value,
        recompute_seconds=sum(model.seconds(chunk_work(before, rows)) for before, rows in chunks),
    )


def _bytes_of_session(manifest: Manifest, tokens: int) -> int:
    """What a session has in the caches of a rank; of a window, as much as is seen."""
    kv = manifest.kv
    stages = [of_stage(manifest, number).kv for number in range(len(manifest.stages))] or [kv]
    seen = [tokens, *(min(tokens, pool.window) for pool in kv.windows)]
    blocks = [-(-count // kv.block_tokens) for count in seen]
    return max(sum(count * size for count, size in zip(blocks, stage.pool_block_bytes, strict=True)) for stage in stages)
