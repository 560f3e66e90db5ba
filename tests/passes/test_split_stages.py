"""A step cut into the stages of a pipeline: what each has, what crosses the borders, and where there may be one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.layer_units import units
from tokenspeed.passes.split_stages import joined, split_stages

from ..ir.modules import decoder
from ..mesh import laid_out, mesh


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def repeats(stage: ir.Module) -> list[tuple[int, ...]]:
    found = [item for item in module.walk(module.step_block(stage)) if item.name == "ts.repeat"]
    return [tuple(module.int_attribute(item, name) for name in ("first", "count", "stride")) for item in found]


def named(stage: ir.Module, name: str) -> list[ir.Operation]:
    return [item for item in module.walk(module.step_block(stage)) if item.name == name]


def weights(stage: ir.Module) -> set[str]:
    return {module.text_attribute(item, "sym") for item in named(stage, "ts.weight")}


def types(stage: ir.Module, name: str) -> Sequence[str]:
    return [str((*item.operands, *item.results)[0].type) for item in named(stage, name)]


def test_without_cuts_there_is_one_stage():
    whole = laid_out(module.parse(decoder()), mesh(tp=2))
    assert split_stages(whole, []) == (whole,)


def test_layers_are_cut_between_rounds_and_the_module_stays():
    whole = laid_out(module.parse(decoder(layers=8, pattern=2)), mesh(tp=2))
    before = str(whole)
    stages = split_stages(whole, [1, 3])
    assert [repeats(stage) for stage in stages] == [[(0, 1, 2)], [(2, 2, 2)], [(6, 1, 2)]]
    assert str(whole) == before
    assert [[*unit.layers] for unit in units(module.step_block(whole))] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_one_hidden_state_crosses_each_border_and_tables_are_made_again():
    first, middle, last = split_stages(laid_out(module.parse(decoder(layers=3)), mesh(tp=2)), [1, 2])
    hidden = ['tensor<?x32xf32, {tp = "replicate"}>']
    assert (types(first, "ts.receive"), types(first, "ts.send")) == ([], hidden)
    assert (types(middle, "ts.receive"), types(middle, "ts.send")) == (hidden, hidden)
    assert (types(last, "ts.receive"), types(last, "ts.send")) == (hidden, [])
    assert all(len(named(stage, "ts.rope_table")) == 1 for stage in (first, middle, last))
    assert [len(named(stage, "ts.embedding")) for stage in (first, middle, last)] == [1, 0, 0]
    assert [len(named(stage, "ts.gather_rows")) for stage in (first, middle, last)] == [0, 0, 1]


def test_tied_embeddings_are_read_on_both_ends():
    first, last = split_stages(laid_out(module.parse(decoder(tied=True)), mesh(tp=1)), [1])
    assert "embed.weight" in weights(first) & weights(last)
    first, last = split_stages(laid_out(module.parse(decoder()), mesh(tp=1)), [1])
    assert weights(first) - weights(last) == {"embed.weight"}
    assert weights(last) - weights(first) == {"norm.weight", "lm_head.weight"}


def test_what_is_read_behind_several_borders_is_passed_on():
    text = decoder(layers=3)
    old = '%final = "ts.rms_norm"(%out, %last)'
    assert old in text
    text = text.replace(
        old,
        '%late = "ts.add"(%out, %x) : (tensor<?x32xf32>, tensor<?x32xf32>) -> tensor<?x32xf32>\n'
        '    %final = "ts.rms_norm"(%late, %last)',
    )
    first, middle, last = split_stages(laid_out(module.parse(text), mesh(tp=1)), [1, 2])
    assert [len(named(stage, "ts.send")) for stage in (first, middle, last)] == [2, 2, 0]
    assert [len(named(stage, "ts.receive")) for stage in (first, middle, last)] == [0, 2, 2]
    labels = [module.label_of(item) for item in named(middle, "ts.send")]
    assert labels == ["embed", ""], "in the order in which they are made"
    passed_on = named(middle, "ts.receive")[0].results[0]
    assert named(middle, "ts.send")[0].operands[0] == passed_on


def test_layers_that_share_a_cache_stay_together():
    text = decoder(layers=4)
    whole = laid_out(module.parse(text), mesh(tp=1))
    assert joined(whole) == {}
    stores, reads = '"ts.rope_kv_write"', "ts.cached_attention"
    printed = str(split_stages(whole, [2])[0])
    assert stores in printed and reads in printed
    # every layer reads the first one's cache
    shared = laid_out(module.parse(text), mesh(tp=1))
    for item in named(shared, reads):
        item.attributes["layer"] = module.text("0")
    assert {cut: layer for cut, layer in joined(shared).items() if layer == "0"} == dict.fromkeys((1, 2, 3), "0")
