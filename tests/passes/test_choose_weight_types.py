"""Which type each matrix is stored in: blocks kept, rounded to, or none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.storage import KEPT, STORED
from tokenspeed.passes.choose_weight_types import Encodings, Quantization, choose_weight_types
from tokenspeed.passes.select import select
from tokenspeed.passes.store_weights import plan_weights, split_packed
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.recipe import Blocks, Cast, Concat, Quantize, Source
from tokenspeed.plans.schema import Weight

from ..ir.modules import HIDDEN, decoder
from .test_fusions import fused
from .test_select import LOADS
from .test_store_weights import MACHINE, Recipes, shapes


def stored(
    wanted: Quantization, encodings: Encodings, tied: bool = False
) -> tuple[dict[str, tuple[str, str]], dict[str, Weight]]:
    """(stored, kept) by weight as marked, and the weight table that follows."""
    parsed = choose_weight_types(fused(decoder(tied=tied)), wanted, None, encodings)
    marks = {
        module.text_attribute(item, "sym"): (module.text_attribute(item, STORED), module.text_attribute(item, KEPT))
        for item in module.walk(module.step_block(parsed))
        if STORED in item.attributes
    }
    select(parsed, MACHINE, LOADS)
    split_packed(parsed, MACHINE)
    module.verify(parsed)
    return marks, {weight.name: weight for weight in plan_weights(parsed, MACHINE, shapes(parsed), Recipes())}


def same(*found: str) -> Encodings:
    return lambda _name, _layers: {*found}


QKV, OUT, HEAD = "layers.{i}.q_proj+k_proj+v_proj.weight", "layers.{i}.o_proj.weight", "lm_head.weight"


def test_plain_checkpoints_stay_as_they_are() -> None:
    for encodings in (same("bf16"), same()):
        marks, weights = stored("auto", encodings)
        assert not marks and {weight.dtype for weight in weights.values()} == {"f32"}


@pytest.mark.parametrize(("encoding", "kept_as"), [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q4_1", "q4_1"), ("q4_k", "q4_1")])
def test_blocks_of_the_checkpoint_are_kept(encoding: str, kept_as: str) -> None:
    marks, weights = stored("auto", same(encoding))
    assert marks[QKV] == (kept_as, encoding)
    parts = Concat(tuple(Blocks(Source(f"layers.{{i}}.{name}_proj.weight")) for name in "qkv"), 0)
    assert weights[QKV].recipe == (parts if encoding == kept_as else Quantize(parts, kept_as))
    assert weights[QKV].dtype == kept_as and weights[QKV].prepack == "panel"
    assert "layers.{i}.down_proj.weight" not in marks  # rows of 48 are not whole blocks
    assert weights["layers.{i}.norm1.weight"].dtype == "f32"


def test_mixed_or_other_blocks_are_rounded_to_eight_bits() -> None:
    def mixed(name: str, _layers: Sequence[int]) -> set[str]:
        return {"q6_k"} if "v_proj" in name else {"q4_k"}

    marks, weights = stored("auto", mixed)
    assert marks[QKV] == ("q8_0", "") and marks[OUT] == ("q4_1", "q4_k")
    recipe = weights[QKV].recipe
    assert isinstance(recipe, Quantize) and isinstance(recipe.of, Concat)
    assert recipe.of.parts[0] == Cast(Source("layers.{i}.q_proj.weight"), "f32")


def test_rounding_on_request_spares_table_and_head() -> None:
    marks, weights = stored("int4", same("bf16"))
    assert marks[OUT] == ("q4_0", "") and marks[HEAD] == marks["embed.weight"] == ("q8_0", "")
    assert weights[OUT].bytes == HIDDEN * HIDDEN // 32 * 18
    marks, _ = stored("int8", same())
    assert {*marks.values()} == {("q8_0", "")}
    assert not stored("none", same("q4_0"))[0]


def test_floats_of_eight_bits_want_rows_of_whole_blocks() -> None:
    """Rows here are shorter: what a checkpoint has is made numbers, what is asked for is rounded to 8-bit integers."""
    marks, weights = stored("auto", same("f8_e4m3"))
    assert not marks and weights[QKV].dtype == "f32"
    marks, _ = stored("f8e4m3", same())
    assert {*marks.values()} == {("q8_0", "")}


def test_a_type_that_no_kernel_reads_is_refused() -> None:
    with pytest.raises(UsageError, match="no kernel of this target"):
        choose_weight_types(fused(decoder()), "f8e4m3", None, same(), {"ts.linear": ("q8_0", "q4_0")})


def test_a_tied_table_is_stored_once() -> None:
    _, weights = stored("int8", same(), tied=True)
    assert [name for name in weights if "embed" in name] == ["embed.weight"]
    assert weights["embed.weight"].prepack == "panel"


def test_without_native_kernels_nothing_is_rounded() -> None:
    parsed = fused(decoder())
    with pytest.raises(UsageError, match="need native kernels") as refused:
        choose_weight_types(parsed, "int8", "no C++ compiler on this host", same())
    assert refused.value.got == "no C++ compiler on this host"
    choose_weight_types(parsed, "auto", "no C++ compiler on this host", same("q4_0"))
    assert all(STORED not in item.attributes for item in module.walk(module.step_block(parsed)))
