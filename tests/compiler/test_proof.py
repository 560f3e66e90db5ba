"""The proof: every family passes it in float32 and bfloat16, and every wrong raise is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tokenspeed.compiler.frontends.import_aten import import_model
from tokenspeed.compiler.pipeline import on_one_rank
from tokenspeed.compiler.proof import TOLERANCE, prove
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.raise_aten import raise_aten
from tokenspeed.plans.errors import ModelError

from ..tiny_models import FAMILIES, family_config, traced


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def compiled(small: ir.Module) -> ir.Module:
    return on_one_rank(raise_aten(small, "sample"))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_raised_whole_and_proved(name: str, dtype: str) -> None:
    model = traced(family_config(name), dtype)
    raised = compiled(import_model(model))
    assert "ts.aten" not in str(raised)
    assert f"x{dtype}" in str(raised)
    assert prove(model, raised, compiled) <= TOLERANCE


def set_number(operation: str, name: str, change: Callable[[float], float]) -> Callable[[ir.Module], None]:
    def mutate(parsed: ir.Module) -> None:
        for item in operations(parsed, operation):
            item.attributes[name] = module.number(change(module.float_attribute(item, name)))

    return mutate


def set_integer(operation: str, name: str, value: int) -> Callable[[ir.Module], None]:
    def mutate(parsed: ir.Module) -> None:
        for item in operations(parsed, operation):
            item.attributes[name] = module.integer(value)

    return mutate


def operations(parsed: ir.Module, name: str) -> list[ir.Operation]:
    found = [item for item in module.walk(module.step_block(parsed)) if item.name == name]
    assert found
    return found


def one_plus_weight(parsed: ir.Module) -> None:
    operations(parsed, "ts.rms_norm")[0].attributes["one_plus_weight"] = module.flag(True)


def wrong_activation(parsed: ir.Module) -> None:
    operations(parsed, "ts.gated_activation")[0].attributes["activation"] = module.text("gelu")


def swapped_gate_and_up(parsed: ir.Module) -> None:
    item = operations(parsed, "ts.gated_activation")[0]
    item.operands[0], item.operands[1] = item.operands[1], item.operands[0]


def cos_for_sin(parsed: ir.Module) -> None:
    item = operations(parsed, "ts.rope_kv_write")[0]
    item.operands[3], item.operands[4] = item.operands[4], item.operands[3]


MUTATIONS: dict[str, Callable[[ir.Module], None]] = {
    "rope scale 1 % off": set_number("ts.rope_table", "scaling", lambda value: value * 1.01),
    "eps": set_number("ts.rms_norm", "eps", lambda value: value + 1e-2),
    "eps of the fused norm": set_number("ts.add_rms_norm", "eps", lambda value: value * 1000),
    "attention scale": set_number("ts.cached_attention", "scale", lambda value: value * 1.01),
    "window one longer": set_integer("ts.cached_attention", "window", 9),
    "window one shorter": set_integer("ts.cached_attention", "window", 7),
    "no window": set_integer("ts.cached_attention", "window", 0),
    "one plus weight": one_plus_weight,
    "activation": wrong_activation,
    "gate and up swapped": swapped_gate_and_up,
    "cos and sin swapped": cos_for_sin,
    "windows of the merged projection": set_integer("ts.slice", "start", 0),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_raise_is_caught(mutation: str) -> None:
    """The same mistake in the model's module and in the miniature's: only running both tells."""
    model = traced(family_config("mistral"), "f32")

    def wrong(small: ir.Module) -> ir.Module:
        raised = compiled(small)
        MUTATIONS[mutation](raised)
        module.verify(raised)
        return raised

    with pytest.raises(ModelError, match="does not compute what the model computes") as refused:
        prove(model, wrong(import_model(model)), wrong)
    assert "MistralForCausalLM" in refused.value.what and refused.value.fix


def test_a_miniature_that_raises_to_other_operations_proves_nothing() -> None:
    model = traced(family_config("mistral"), "f32")
    raised = compiled(import_model(model))
    with pytest.raises(ModelError, match="raises to other operations"):
        prove(model, raised, lambda small: raise_aten(small, "sample"))
