"""Parts of benchmarks/cpu_peers.py that need no peer: model files, bounds, and arms as processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors import safe_open
from safetensors.torch import save_file
from tokenspeed.benchmarks.peers.arm_process import ArmFailed, ArmProcess
from tokenspeed.benchmarks.peers.gguf_files import ENCODINGS, gguf_file
from tokenspeed.benchmarks.peers.work import Shape, Work
from tokenspeed.plans.recipe import Source, UnpermuteRope
from tokenspeed.plans.schema import SourceTensor
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate

SERVERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "servers"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 48,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu",
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (48, 64),
    "model.norm.weight": (64,),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.post_attention_layernorm.weight": (64,),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.k_proj.weight": (32, 64),
    "model.layers.0.self_attn.v_proj.weight": (32, 64),
    "model.layers.0.self_attn.o_proj.weight": (64, 64),
    "model.layers.0.mlp.gate_proj.weight": (96, 64),
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
}
ECHO = """
from line_server import serve, timed
class Echo:
    def load(self, path, threads, options): return {"weight_bytes": threads, "note": path}
    def decode(self, batch, context, steps):
        print("a library that prints")
        return timed(lambda: None, steps)
    def prefill(self, tokens): raise ValueError("no prompts")
serve(Echo())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peers") / "hf-bf16"
    directory.mkdir()
    random = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=random).bfloat16() for name, shape in SHAPES.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.mark.parametrize("precision", ENCODINGS)
def test_gguf_files_hold_the_checkpoint(checkpoint: Path, precision: str) -> None:
    reader = GGUFReader(gguf_file(checkpoint, precision))
    assert len(reader.tensors) == len(SHAPES)
    assert {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) == 2} == {ENCODINGS[precision]}
    found = _tensor(reader, "blk.0.ffn_down.weight")
    off = dequantize(found.data, found.tensor_type) - _original(checkpoint, "model.layers.0.mlp.down_proj.weight")
    assert np.abs(off).max() <= {"bf16": 0.0, "int8": 0.02, "int4": 0.6}[precision]


def test_the_runtime_undoes_the_order_of_rotary_rows(checkpoint: Path) -> None:
    found = _tensor(GGUFReader(gguf_file(checkpoint, "bf16")), "blk.0.attn_k.weight")
    source = SourceTensor(name="k", encoding="BF16", shape=(32, 64), bytes=found.data.nbytes)
    stored = {"k": Stored(source, memoryview(found.data.tobytes()))}
    rows = evaluate(UnpermuteRope(of=Source(name="k"), heads=2), stored, None, "k")
    np.testing.assert_array_equal(rows.as_float(), _original(checkpoint, "model.layers.0.self_attn.k_proj.weight"))


def _tensor(reader: GGUFReader, name: str) -> ReaderTensor:
    return next(tensor for tensor in reader.tensors if tensor.name == name)


def _original(checkpoint: Path, name: str) -> np.ndarray:
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        return tensors.get_tensor(name).float().numpy()


def test_bounds_count_each_byte_and_operation_once() -> None:
    shape = Shape.of(CONFIG)
    assert shape.matrix_parameters == sum(np.prod(s) for name, s in SHAPES.items() if len(s) == 2 and "layers" in name)
    assert shape.kv_bytes_per_token(2) == 2 * 2 * 16 * 2
    assert Work("decode", 3, 10).least_bytes(shape, 1000, 2) == 1000 + 3 * 10 * 128
    one = Work("prefill", 1, 1).flops(shape)
    assert one == 2 * shape.matrix_parameters + 2 * 48 * 64 + 4 * 4 * 16


@pytest.fixture
def echo(tmp_path: Path) -> ArmProcess:
    code = f"import sys; sys.path.insert(0, {str(SERVERS)!r}){ECHO}"
    return ArmProcess([sys.executable, "-c", code], tmp_path / "log")


def test_an_arm_answers_and_tells_its_errors(echo: ArmProcess) -> None:
    try:
        assert echo.ask(do="load", path="here", threads=2, options={}) == {"weight_bytes": 2, "note": "here"}
        assert len(echo.ask(do="decode", batch=1, context=4, steps=5)["seconds"]) == 5
        with pytest.raises(ArmFailed, match="no prompts"):
            echo.ask(do="prefill", tokens=4)
        assert echo.waited_seconds() >= 0
        assert (echo.peak_memory_bytes() or 1) > 0
    finally:
        echo.close()


def test_an_arm_that_ends_is_an_error(tmp_path: Path) -> None:
    arm = ArmProcess([sys.executable, "-c", "raise SystemExit('no such library')"], tmp_path / "log")
    try:
        with pytest.raises(ArmFailed, match="no such library"):
            arm.ask(do="load")
    finally:
        arm.close()
