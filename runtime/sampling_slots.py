"""Sets up sampling slots: a request's parameters as the sampling ABI wants them (plans/sampling.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import PlanError, UsageError
from ..plans.sampling import (
    BIAS,
    BIAS_TOKENS,
    END_TOKENS,
    FILTERS,
    LOGPROBS,
    MINIMUM_TOKENS,
    PENALTIES,
    RANDOM,
    TOP_LOGPROBS,
    slot_buffers,
)
from ..plans.schema import Manifest
from .host_arrays import HostArray
from .protocol import SamplingParameters
from .scheduling.step import IntArray

# Below this a division by the temperature says nothing that an argmax does not.
_LEAST_TEMPERATURE = 1e-5
_COUNTS = ("prompt_seen", "output_counts")


def check_slot_buffers(manifest: Manifest) -> None:
    """Raise PlanError unless the plan's slot buffers are those of the sampling ABI."""
    found = {buffer.name: buffer for buffer in manifest.slot_buffers}
    slots = found["last_tokens"].shape[0] if "last_tokens" in found else 0
    for expected in slot_buffers(manifest.model.vocabulary, slots if isinstance(slots, int) else 0):
        if found.get(expected.name) != expected:
            raise PlanError(
                "The plan's slot buffers are not those of this runtime's sampling.",
                where=f"slot_buffers, {expected.name}",
                expected=f"{expected.dtype}{list(expected.shape)}",
                got=str(found.get(expected.name)),
                fix="compile the plan again with this version of tokenspeed-compile",
            )


class SamplingSlots:
    """The slot buffers as arrays; one request in each slot."""

    def __init__(self, state: Mapping[str, HostArray], vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._arrays: dict[str, NDArray[Any]] = {buffer.name: state[buffer.name].data for buffer in slot_buffers(vocabulary, 1)}
        self._without_counts = tuple(name for name in self._arrays if name not in _COUNTS)
        self.features = self._arrays["features"]
        self.logprobs_wanted = self._arrays["logprobs_wanted"]

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> tuple[str, ...]:
        """Fill a slot; the names of the buffers whose row was written: counts of tokens are, and matter, only with penalties.

        Raises UsageError for what no slot can hold; the slot is then unchanged.
        """
        _require(0 <= slot < len(self.features), "a sampling slot of this plan", slot)
        for tokens in (prompt, output):
            self.check(sampling, end_tokens, tokens)
        arrays, features = self._arrays, _features(sampling, end_tokens, self._vocabulary)
        arrays["features"][slot] = features
        arrays["last_tokens"][slot] = output[-1] if len(output) else prompt[-1] if len(prompt) else 0
        arrays["output_position"][slot] = len(output)
        arrays["seed"][slot] = np.uint64(sampling.seed % (1 << 64)).astype(np.int64)
        arrays["logprobs_wanted"][slot] = -1 if sampling.logprobs is None else sampling.logprobs
        for name in ("temperature", "top_k", "top_p", "min_p", "min_tokens"):
            arrays[name][slot] = getattr(sampling, name)
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            arrays[name][slot] = getattr(sampling, name)
        arrays["end_tokens"][slot] = -1
        arrays["end_tokens"][slot, : len(end_tokens)] = end_tokens
        self._fill_bias(slot, sampling.logit_bias)
        if not features & PENALTIES:
            return self._without_counts
        self._count(slot, prompt, output)
        return tuple(self._arrays)

    def _fill_bias(self, slot: int, bias: dict[int, float]) -> None:
        self._arrays["bias_tokens"][slot] = -1
        if bias:
            self._arrays["bias_tokens"][slot, : len(bias)] = list(bias.keys())
            self._arrays["bias_values"][slot, : len(bias)] = list(bias.values())

    def _count(self, slot: int, prompt: IntArray, output: IntArray) -> None:
        seen, counts = (self._arrays[name][slot] for name in _COUNTS)
        seen[:] = 0
        seen[prompt] = 1
        counts[:] = np.bincount(output, minlength=self._vocabulary)

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], tokens: IntArray) -> None:
        """Raise UsageError for parameters or tokens that no slot can hold."""
        vocabulary, top = self._vocabulary, np.iinfo(np.int32).max
        bias = sampling.logit_bias
        _require(len(end_tokens) <= END_TOKENS, f"at most {END_TOKENS} end tokens", len(end_tokens))
        _require(len(bias) <= BIAS_TOKENS, f"a logit_bias of at most {BIAS_TOKENS} tokens", len(bias))
        _require(all(0 <= token < vocabulary for token in bias), f"logit_bias tokens below {vocabulary}", [*bias][:8])
        _require(all(np.isfinite(value) for value in bias.values()), "finite logit_bias values", "others")
        wanted = sampling.logprobs
        _require(wanted is None or 0 <= wanted <= TOP_LOGPROBS, f"at most {TOP_LOGPROBS} logprobs", wanted)
        for name in ("temperature", "min_p", "presence_penalty", "frequency_penalty"):
            _require(bool(np.isfinite(getattr(sampling, name))), f"a finite {name}", getattr(sampling, name))
        _require(sampling.temperature >= 0, "a temperature of 0 or more", sampling.temperature)
        _require(0 <= sampling.min_p <= 1, "a min_p from 0 to 1", sampling.min_p)
        _require(0 < sampling.top_p <= 1, "a top_p above 0, at most 1", sampling.top_p)
        _require(0 < sampling.repetition_penalty < np.inf, "a repetition_penalty above 0", sampling.repetition_penalty)
        _require(-top <= sampling.top_k <= top and 0 <= sampling.min_tokens <= top, "counts of 31 bits", "others")
        inside = len(tokens) == 0 or (tokens.min() >= 0 and tokens.max() < vocabulary)
        _require(bool(inside), f"tokens from 0 to {vocabulary - 1}", "others")


def _features(sampling: SamplingParameters, end_tokens: tuple[int, ...], vocabulary: int) -> int:
    features = 0
    if sampling.temperature >= _LEAST_TEMPERATURE:
        features |= RANDOM
        if 0 < sampling.top_k < vocabulary or sampling.top_p < 1 or sampling.min_p > 0:
            features |= FILTERS
    if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
        features |= PENALTIES
    if sampling.logit_bias:
        features |= BIAS
    if sampling.min_tokens > 0 and end_tokens:
        features |= MINIMUM_TOKENS
    if sampling.logprobs is not None:
        features |= LOGPROBS
    return features


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise UsageError("A request's sampling parameters cannot be honoured.", expected=expected, got=str(got))
