"""What a user may ask of a compile; every option is spelled as on the command line and travels in the plan."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from ..passes.choose_weight_types import Quantization
from ..passes.placing.pins import Pin
from ..passes.schedule import TrafficProfile

Overlap = Literal["auto", "always", "never"]

DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class CompileOptions:
    """Sizes are in tokens, memory in bytes. None means: derived from the model, the target or the traffic."""

    target: str = "cpu"
    dtype: Literal["auto", "f32", "bf16", "f16"] = "auto"
    max_context: int | None = None
    memory: int | None = None
    host_kv: int = 0
    max_sequences: int | None = None
    prefill_chunk: int | None = None
    bundle_weights: bool = False
    quantize: Quantization = "auto"
    kv_dtype: Literal["auto", "f8e4m3"] = "auto"
    kernels: Literal["auto", "library"] = "auto"
    collectives: Literal["auto", "library"] = "auto"
    overlap: Overlap = "auto"
    window_pools: bool = True
    parallel: str = "auto"
    placement: tuple[Pin, ...] = ()
    traffic: TrafficProfile = field(default_factory=TrafficProfile)

    def with_limits(self, max_sequences: int, prefill_chunk: int) -> CompileOptions:
        """The same, with these where nothing was asked for."""
        return replace(
            self,
            max_sequences=max_sequences if self.max_sequences is None else self.max_sequences,
            prefill_chunk=prefill_chunk if self.prefill_chunk is None else self.prefill_chunk,
        )

    def spelled(self) -> dict[str, str]:
        """Option name -> value, for the plan's provenance."""
        plain = (item.name for item in fields(self) if item.name not in {"traffic", "placement"})
        named = {name.replace("_", "-"): getattr(self, name) for name in plain}
        if self.placement:
            named["placement"] = "; ".join(pin.summary for pin in self.placement)
        traffic = {f"traffic.{item.name}": getattr(self.traffic, item.name) for item in fields(self.traffic)}
        given = {name: value for name, value in {**named, **traffic}.items() if value is not None}
        return {name: str(value) for name, value in sorted(given.items())}
