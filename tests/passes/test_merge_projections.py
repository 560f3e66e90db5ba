"""Merging projections: see also tests/filecheck/merge_*.mlir."""

from __future__ import annotations

import pytest
from tokenspeed.ir import module
from tokenspeed.passes.merge_projections import joined_name, merge_projections

from ..ir.modules import decoder


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["a.q_proj.weight", "a.k_proj.weight"], "a.q_proj+k_proj.weight"),
        (["a.{i+1}.gate.bias", "a.{i+1}.up.bias"], "a.{i+1}.gate+up.bias"),
        (["a.q.weight", "b.k.weight"], "a.q.weight+b.k.weight"),
        (["a.q.weight", "a.k"], "a.q.weight+a.k"),
        (["a.q", "a.k", "a.q"], "a.q+k"),
    ],
)
def test_joined_names(names: list[str], joined: str) -> None:
    assert joined_name(names) == joined


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pattern", [1, 2])
def test_a_decoder_layer_is_left_with_four_linears(bias: bool, pattern: int) -> None:
    merged = merge_projections(module.parse(decoder(layers=4, bias=bias, pattern=pattern)))
    module.verify(merged)
    names = [module.label_of(item) for item in module.walk(module.step_block(merged)) if item.name == "ts.linear"]
    layer = ["layers.{i}.q_proj+k_proj+v_proj", "layers.{i}.o_proj", "layers.{i}.gate_proj+up_proj", "layers.{i}.down_proj"]
    second = [name.replace("{i}", "{i+1}") for name in layer] if pattern == 2 else []
    assert names == [*layer, *second, "lm_head"]


def test_running_it_again_changes_nothing() -> None:
    merged = merge_projections(module.parse(decoder()))
    before = str(merged)
    assert str(merge_projections(merged)) == before
