"""onnxruntime-genai on a model that its own builder made: one generator per request, greedy."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
from line_server import WARM_UP_STEPS, serve, timed, versions


class OnnxRuntime:
    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        config = onnxruntime_genai.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = onnxruntime_genai.Model(config)
        described = json.loads((Path(path) / "genai_config.json").read_text())
        self._vocabulary = described["model"]["vocab_size"]
        self._random = np.random.default_rng(0)
        return {
            "weight_bytes": _bytes_read_per_step(Path(path) / described["model"]["decoder"]["filename"]),
            "kv_element_bytes": 4,
            "versions": versions("onnxruntime-genai", "onnxruntime"),
            "note": f"{Path(path).name}, float32 activations and cache",
        }

    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        generator = self._generator(batch, context + steps + WARM_UP_STEPS + 1)
        generator.append_tokens(self._text(batch, context - 1))
        generator.generate_next_token()
        return timed(generator.generate_next_token, steps)

    def prefill(self, tokens: int) -> float:
        generator, text = self._generator(1, tokens + 1), self._text(1, tokens)
        start = time.perf_counter()
        generator.append_tokens(text)
        generator.generate_next_token()
        return time.perf_counter() - start

    def _generator(self, batch: int, length: int) -> Any:
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # a minimum equal to the maximum: no text ends before the last step
        parameters.set_search_options(batch_size=batch, max_length=length, min_length=length, do_sample=False)
        return onnxruntime_genai.Generator(self._model, parameters)

    def _text(self, batch: int, tokens: int) -> np.ndarray:
        return self._random.integers(0, self._vocabulary, (batch, tokens), dtype=np.int32)


def _bytes_read_per_step(path: Path) -> int:
    """Of the model's constants all but tables that only rows are taken from, such as an embedding that is not the head too."""
    graph = onnx.load(path, load_external_data=False).graph
    whole = {name for node in graph.node for place, name in enumerate(node.input) if place or "Gather" not in node.op_type}
    return sum(
        math.prod(constant.dims) * onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
        for constant in graph.initializer
        if constant.name in whole
    )


if __name__ == "__main__":
    serve(OnnxRuntime())
