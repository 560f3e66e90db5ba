"""Acceptance: a plan compiled from a model directory, run by the real runtime, gives transformers' logits.

For every supported family, with tiny random weights in float32: several packed sequences of different lengths, prefill
whole and in chunks, decoding beside prefill, one row alone. GGUF too, and checkpoints in several files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import Compilation, compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.choose_weight_types import Quantization
from tokenspeed.passes.halve_rows import halve_rows
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.program import Repeat
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.accuracy import measure_accuracy
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.goldens import replay_goldens
from transformers import PreTrainedModel

from .compiler.frontends.tiny_gguf import FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, LAYERS, Tiny
from .mesh import ROWS_OF_NORMS, mesh, mesh_difference
from .tiny_models import CONTEXT, FAMILIES, MIXTURES, MORE_FAMILIES, ORIGINAL_MAXIMUM, build, remember_traces, save

TOLERANCE = 1e-4
SEQUENCES, CHUNK = 48, 48
BLOCKS_PER_SEQUENCE = 2

# each step: (sequence, first position, rows); sequences of one row come first
PACKED = (((0, 0, 17), (1, 0, 9), (2, 0, 4)),)
CHUNKED = (((0, 0, 11),), ((0, 11, 1), (1, 0, 7)), ((1, 7, 1), (0, 12, 20)), ((0, 32, 1), (1, 8, 30), (2, 0, 5)))
DECODED = (((3, 0, 6), (4, 0, 2)), *((((3, 6 + n, 1), (4, 2 + n, 1))) for n in range(5)), ((3, 11, 1),))
ONE_ROW = (((5, 0, 1),), ((5, 1, 1),))
PAST_THE_ORIGINAL_MAXIMUM = (
    ((0, 0, ORIGINAL_MAXIMUM - 1),),
    *(((0, ORIGINAL_MAXIMUM - 1 + n, 1),) for n in range(3)),
    ((0, ORIGINAL_MAXIMUM + 2, 48),),
    ((0, ORIGINAL_MAXIMUM + 50, 40),),
)
RUNS = {
    "packed": PACKED,
    "chunked": CHUNKED,
    "decoded": DECODED,
    "one row": ONE_ROW,
    "past the maximum": PAST_THE_ORIGINAL_MAXIMUM,
}
ALL_KINDS = (*PACKED, *CHUNKED, *DECODED)
# transformers turns a whole sequence by the long factors once it is past the original maximum, a plan always
ALL_PAST_THE_ORIGINAL_MAXIMUM = (
    ((0, 0, ORIGINAL_MAXIMUM + 8), (1, 0, 7)),
    ((1, 7, 1), (0, ORIGINAL_MAXIMUM + 8, 5)),
    ((0, ORIGINAL_MAXIMUM + 13, 1), (1, 8, ORIGINAL_MAXIMUM)),
    ((0, ORIGINAL_MAXIMUM + 14, 1), (1, ORIGINAL_MAXIMUM + 8, 1)),
)

Step = Sequence[tuple[int, int, int]]


@dataclass
class Compiled:
    state: Compilation
    plan: Plan
    executor: PlanExecutor
    model: PreTrainedModel
    tokens: NDArray[np.int32]

    def expected(self, sequence: int, length: int) -> NDArray[np.float32]:
        """transformers' logits of a whole sequence, [length, vocabulary]."""
        ids = torch.from_numpy(self.tokens[sequence, :length].astype(np.int64))[None]
        with torch.no_grad():
            return self.model(input_ids=ids, use_cache=False).logits[0].numpy()

    def logits(self, step: Step) -> list[NDArray[np.float32]]:
        """The plan's logits of every row of a step, by sequence."""
        rows = [Rows(key, start, self.tokens[key, start : start + count].tolist()) for key, start, count in step]
        batch = fixed_batch(rows, BLOCKS_PER_SEQUENCE, self.plan.manifest.kv.block_tokens, all_logits=True)
        found = self.executor.logits_for(batch)
        return np.split(found, np.cumsum([count for _, _, count in step])[:-1])


