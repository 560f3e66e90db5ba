"""An executor without a model: the sequence's prompt is said again, from its first token, round and round."""

from __future__ import annotations

import threading
import time

import numpy as np
from tokenspeed.plans.errors import UsageError
from tokenspeed.runtime.executor_interface import RowsFailed, Started, StepResult
from tokenspeed.runtime.protocol import SamplingParameters, TokenLogprob
from tokenspeed.runtime.scheduling.step import CommonSize, IntArray, StepBatch


class EchoExecutor:
    """Output token n of a sequence is prompt token n (mod its length), whatever was sampled before, so that a test knows
    every text in advance. `step_seconds` slows steps down; `gate` holds them while cleared; `failures` are raised in turn;
    requests whose prompt holds `poison` have no usable rows; those with `refused` are not admitted."""

    def __init__(self) -> None:
        self.step_seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.poison: int | None = None
        self.refused: int | None = None
        self.batches: list[StepBatch] = []
        self.threads: set[int] = set()
        self.closed = False
        self._prompts: dict[int, IntArray] = {}
        self._sampling: dict[int, SamplingParameters] = {}

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        if self.refused is not None and self.refused in prompt:
            raise UsageError(
                "A request's sampling parameters cannot be honoured.", expected="other tokens", got=str(self.refused)
            )

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self._prompts[slot], self._sampling[slot] = prompt.copy(), sampling

    def start(self, batch: StepBatch, common: CommonSize | None = None) -> Started:
        result = self._run(batch)
        return lambda: result

    def _run(self, batch: StepBatch) -> StepResult:
        self.threads.add(threading.get_ident())
        self.batches.append(batch)
        assert self.gate.wait(20)
        time.sleep(self.step_seconds)
        if self.failures:
            raise self.failures.pop(0)
        slots = batch.logit_slots.tolist()
        positions = batch.positions[batch.logit_rows].tolist()
        tokens = [self._next(slot, position) for slot, position in zip(slots, positions, strict=True)]
        logprobs = tuple(self._logprob(slot, token) for slot, token in zip(slots, tokens, strict=True))
        result = StepResult(np.array(tokens, dtype=np.int32), logprobs)
        named = zip(slots, batch.logit_request_ids, strict=True)
        poisoned = tuple(name for slot, name in named if self.poison in self._prompts[slot])
        if poisoned:
            marked = [-1 if self.poison in self._prompts[slot] else token for slot, token in zip(slots, tokens, strict=True)]
            raise RowsFailed(poisoned, "the logits are not numbers", StepResult(np.array(marked, np.int32), logprobs))
        return result

    def close(self) -> None:
        self.closed = True

    def _next(self, slot: int, position: int) -> int:
        prompt = self._prompts[slot]
        return int(prompt[(position + 1 - len(prompt)) % len(prompt)])

    def _logprob(self, slot: int, token: int) -> TokenLogprob | None:
        wanted = self._sampling[slot].logprobs
        if wanted is None:
            return None
        top = ((token, -0.5), (token + 1, -1.5), (token + 2, float("-inf")))
        return TokenLogprob(token, -0.5, top[:wanted])
