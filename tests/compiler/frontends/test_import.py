"""Importing: the traced graph as `ts.aten` operations, layers folded, names templated; and what cannot be imported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.compiler.frontends.import_aten import import_model
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.raise_aten import raise_aten
from tokenspeed.passes.raising.pattern import AtenOp
from tokenspeed.plans.errors import ModelError

from ...recurrent_models import RECURRENT_MODELS
from ...tiny_models import FAMILIES, family_config, traced


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def imported(name: str) -> ir.Module:
    return import_model(traced(family_config(name), "f32"))


@pytest.mark.parametrize("name", FAMILIES)
def test_prints_parses_and_prints_alike(name: str) -> None:
    printed = str(imported(name))
    assert str(module.parse(printed)) == printed
    assert "ts.rms_norm" not in printed and "tokenspeed.attention" in printed


def test_layers_are_folded_and_names_templated() -> None:
    parsed = imported("qwen2")
    repeats = [item for item in module.walk(module.step_block(parsed)) if item.name == "ts.repeat"]
    counts = [tuple(module.int_attribute(item, name) for name in ("first", "count", "stride")) for item in repeats]
    assert counts == [(0, 2, 2), (4, 1, 1)]
    names = {module.text_attribute(item, "sym") for item in module.walk(module.body_of(repeats[0])) if item.name == "ts.weight"}
    bases = {"input_layernorm.weight", "self_attn.q_proj.bias", "mlp.down_proj.weight"}
    assert {f"model.layers.{index}.{base}" for index in ("{i}", "{i+1}") for base in bases} <= names
    assert not [name for name in names if "layers.0" in name or "layers.1" in name]


def test_tied_weights_go_by_one_name() -> None:
    parsed = imported("llama")
    weights = [item for item in module.walk(module.step_block(parsed)) if item.name == "ts.weight"]
    names = {module.text_attribute(item, "sym") for item in weights}
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_nothing_that_computes_nothing_is_left() -> None:
    printed = str(imported("mistral"))
    assert not [name for name in ("_assert", "alias", "contiguous", "sym_size") if name in printed]


def test_each_used_result_of_an_operation_is_one_of_its_own() -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 64}
    parsed = import_model(traced(config, "f32"))
    operations = [AtenOp(item) for item in module.walk(module.step_block(parsed)) if item.name == "ts.aten"]
    splits = [item for item in operations if item.target == "aten.split.Tensor"]
    assert [split.output for split in splits] == [0, 1, 2] and len({split.operation.operands[0] for split in splits}) == 1


def test_an_activation_that_no_rule_takes_is_all_that_is_left() -> None:
    config = family_config("mistral") | {"hidden_act": "mish"}
    parsed = raise_aten(import_model(traced(config, "f32")), "mistral")
    (left,) = (item for item in module.walk(module.step_block(parsed)) if item.name == "ts.aten")
    assert module.text_attribute(left, "target") == "aten.mish.default"
    assert module.label_of(left) == "model.layers.{i}.mlp.act_fn"


def test_layers_with_a_float32_residual_are_entered_with_one() -> None:
    """Of Mamba in bfloat16, whose layers are then all alike; norms' weights are of the other type."""
    raised = raise_aten(import_model(traced(RECURRENT_MODELS["mamba"], "bf16")), "mamba")
    (repeat,) = [item for item in module.walk(module.step_block(raised)) if item.name == "ts.repeat"]
    assert str(repeat.operands[0].type) == "tensor<?x64xf32>"
    norms = [item for item in module.walk(module.step_block(raised)) if item.name == "ts.rms_norm"]
    assert norms and all("f32" in str(item.results[0].type) or item.parent == repeat for item in norms)


def test_layers_that_change_the_type_are_refused() -> None:
    config = {"model_type": "xlnet", "attn_type": "uni", "d_model": 64, "n_layer": 3, "n_head": 4, "d_head": 16, "d_inner": 96}
    with pytest.raises(ModelError, match=r"(?s)give another element type.*expected: bf16.*got: +f32.*--dtype f32"):
        import_model(traced({**config, "vocab_size": 160}, "bf16"))
