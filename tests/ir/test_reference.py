"""The reference implementations against torch's own, and the interpreter: a sequence in pieces is the sequence whole."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenspeed.ir import module
from tokenspeed.ir.reference import REFERENCE, Interpreter, StepRows, causal_attention, layer_norm, rms_norm, rope
from tokenspeed.plans.template import instantiate
from torch import Tensor
from torch.nn import functional
from transformers.models.cohere2.modeling_cohere2 import apply_rotary_pos_emb as apply_interleaved
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .modules import HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, VOCABULARY, Sample, decoder
from .samples import NORM


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rms_norm_is_torchs() -> None:
    x, weight = random(5, 8), random(8, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, False), functional.rms_norm(x, (8,), weight, 1e-5))
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, True), functional.rms_norm(x, (8,), weight + 1, 1e-5))


@pytest.mark.parametrize("biased", [False, True])
def test_layer_norm_is_torchs(biased: bool) -> None:
    x, weight, bias = random(5, 8), random(8, seed=1), random(8, seed=2) if biased else None
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), functional.layer_norm(x, (8,), weight, bias, 1e-5))


def test_rope_is_transformers() -> None:
    x, angles = random(5, 3, 8), random(5, 4, seed=1)
    table = torch.cat([angles, angles], dim=-1)
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], table.cos()[None], table.sin()[None])
    torch.testing.assert_close(rope(x, table.cos(), table.sin()), expected[0].transpose(0, 1))


def test_interleaved_rope_is_transformers() -> None:
    x, angles = random(5, 3, 8), random(5, 4, seed=1)
    halves, doubled = torch.cat([angles, angles], dim=-1), angles.repeat_interleave(2, dim=-1)
    q = x.transpose(0, 1)[None].float()  # transformers computes this one in float32
    expected, _ = apply_interleaved(q, q, doubled.cos()[None].float(), doubled.sin()[None].float())
    turned = rope(x, halves.cos(), halves.sin(), interleaved=True)
    torch.testing.assert_close(turned.float(), expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rope_leaves_the_rest_alone(interleaved: bool) -> None:
    x, table = random(5, 3, 8), random(5, 4, seed=1)
    turned = rope(x, table.cos(), table.sin(), interleaved)
    torch.testing.assert_close(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], rope(x[..., :4], table.cos(), table.sin(), interleaved))


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_attention_is_torchs(window: int, heads: int, kv_heads: int, new: int) -> None:
    context = 9
    q, k, v = random(new, heads, 8), random(context, kv_heads, 8, seed=1), random(context, kv_heads, 6, seed=2)
    row, column = torch.arange(context - new, context)[:, None], torch.arange(context)[None]
    seen = (column <= row) & ((column > row - window) if window else True)
    expected = functional.scaled_dot_product_attention(
        *(t.transpose(0, 1) for t in (q, k, v)), attn_mask=seen, scale=0.3, enable_gqa=True
    ).transpose(0, 1)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3, window), expected)


def test_soft_caps_and_sinks_are_transformers() -> None:
    """gpt-oss has sinks, Gemma 2 soft caps: their eager attention, and both together by hand."""
    q, k, v, sinks = random(5, 4, 8), random(5, 2, 8, seed=1), random(5, 2, 8, seed=2), 3 * random(4, seed=3)
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    query, key, value = (t.transpose(0, 1)[None] for t in (q, k, v))
    module: Any = SimpleNamespace(num_key_value_groups=2, sinks=sinks, training=False)
    expected, _ = gpt_oss.eager_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3, 0, sinks=sinks), expected[0])
    capped, _ = gemma2.eager_attention_forward(module, query, key, value, mask, scaling=0.3, softcap=0.7)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3, 0, 0.7), capped[0], rtol=1e-6, atol=1e-6)
    one = causal_attention(q[:1], k[:1], v[:1], 0.3, 0, 0.7, sinks)
    score = 0.7 * torch.tanh(0.3 * (q[0] * k[0].repeat_interleave(2, 0)).sum(-1) / 0.7)
    torch.testing.assert_close(one[0], v[0].repeat_interleave(2, 0) * torch.sigmoid(score - sinks)[:, None])


def test_a_window_of_one_sees_the_row_itself_only() -> None:
    q, k, v = random(3, 2, 4), random(3, 2, 4, seed=1), random(3, 2, 4, seed=2)
    torch.testing.assert_close(causal_attention(q, k, v, 1.0, 1), v)


class Weights:
    """Random weights by name."""

    def __init__(self) -> None:
        shapes = {"embed.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,)}
        for layer in range(4):
            for name, shape in {
                "norm1.weight": (HIDDEN,),
                "norm2.weight": (HIDDEN,),
                "q_proj.weight": (HIDDEN, HIDDEN),
                "k_proj.weight": (HIDDEN // 2, HIDDEN),
                "v_proj.weight": (HIDDEN // 2, HIDDEN),
                "q_proj.bias": (HIDDEN,),
                "k_proj.bias": (HIDDEN // 2,),
                "v_proj.bias": (HIDDEN // 2,),
                "o_proj.weight": (HIDDEN, HIDDEN),
                "gate_proj.weight": (INTERMEDIATE, HIDDEN),
                "up_proj.weight": (INTERMEDIATE, HIDDEN),
                "down_proj.weight": (HIDDEN, INTERMEDIATE),
                "sinks": (HEADS,),
            }.items():
                shapes[f"layers.{layer}.{name}"] = shape
        self.tensors = {name: random(*shape, seed=at) * shape[-1] ** -0.5 for at, (name, shape) in enumerate(shapes.items())}

    def full(self, name: str) -> Tensor:
        return self.tensors[name]

    def linear(self, x: Tensor, name: str, index: int | None = None) -> Tensor:
        return x @ (self.full(name) if index is None else self.part(name, index)).T

    def rows(self, name: str, index: Tensor) -> Tensor:
        return self.full(name)[index]

    def part(self, name: str, index: int) -> Tensor:
        return self.full(name)[index]


CONSTANTS = {"inv_freq": 10000.0 ** (-torch.arange(HEAD_DIM // 2, dtype=torch.float64) / (HEAD_DIM // 2))}
TOKENS = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))


def interpreter(truncate: bool = False) -> Interpreter:
    return Interpreter(Weights(), CONSTANTS, instantiate, torch.float64, truncate)


def rows(*parts: tuple[int, int, int]) -> StepRows:
    """(sequence, first position, rows) of each sequence in the step."""
    spans, ids, positions, at = [], [], [], 0
    for key, start, count in parts:
        spans.append((key, at, at + count))
        ids.append(TOKENS[key, start : start + count])
        positions.append(torch.arange(start, start + count))
        at += count
    return StepRows(torch.cat(ids), torch.cat(positions), spans, torch.arange(at))


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3, "bias": True}, {"window": 4, "pattern": 2}, {"softcap": 0.5, "sinks": True, "interleaved": True}],
    ids=str,
)
def test_pieces_beside_another_sequence_give_the_logits_of_the_whole(options: dict[str, Any]) -> None:
    parsed = module.parse(decoder(layers=4, **options))
    whole = [interpreter().step(parsed, rows((key, 0, 12))) for key in (0, 1)]
    running = interpreter()
    got: list[list[Tensor]] = [[], []]
    for step in (((0, 0, 5), (1, 0, 1)), ((1, 1, 7), (0, 5, 1)), ((0, 6, 6), (1, 8, 4))):
        logits, at = running.step(parsed, rows(*step)), 0
        for key, _, count in step:
            got[key].append(logits[at : at + count])
            at += count
    for key in (0, 1):
        torch.testing.assert_close(torch.cat(got[key]), whole[key], rtol=1e-12, atol=1e-12)


def test_windows_and_layers_change_the_result() -> None:
    runs = [
        interpreter().step(module.parse(decoder(layers=layers, window=window)), rows((0, 0, 12)))
        for layers, window in ((4, 0), (4, 3), (2, 0))
    ]
    assert (runs[0][:3] - runs[1][:3]).abs().max() < 1e-12, "a window of 3 hides nothing from the first three rows"
    assert (runs[0][3:] - runs[1][3:]).abs().max() > 1e-3
    assert (runs[0] - runs[2]).abs().max() > 1e-3


def test_truncated_repeats_run_their_first_layer_alone() -> None:
    deep, shallow = module.parse(decoder(layers=4)), module.parse(decoder(layers=1))
    got = interpreter(truncate=True).step(deep, rows((0, 0, 6)))
    torch.testing.assert_close(got, interpreter().step(shallow, rows((0, 0, 6))))


def test_logit_rows_choose_rows() -> None:
    parsed, asked = module.parse(decoder()), rows((0, 0, 6))
    everything = interpreter().step(parsed, asked)
    asked.logit_rows = torch.tensor([5, 2])
    torch.testing.assert_close(interpreter().step(parsed, asked), everything[[5, 2]])


def test_fused_operations_mean_what_their_parts_mean() -> None:
    """add_rms_norm against add and rms_norm, through the interpreter's own table."""
    x = "tensor<?x8xf64>"
    fused = module.parse(Sample("ts.add_rms_norm", (x, x, "tensor<8xf64>"), (x, x), NORM).module())
    (operation,) = [item for item in module.walk(module.step_block(fused)) if item.name == "ts.add_rms_norm"]
    a, b, weight = random(5, 8), random(5, 8, seed=1), random(8, seed=2)
    total, normed = REFERENCE["ts.add_rms_norm"](operation, [a, b, weight], torch.float64)
    torch.testing.assert_close(total, a + b)
    torch.testing.assert_close(normed, functional.rms_norm(a + b, (8,), weight, 1e-6))


