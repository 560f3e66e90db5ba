"""Fusions together: what a fused decoder consists of, and that it computes what it did. Single cases: tests/filecheck."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.fuse_add_norm import fuse_add_norm
from tokenspeed.passes.fuse_rope_kv_write import fuse_rope_kv_write
from tokenspeed.passes.merge_projections import merge_projections

from ..ir import test_reference as running
from ..ir.modules import decoder


def fused(text: str) -> ir.Module:
    parsed = module.parse(text)
    for fuse in (merge_projections, fuse_add_norm, fuse_rope_kv_write):
        fuse(parsed)
        module.verify(parsed)
    return parsed


def names(parsed: ir.Module) -> Counter[str]:
    return Counter(item.name.removeprefix("ts.") for item in module.walk(module.step_block(parsed)))


def test_what_is_left_of_a_layer() -> None:
    found = names(fused(decoder()))
    assert found["linear"] == 5 and found["rope_kv_write"] == found["cached_attention"] == 1
    assert not found["attention"] and not found["rope"]
    # the norm before attention is the first thing in a layer: the addition before it is in the round before
    assert found["add_rms_norm"] == 1 and found["rms_norm"] == 2 and found["add"] == 1


def test_in_a_pattern_of_two_layers_the_second_norm_joins_the_first_layers_addition() -> None:
    found = names(fused(decoder(layers=4, pattern=2)))
    assert found["add_rms_norm"] == 3 and found["rms_norm"] == 2 and found["add"] == 1


def test_without_rope_attention_is_left_as_it_is() -> None:
    found = names(fused(decoder(rope=False)))
    assert found["attention"] == 1 and not found["cached_attention"] and not found["rope_kv_write"]


class JoinedWeights(running.Weights):
    """Also knows weights that fusion joined, by the names joined_name gives them."""

    def full(self, name: str) -> torch.Tensor:
        if name in self.tensors:
            return self.tensors[name]
        head, middle, tail = name.rsplit(".", 2)
        return torch.cat([self.tensors[f"{head}.{part}.{tail}"] for part in middle.split("+")])


@pytest.mark.parametrize(
    "text",
    [
        decoder(layers=4),
        decoder(layers=4, window=3, bias=True),
        decoder(layers=4, pattern=2),
        decoder(layers=4, rope=False),
        decoder(layers=4, softcap=0.5, sinks=True, interleaved=True),
    ],
    ids=["plain", "window and bias", "pattern of two", "no rope", "soft cap, sinks, interleaved rope"],
)
def test_fusions_keep_the_logits(text: str) -> None:
    before = running.interpreter().step(module.parse(text), running.rows((0, 0, 9), (1, 0, 4)))
    after = running.interpreter()
    after.weights = JoinedWeights()
    torch.testing.assert_close(after.step(fused(text), running.rows((0, 0, 9), (1, 0, 4))), before, rtol=1e-12, atol=1e-12)