def compiled(source: Path, weights: Path, model: PreTrainedModel, quantize: Quantization = "none") -> Compiled:
    traffic = TrafficProfile(prompt_tokens=CONTEXT, output_tokens=CONTEXT)
    options = CompileOptions(
        dtype="f32", max_context=CONTEXT, max_sequences=SEQUENCES, prefill_chunk=CHUNK, traffic=traffic, quantize=quantize
    )
    with context():
        state = compile_model(open_model(source), options, lambda _phase, _state: None)
    assert state.manifest is not None
    path = weights.parent / f"{weights.name}.plan.bin"
    write_plan(path, state.manifest, state.entries)
    plan = Plan.open(path)
    executor = load_executor(plan, weights=str(weights), threads=None, report=lambda _phase: None)
    vocabulary = plan.manifest.model.vocabulary
    tokens = np.random.default_rng(11).integers(0, vocabulary, (6, CONTEXT), dtype=np.int32)
    assert plan.manifest.kv.blocks >= 6 * BLOCKS_PER_SEQUENCE
    return Compiled(state, plan, executor, model, tokens)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Traces are remembered, and one thread does for arrays this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    name: str = request.param
    model = build(FAMILIES[name])
    shards = {"max_shard_size": "60KB"} if name == "qwen3" else {}
    directory = save(model, tmp_path_factory.mktemp("models") / name, **shards)
    assert (len(list(directory.glob("*.safetensors"))) > 2) == (name == "qwen3")
    return compiled(directory, directory, model)


def check(model: Compiled, steps: Sequence[Step]) -> None:
    lengths: dict[int, int] = {}
    for key, start, count in (part for step in steps for part in step):
        lengths[key] = max(lengths.get(key, 0), start + count)
    expected = {key: model.expected(key, length) for key, length in lengths.items()}
    for step in steps:
        for (key, start, count), found in zip(step, model.logits(step), strict=True):
            worst = np.abs(found - expected[key][start : start + count]).max()
            assert worst <= TOLERANCE, f"sequence {key}, rows {start} to {start + count}: {worst}"


@pytest.mark.parametrize("run", RUNS)
def test_logits_are_those_of_transformers(family: Compiled, run: str) -> None:
    check(family, RUNS[run])


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 4}, {"ep": 2, "tp": 2}, {"pp": 3}, {"pp": 2, "tp": 2}], ids=str)
def test_several_ranks_compute_what_one_does(family: Compiled, sizes: dict[str, int]) -> None:
    with context():
        assert mesh_difference(family.state.traced, family.state.ir_texts["raise"], mesh(**sizes)) <= TOLERANCE


@pytest.mark.parametrize("sizes", [{"tp": 3}, {"ep": 2, "tp": 2}, {"pp": 2, "tp": 2}], ids=str)
def test_ranks_may_share_the_rows_of_norms(family: Compiled, sizes: dict[str, int]) -> None:
    with context():
        found = mesh_difference(family.state.traced, family.state.ir_texts["raise"], mesh(**sizes), ROWS_OF_NORMS)
    assert found <= TOLERANCE


def test_layers_in_halves_of_the_rows(family: Compiled) -> None:
    with context():
        raised = family.state.ir_texts["raise"]
        assert mesh_difference(family.state.traced, raised, mesh(tp=2), change=halve_rows) <= TOLERANCE


def test_the_check_can_fail(family: Compiled) -> None:
    """Rows at positions one too high, which rope must notice."""
    shifted = Rows(0, 1, family.tokens[0, :6].tolist())
    batch = fixed_batch([shifted], BLOCKS_PER_SEQUENCE, family.plan.manifest.kv.block_tokens, all_logits=True)
    found = family.executor.logits_for(batch)
    assert np.abs(found - family.expected(0, 6)).max() > 10 * TOLERANCE


def test_programs_do_not_grow_with_depth(family: Compiled) -> None:
    assert family.state.step is not None
    repeats = [(item.first, item.count, item.stride) for item in family.state.step.body if isinstance(item, Repeat)]
    assert repeats == ([(0, 2, 2), (4, 1, 1)] if family.plan.manifest.model.model_type == "qwen2" else [(0, 3, 1)])


