"""OpenVINO's CPU plugin on a stateful model that optimum-intel exported: one inference per step, greedy."""

# pyright: reportMissingImports=false
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from line_server import serve, timed, versions
from openvino import opset13


class OpenVino:
    """The keys and values are the model's own state; resetting it starts a new batch of sequences."""

    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **options}
        model = core.read_model(str(Path(path) / "openvino_model.xml"))
        _keep_last_row(model)
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._inputs = {port.get_any_name() for port in compiled.inputs}
        self._vocabulary = compiled.output("logits").partial_shape[-1].get_length()
        self._random = np.random.default_rng(0)
        used = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        return {
            "weight_bytes": (Path(path) / "openvino_model.bin").stat().st_size,
            "kv_element_bytes": compiled.get_property("KV_CACHE_PRECISION").size,
            "versions": versions("openvino", "optimum-intel", "nncf"),
            "note": ", ".join(f"{name} {_shown(compiled.get_property(name))}" for name in used),
        }

    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        self._request.reset_state()
        self._infer(self._text(batch, context - 1), 0)
        tokens = self._text(batch, 1)
        position = context - 1

        def step() -> None:
            nonlocal tokens, position
            tokens = self._infer(tokens, position)
            position += 1

        return timed(step, steps)

    def prefill(self, tokens: int) -> float:
        self._request.reset_state()
        text = self._text(1, tokens)
        start = time.perf_counter()
        self._infer(text, 0)
        return time.perf_counter() - start

    def _text(self, batch: int, tokens: int) -> np.ndarray:
        return self._random.integers(0, self._vocabulary, (batch, tokens))

    def _infer(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """The next token of each row, [batch, 1]."""
        batch, count = tokens.shape
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, position + count), np.int64),
            "position_ids": np.broadcast_to(np.arange(position, position + count), (batch, count)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._inputs}, share_inputs=True)
        return self._request.get_tensor("logits").data[:, -1].argmax(-1)[:, None]


def _shown(value: Any) -> str:
    return value.get_type_name() if isinstance(value, openvino.Type) else str(value)


def _keep_last_row(model: Any) -> None:
    """Let the head see the last row of each sequence only, as OpenVINO GenAI's pipeline does: prompts need no more logits."""
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    bounds = (np.array([value]) for value in (-1, np.iinfo(np.int64).max, 1, 1))
    head.input(0).replace_source_output(opset13.slice(head.input_value(0), *bounds).output(0))
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    serve(OpenVino())
