"""The layouts that are found: what decoders look like over several ranks, and that the cheapest way wins."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import placement_of, shape_of
from tokenspeed.passes.partition import partition
from tokenspeed.passes.placing.pins import Pin, Pins
from tokenspeed.passes.placing.search import search
from tokenspeed.plans.errors import MemoryPlanError, UsageError

from ...ir.modules import decoder
from ...mesh import cheap_links, laid_out, mesh, prices


def collectives(parsed: ir.Module) -> Counter[str]:
    names = (item.name for item in module.walk(module.step_block(parsed)))
    return Counter(name for name in names if name in {"ts.all_reduce", "ts.all_gather"})


def weights(parsed: ir.Module, axis: str = "tp") -> dict[str, str]:
    found = (item for item in module.walk(module.step_block(parsed)) if item.name == "ts.weight")
    return {module.text_attribute(item, "sym"): placement_of(item.results[0])[axis] for item in found}


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_decoder_is_cut_as_megatron_does(ranks: int) -> None:
    """Heads and columns, then rows: one all-reduce behind attention and one behind the MLP (arXiv:1909.08053, section 3)."""
    parsed = module.parse(decoder())
    chosen = partition(parsed, mesh(tp=ranks), cheap_links(prices()), Pins((Pin("*", rows="replicate"),)))
    found = weights(parsed)
    copies = ", copies=2" if ranks == 4 else ""
    assert found["layers.{i}.q_proj.weight"] == found["layers.{i}.up_proj.weight"] == "shard(0)"
    assert found["layers.{i}.k_proj.weight"] == f"shard(0{copies})"
    assert found["layers.{i}.o_proj.weight"] == found["layers.{i}.down_proj.weight"] == "shard(1)"
    # the table is cut by columns, the head by rows
    assert collectives(parsed) == {"ts.all_reduce": 2, "ts.all_gather": 2}
    assert all(choice.runner_up_seconds is None or choice.runner_up_seconds >= choice.seconds for choice in chosen)


def test_what_is_small_is_replicated() -> None:
    parsed = module.parse(decoder())
    partition(parsed, mesh(tp=2), prices())
    assert not collectives(parsed) and set(weights(parsed).values()) == {"replicate"}


def test_what_ranks_do_not_divide_is_filled_up_with_zeros() -> None:
    parsed = laid_out(module.parse(decoder()), mesh(tp=5))
    found = {
        module.text_attribute(item, "sym"): item for item in module.walk(module.step_block(parsed)) if item.name == "ts.weight"
    }
    assert shape_of(found["lm_head.weight"].results[0]) == (13, 32)  # 64 over 5
    assert weights(parsed)["layers.{i}.q_proj+k_proj+v_proj.weight"] == "replicate"  # heads are not filled up
    returned = list(module.step_block(parsed).operations)[-1].operation.operands[0]
    assert shape_of(returned) == (None, 64)


def test_tied_weights_lie_as_each_reader_wants_them() -> None:
    parsed = laid_out(module.parse(decoder(tied=True)), mesh(tp=2))
    assert {name: where for name, where in weights(parsed).items() if "embed" in name} == {
        "embed.weight": "shard(1)",
        "embed.weight.tp1": "shard(0)",
    }


def test_a_pinned_weight_lies_as_it_is_pinned() -> None:
    parsed = module.parse(decoder())
    pins = Pins((Pin("*", "cut"), Pin("layers.*.down_proj", "replicate"), Pin("layers.*.o_proj", "shard(0)")))
    partition(parsed, mesh(tp=2), prices(), pins)
    found = weights(parsed)
    assert found["layers.{i}.down_proj.weight"] == "replicate" and found["layers.{i}.o_proj.weight"] == "shard(0)"


def test_a_pin_may_be_of_one_axis() -> None:
    parsed = module.parse(decoder())
    pins = Pins((Pin("*", "cut"), Pin("layers.*.down_proj", "replicate", axis="ep"), Pin("lm_head", "replicate", axis="tp")))
    partition(parsed, mesh(ep=2, tp=2), prices(), pins)
    outer, inner = weights(parsed, "ep"), weights(parsed, "tp")
    assert outer["layers.{i}.down_proj.weight"] == "replicate" != inner["layers.{i}.down_proj.weight"]
    assert outer["lm_head.weight"] != "replicate" == inner["lm_head.weight"]


def test_pins_that_do_not_fit_together_are_refused() -> None:
    """The head's rows are whole on every rank: they cannot be summed over."""
    with pytest.raises(UsageError, match="no layout of the model"):
        partition(module.parse(decoder()), mesh(tp=2), prices(), Pins((Pin("lm_head", "shard(1)"),)))


def test_a_pin_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot lie as it is pinned") as refused:
        partition(module.parse(decoder()), mesh(tp=2), prices(), Pins((Pin("*o_proj", "shard(7)"),)))
    assert refused.value.expected == "replicate, shard(0), shard(1)" and "o_proj" in refused.value.where


def test_weights_fit_in_a_ranks_memory() -> None:
    parsed = module.parse(decoder())
    ranks = replace(prices(), ranks=2)
    whole = search(parsed, "tp", ranks, Pins())
    assert not any(choice.strategy.cut for choice in whole.values())
    parts = search(parsed, "tp", replace(ranks, memory=50_000), Pins())  # of 78,208 bytes
    assert any(choice.strategy.cut for choice in parts.values())
    with pytest.raises(MemoryPlanError, match="does not fit in its memory") as refused:
        search(parsed, "tp", replace(ranks, memory=1000), Pins())
    assert refused.value.expected == "at least 38.62 KiB, for weights alone"
