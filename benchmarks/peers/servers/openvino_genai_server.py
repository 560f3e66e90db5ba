"""OpenVINO GenAI's continuous batching (paged attention), greedy: requests added, then stepped by hand."""

# pyright: reportMissingImports=false
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from line_server import WARM_UP_STEPS, serve, versions

_STEP_TOKENS = 8192  # a whole prompt in one step: splitting was slower
_CACHE_GIB = 2


class OpenVinoGenAi:
    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.cache_size = _CACHE_GIB
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **options}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduler_config=scheduler, device="CPU", properties=properties
        )
        self._random = np.random.default_rng(0)
        self._requests = 0
        return {
            "weight_bytes": (Path(path) / "openvino_model.bin").stat().st_size,
            "kv_element_bytes": 1,
            "versions": versions("openvino-genai", "openvino"),
            "note": f"paged attention, at most {_STEP_TOKENS} tokens a step",
        }

    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        """A request in decode gives one token a step; prompts are done when as many steps are left as tokens are wanted."""
        handles = [self._add(context - 1, WARM_UP_STEPS + steps + batch) for _ in range(batch)]
        seconds = []
        while self._pipeline.has_non_finished_requests():
            start = time.perf_counter()
            self._pipeline.step()
            seconds.append(time.perf_counter() - start)
        del handles  # a request whose handle is gone is dropped
        return seconds[-steps - batch : -batch]

    def prefill(self, tokens: int) -> float:
        handle = self._add(tokens, 1)
        start = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        seconds = time.perf_counter() - start
        del handle
        return seconds

    def _add(self, tokens: int, wanted: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = wanted
        config.ignore_eos, config.do_sample = True, False
        text = openvino.Tensor(self._random.integers(300, 40000, (1, tokens)))
        self._requests += 1
        return self._pipeline.add_request(self._requests, text, config)


if __name__ == "__main__":
    serve(OpenVinoGenAi())
