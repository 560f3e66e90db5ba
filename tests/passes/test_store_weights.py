"""The weight table: instances per layer, recipes, packed copies of tied weights, patterns of two layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.select import select
from tokenspeed.passes.store_weights import plan_weights, split_packed
from tokenspeed.plans.recipe import Blocks, Cast, Concat, Recipe, Source, sources
from tokenspeed.plans.schema import Weight
from tokenspeed.plans.template import instantiate
from tokenspeed.targets.registry import find_target

from ..ir.modules import HIDDEN, INTERMEDIATE, VOCABULARY, decoder
from .test_fusions import fused
from .test_select import LOADS, NO_NATIVE

MACHINE = find_target("cpu-avx2")


def selected(text: str) -> ir.Module:
    parsed = fused(text)
    select(parsed, MACHINE, LOADS, NO_NATIVE)
    return split_packed(parsed, MACHINE)


def shapes(parsed: ir.Module) -> dict[str, tuple[int, ...]]:
    """Any shape does for this test's recipes; the names must all be asked for."""
    operations = [item for item in module.walk(module.step_block(parsed)) if item.name == "ts.weight"]
    names = {name for item in operations for name in module.text_list(item, "parameters")}
    return {instantiate(name, layer): (1,) for name in names for layer in range(8)}


class Recipes:
    """Parameters are checkpoint tensors of the same name."""

    def recipe(self, parameter_template: str, dtype: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        return Cast(Source(parameter_template), dtype)

    def blocks(self, parameter_template: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        return Blocks(Source(parameter_template))


def table(parsed: ir.Module) -> dict[str, Weight]:
    return {weight.name: weight for weight in plan_weights(parsed, MACHINE, shapes(parsed), Recipes())}


def test_tied_weights_have_a_packed_and_a_plain_instance() -> None:
    parsed = selected(decoder(tied=True))
    module.verify(parsed)
    weights = table(parsed)
    plain, packed = weights["embed.weight"], weights["embed.weight.packed"]
    assert (plain.prepack, packed.prepack) == ("none", "onednn")
    assert plain.recipe == packed.recipe == Cast(Source("embed.weight"), "f32")
    assert plain.shape == packed.shape == (VOCABULARY, HIDDEN) and plain.layers == packed.layers == ()


def test_untied_weights_are_not_doubled() -> None:
    weights = table(selected(decoder()))
    assert not [name for name in weights if name.endswith(".packed")]
    assert weights["embed.weight"].prepack == "none" and weights["lm_head.weight"].prepack == "onednn"


@pytest.mark.parametrize("pattern", [1, 2])
def test_every_layer_has_every_weight_once(pattern: int) -> None:
    weights = table(selected(decoder(layers=4, pattern=pattern, bias=True)))
    instances = [instantiate(weight.name, layer) for weight in weights.values() for layer in weight.layers]
    assert len(instances) == len(set(instances)) == 4 * 7
    read = sorted(instantiate(name, layer) for w in weights.values() for name in sources(w.recipe) for layer in w.layers)
    expected = [f"layers.{i}.{name}_proj.weight" for i in range(4) for name in ("q", "k", "v", "o", "gate", "up", "down")]
    expected += [f"layers.{i}.{name}_proj.bias" for i in range(4) for name in "qkv"]
    expected += [f"layers.{i}.norm{n}.weight" for i in range(4) for n in (1, 2)]
    assert read == sorted(expected)
    if pattern == 2:
        name = "layers.{i+1}.q_proj+k_proj+v_proj.weight"
        assert weights[name].layers == (0, 2)


def test_joined_weights_are_a_concatenation_of_rows() -> None:
    weight = table(selected(decoder(bias=True)))["layers.{i}.q_proj+k_proj+v_proj.weight"]
    assert isinstance(weight.recipe, Concat) and weight.recipe.dimension == 0
    assert weight.shape == (2 * HIDDEN, HIDDEN) and weight.bytes == 4 * 2 * HIDDEN * HIDDEN
    bias = table(selected(decoder(bias=True)))["layers.{i}.q_proj+k_proj+v_proj.bias"]
    assert bias.prepack == "none" and bias.shape == (2 * HIDDEN,)


def two_repeats() -> tuple[str, str]:
    """Layers 0 and 1 in one repeat, layers 2 and 3 in another: the same weight names. The text up to and after the second."""
    text = decoder(layers=2)
    body = text[text.index('%out = "ts.repeat"') : text.index("%last =")]
    second = body.replace("%out", "%out2").replace("(%x)", "(%out)").replace("first = 0", "first = 2")
    text = text.replace('"ts.rms_norm"(%out,', '"ts.rms_norm"(%out2,')
    return text, second


def test_two_repeats_over_one_name_are_one_row() -> None:
    text, second = two_repeats()
    weights = table(selected(text.replace("%last =", second + "    %last =")))
    assert weights["layers.{i}.norm1.weight"].layers == (0, 1, 2, 3)
    assert len(weights) == 9


def test_layers_of_other_shapes_are_rows_of_their_own() -> None:
    text, second = two_repeats()
    wider = second.replace(f"x{INTERMEDIATE}x", "x80x").replace(f"<{INTERMEDIATE}x", "<80x")
    parsed = selected(text.replace("%last =", wider + "    %last ="))
    weights = plan_weights(parsed, MACHINE, shapes(parsed), Recipes())
    found = {(weight.shape, weight.layers) for weight in weights if weight.name == "layers.{i}.down_proj.weight"}
    assert found == {((HIDDEN, INTERMEDIATE), (0, 1)), ((HIDDEN, 80), (2, 3))}
