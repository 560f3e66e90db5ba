"""A sample program over its slots, without a model; and what it should do, one row at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenspeed.passes.sample_program import build_sample_program
from tokenspeed.runtime.device_arrays import TORCH_TYPES
from tokenspeed.runtime.expand import Expansion, expand
from tokenspeed.runtime.functions.base import Context
from tokenspeed.runtime.host_arrays import HostArray, committed
from tokenspeed.runtime.native.runtime import NativeRuntime
from tokenspeed.runtime.operands import Extent, Surroundings
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.sampling_slots import SamplingSlots

SLOTS, MOST_ROWS = 8, 8
NOTHING = np.empty(0, np.int32)


@dataclass
class Sampler:
    """A sample program over its slots, without a model; of native kernels when there is a native runtime."""

    vocabulary: int
    dtype: str = "f32"
    native: NativeRuntime | None = None
    context: Context = field(default_factory=Context)

    def __post_init__(self) -> None:
        assert self.dtype in ("f32", "bf16")
        dtype = "f32" if self.dtype == "f32" else "bf16"
        native = self.native is not None
        self.program, buffers = build_sample_program(self.vocabulary, SLOTS, MOST_ROWS, dtype, native)
        self.state = {buffer.name: committed(tuple(int(extent) for extent in buffer.shape), buffer.dtype) for buffer in buffers}
        self.arena = HostArray(np.full(self.program.buckets[0].arena_bytes, 255, np.uint8), "u8")
        self.logit_slots = HostArray(np.zeros(MOST_ROWS, np.int32), "i32")
        self.around = Surroundings(self.arena, {"logit_slots": self.logit_slots}, self.state, self.context, self.native)
        self.slots = SamplingSlots(self.state, self.vocabulary)

    def admit(self, slot: int, prompt: list[int] | None = None, output: list[int] | None = None, **settings: Any) -> None:
        end_tokens = settings.pop("end_tokens", ())
        parameters = SamplingParameters(max_tokens=10, **{"temperature": 0.0, **settings})
        self.slots.admit(slot, parameters, end_tokens, np.array(prompt or [], np.int32), np.array(output or [], np.int32))

    def run(self, logits: np.ndarray, slots: list[int]) -> Expansion:
        self.logit_slots.data[: len(slots)] = slots
        self.context.step += 1
        expansion = expand(self.program, self.program.buckets[0], Extent(len(slots), len(slots)), self.around)
        expansion.array("logits").tensor.copy_(torch.from_numpy(logits).to(TORCH_TYPES[self.dtype]))
        for launch in expansion.launches:
            launch()
        return expansion

    def tokens(self, logits: np.ndarray, slots: list[int]) -> list[int]:
        return self.run(logits, slots).array("tokens").data.tolist()


def logits_of(rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * scale).astype(np.float32)


def adjusted(row: np.ndarray, prompt: list[int], output: list[int], end: tuple[int, ...], p: SamplingParameters) -> np.ndarray:
    """Penalties, bias and the minimum, token by token."""
    x = row.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(output):
        x[token] -= p.presence_penalty + p.frequency_penalty * output.count(token)
    for token, bias in p.logit_bias.items():
        x[token] += bias
    if len(output) < p.min_tokens:
        x[list(end)] = -math.inf
    return x


def kept(x: np.ndarray, p: SamplingParameters) -> np.ndarray:
    """Probabilities after temperature and the filters, by full sorts."""
    scaled = x / p.temperature
    probabilities = np.exp(scaled - scaled.max())
    keep = np.ones(len(x), bool)
    if 0 < p.top_k < len(x):
        keep &= scaled >= np.sort(scaled)[::-1][p.top_k - 1]
    if p.top_p < 1:
        order = [token for token in np.argsort(-scaled, kind="stable") if keep[token]]
        mass = np.cumsum(probabilities[order])
        last = order[int(np.argmax(mass >= p.top_p * mass[-1]))]
        keep &= scaled >= scaled[last]
    keep &= probabilities >= p.min_p
    probabilities = np.where(keep, probabilities, 0.0)
    return probabilities / probabilities.sum()