def test_goldens_hold(family: Compiled) -> None:
    outcomes = replay_goldens(family.plan, None, lambda _phase: None)
    assert outcomes and all(outcome.passed for outcome in outcomes), outcomes


@pytest.mark.parametrize("name", MORE_FAMILIES | MIXTURES)
def test_more_families(name: str, tmp_path: Path) -> None:
    model = build((MORE_FAMILIES | MIXTURES)[name])
    directory = save(model, tmp_path / "model")
    found = compiled(directory, directory, model)
    assert "ts.aten" not in str(found.state.module)
    check(found, ALL_PAST_THE_ORIGINAL_MAXIMUM if "longrope" in name else ALL_KINDS)
    with context():
        for axes in (mesh(tp=4), mesh(pp=2, tp=2), *([mesh(ep=2), mesh(ep=4), mesh(ep=2, tp=2)] if name in MIXTURES else [])):
            assert mesh_difference(found.state.traced, found.state.ir_texts["raise"], axes) <= TOLERANCE


@pytest.mark.parametrize("encodings", ["F32", "Q8_0"])
def test_gguf(encodings: str, tmp_path: Path) -> None:
    """A llama GGUF file against transformers holding the dequantised weights."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    chosen = {f"blk.{i}.{name}.weight": encodings for i in range(LAYERS) for name in names} | {"token_embd.weight": encodings}
    drawn = Tiny(tied=False)._tensors()
    scaled = {name: value * value.shape[-1] ** -0.5 if value.ndim > 1 else 1 + 0.3 * value for name, value in drawn.items()}
    tiny = Tiny(tied=False, encodings=chosen, extra=scaled)
    path = tiny.write(tmp_path / "tiny.gguf")
    check(compiled(path, path, from_gguf(path)), [*CHUNKED])


@pytest.mark.parametrize("encodings", ["Q8_0", "Q4_0", "Q4_1"])
def test_gguf_blocks_are_kept(encodings: str, tmp_path: Path) -> None:
    """The file's blocks stay as they are; what differs from exact arithmetic is the rounding of activations to 8 bits."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    chosen = {f"blk.{i}.{name}.weight": encodings for i in range(LAYERS) for name in names} | {"token_embd.weight": encodings}
    drawn = Tiny(tied=False)._tensors()
    scaled = {name: value * value.shape[-1] ** -0.5 if value.ndim > 1 else 1 + 0.3 * value for name, value in drawn.items()}
    path = Tiny(tied=False, encodings=chosen, extra=scaled).write(tmp_path / "tiny.gguf")
    model = compiled(path, path, from_gguf(path), quantize="auto")
    kept = {weight.dtype for weight in model.plan.manifest.weights}
    assert encodings.lower() in kept
    (found,) = model.logits(((0, 0, 17),))
    expected = model.expected(0, 17)
    spread = float(expected.std())
    assert 0 < np.abs(found - expected).mean() < 0.03 * spread
    accuracy = measure_accuracy(model.plan, str(path), lambda _line: None)
    assert accuracy.top_1_agreement > 0.8 and 0 < accuracy.mean_difference < 0.05 * spread


def from_gguf(path: Path) -> PreTrainedModel:
    """The file's tensors, decoded by the gguf package, in a transformers model; q and k rows un-permuted here."""
    reader = gguf.GGUFReader(path)
    found = {
        tensor.name: torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))).reshape(
            tensor.shape[::-1].tolist()
        )
        for tensor in reader.tensors
    }
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": len(found["token_embd.weight"]),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {
        "model.embed_tokens.weight": found["token_embd.weight"],
        "model.norm.weight": found["output_norm.weight"],
        "lm_head.weight": found["output.weight"],
    }
    for i in range(LAYERS):
        for module, tensor in parts.items():
            value = found[f"blk.{i}.{tensor}.weight"]
            if tensor in {"attn_q", "attn_k"}:
                heads = HEADS if tensor == "attn_q" else KV_HEADS
                value = value.reshape(heads, -1, 2, HIDDEN).transpose(1, 2).reshape(value.shape)
            state[f"model.layers.{i}.{module}.weight"] = value
    model = build(config)
    model.load_state_dict(state)
    return model