def evaluated(sample: Sample, *operands: Tensor) -> Tensor:
    """The first result of a sample's operation, through the interpreter's own table."""
    parsed = module.parse(sample.module())
    (operation,) = [item for item in module.walk(module.step_block(parsed)) if item.name == sample.name]
    return REFERENCE[sample.name](operation, [*operands], torch.float64)[0]


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_activations(name: str) -> None:
    x, gate, up = "tensor<?x8xf64>", random(5, 8), random(5, 8, seed=1)
    functions = {"silu": torch.nn.SiLU(), "gelu": torch.nn.GELU(), "gelu_tanh": torch.nn.GELU("tanh"), "relu": torch.nn.ReLU()}
    expected = torch.nn.ReLU()(gate) ** 2 if name == "relu2" else functions[name](gate)
    gated = Sample("ts.gated_activation", (x, x), (x,), f'activation = "{name}"')
    torch.testing.assert_close(evaluated(gated, gate, up), expected * up)
    torch.testing.assert_close(evaluated(Sample("ts.activation", (x,), (x,), f'kind = "{name}"'), gate), expected)


def test_scale_and_softcap() -> None:
    x, value = "tensor<?x8xf64>", 4 * random(5, 8)
    torch.testing.assert_close(evaluated(Sample("ts.scale", (x,), (x,), "factor = 0.25 : f64"), value), value / 4)
    capped = evaluated(Sample("ts.softcap", (x,), (x,), "cap = 3.0 : f64"), value)
    torch.testing.assert_close(capped, torch.tanh(value / 3.0) * 3.0)
