"""llama.cpp through libllama's C interface (the bindings of llama-cpp-python): batches of sequences, greedy sampling in C."""

# pyright: reportMissingImports=false
from __future__ import annotations

import ctypes
import random
import time
from pathlib import Path
from typing import Any

import llama_cpp
from line_server import WARM_UP_STEPS, serve, timed, versions

_BATCH_TOKENS = 2048  # libllama's default; its physical batch stays at the default 512


class LlamaCpp:
    """Contexts are made for each request: as many sequences and cells as it needs, each sequence with cells of its own."""

    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise RuntimeError("llama.cpp refused the model")
        self._threads = threads
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        features = llama_cpp.llama_print_system_info().decode()
        return {
            "weight_bytes": llama_cpp.llama_model_size(self._model),
            "kv_element_bytes": 2,
            "versions": versions("llama-cpp-python"),
            "note": f"{Path(path).name}; {features}",
        }

    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        held = context + steps + WARM_UP_STEPS
        handle = self._context(batch, held)
        try:
            self._prompt(handle, context - 1)
            memory = llama_cpp.llama_get_memory(handle)
            for sequence in range(1, batch):
                llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            tokens = [random.randrange(self._vocabulary) for _ in range(batch)]
            rows = llama_cpp.llama_batch_init(batch, 0, 1)
            position = context - 1

            def step() -> None:
                nonlocal position
                self._fill(rows, tokens, [position] * batch, list(range(batch)), every_row=True)
                self._decode(handle, rows)
                for row in range(batch):
                    tokens[row] = llama_cpp.llama_sampler_sample(self._sampler, handle, row)
                position += 1

            seconds = timed(step, steps)
            llama_cpp.llama_batch_free(rows)
            return seconds
        finally:
            llama_cpp.llama_free(handle)

    def prefill(self, tokens: int) -> float:
        handle = self._context(1, tokens)
        try:
            start = time.perf_counter()
            self._prompt(handle, tokens)
            llama_cpp.llama_sampler_sample(self._sampler, handle, -1)
            return time.perf_counter() - start
        finally:
            llama_cpp.llama_free(handle)

    def _context(self, sequences: int, tokens: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        cells = -(-tokens // 256) * 256  # per sequence, as libllama rounds
        parameters.n_ctx = cells * sequences
        parameters.n_seq_max = sequences
        parameters.n_batch = min(_BATCH_TOKENS, cells * sequences)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = False
        handle = llama_cpp.llama_init_from_model(self._model, parameters)
        if not handle:
            raise RuntimeError("llama.cpp could not make a context")
        return handle

    def _prompt(self, handle: Any, tokens: int) -> None:
        """`tokens` random tokens of sequence 0, logits for the last."""
        rows = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        for start in range(0, tokens, _BATCH_TOKENS):
            count = min(_BATCH_TOKENS, tokens - start)
            text = [random.randrange(self._vocabulary) for _ in range(count)]
            self._fill(rows, text, list(range(start, start + count)), [0] * count, every_row=False)
            self._decode(handle, rows)
        llama_cpp.llama_batch_free(rows)

    def _decode(self, handle: Any, rows: Any) -> None:
        code = llama_cpp.llama_decode(handle, rows)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(handle)

    @staticmethod
    def _fill(rows: Any, tokens: list[int], positions: list[int], sequences: list[int], every_row: bool) -> None:
        count = len(tokens)
        rows.n_tokens = count
        ctypes.memmove(rows.token, (ctypes.c_int32 * count)(*tokens), 4 * count)
        ctypes.memmove(rows.pos, (ctypes.c_int32 * count)(*positions), 4 * count)
        for row, sequence in enumerate(sequences):
            rows.n_seq_id[row] = 1
            rows.seq_id[row][0] = sequence
            rows.logits[row] = every_row or row == count - 1


if __name__ == "__main__":
    serve(LlamaCpp())
