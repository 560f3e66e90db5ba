"""Partitioning, and the SPMD verifier: it trusts nothing, so each change of one placement must be noticed."""

from __future__ import annotations

import random

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.sharding import PlacementConflict
from tokenspeed.ir.types import dtype_of, placement_of, shape_of, tensor, with_placement
from tokenspeed.passes.partition import partition
from tokenspeed.passes.verify_spmd import verify_spmd
from tokenspeed.plans.schema import MeshAxis

from ..ir.modules import decoder, step
from .test_fusions import fused

ONE = (MeshAxis(name="tp", size=1),)


def values_of(parsed: ir.Module) -> list[ir.Value]:
    found: list[ir.Value] = []
    for operation in module.walk(module.step_block(parsed)):
        found.extend(operation.results)
        if operation.name == "ts.repeat":
            found.extend(module.body_of(operation).arguments)
    return found


def test_one_rank_is_replicated_throughout() -> None:
    placed = module.parse(decoder(bias=True))
    assert partition(placed, (MeshAxis(name="tp", size=1), MeshAxis(name="ep", size=1))) == ()
    assert {str(placement_of(value)) for value in values_of(placed)} == {str({"ep": "replicate", "tp": "replicate"})}
    assert str(module.parse(str(placed))) == str(placed)


def test_fused_modules_verify() -> None:
    made = fused(decoder(layers=4, bias=True, pattern=2))
    partition(made, ONE)
    verify_spmd(made)


def test_groups_have_rows_of_their_own_throughout() -> None:
    placed = module.parse(decoder(bias=True))
    assert partition(placed, (MeshAxis(name="dp", size=1),)) == ()
    for value in values_of(placed):
        assert placement_of(value) == {"dp": "own" if None in shape_of(value) else "replicate"}
    assert str(module.parse(str(placed))) == str(placed)
    verify_spmd(placed)


CHANGES = ("own", "replicate", "shard(0)", "shard(1)", "partial", "shard(7)", "nowhere", "")


@pytest.mark.parametrize("axis", ["tp", "dp"])
@pytest.mark.parametrize("make", [lambda: module.parse(decoder(bias=True)), lambda: fused(decoder())], ids=["raised", "fused"])
def test_any_one_changed_placement_is_caught(make: object, axis: str) -> None:
    assert callable(make)
    placed = make()
    partition(placed, (MeshAxis(name=axis, size=1),))
    chosen, values = random.Random(20261), values_of(placed)
    changes = [(value, change) for value in values for change in CHANGES if placement_of(value)[axis] != change]
    for value, change in chosen.sample(changes, 120):
        kept = value.type
        value.set_type(tensor(dtype_of(value), shape_of(value), {axis: change} if change else None))
        with pytest.raises(PlacementConflict):
            verify_spmd(placed)
        value.set_type(kept)
    verify_spmd(placed)


def test_a_consistent_cut_is_accepted_and_its_partial_result_is_not_returned() -> None:
    """Column then row cut: right by every rule, but the sum over ranks is missing at the end."""
    whole, cut, partial = ('{tp = "' + name + '"}' for name in ("replicate", "shard(1)", "partial"))
    plain, rows = "operandSegmentSizes = array<i32: 1, 1, 0>", '{tp = "shard(0)"}'
    body = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> tensor<?x8xf32, {whole}>',
        f'%a = "ts.weight"() {{parameters = ["a"], sym = "a"}} : () -> tensor<6x8xf32, {rows}>',
        f'%b = "ts.weight"() {{parameters = ["b"], sym = "b"}} : () -> tensor<8x6xf32, {cut}>',
        f'%y = "ts.linear"(%x, %a) {{{plain}}} : (tensor<?x8xf32, {whole}>, tensor<6x8xf32, {rows}>) -> tensor<?x6xf32, {cut}>',
        f'%z = "ts.linear"(%y, %b) {{{plain}}} : (tensor<?x6xf32, {cut}>, tensor<8x6xf32, {cut}>) -> tensor<?x8xf32, {partial}>',
    ]
    missing = step([*body, f"return %z : tensor<?x8xf32, {partial}>"], f"tensor<?x8xf32, {partial}>")
    with pytest.raises(PlacementConflict, match="every rank needs it whole"):
        verify_spmd(module.parse(missing))
    summed = (
        f'%s = "ts.all_reduce"(%z) {{axis = "tp", ranks = 2 : i64}} : (tensor<?x8xf32, {partial}>) -> tensor<?x8xf32, {whole}>'
    )
    verify_spmd(module.parse(step([*body, summed, f"return %s : tensor<?x8xf32, {whole}>"], f"tensor<?x8xf32, {whole}>")))


def test_a_carried_value_keeps_its_placement() -> None:
    placed = module.parse(decoder())
    partition(placed, ONE)
    repeat = next(item for item in module.walk(module.step_block(placed)) if item.name == "ts.repeat")
    with_placement(module.body_of(repeat).arguments[0], {"tp": "shard(0)"})
    with pytest.raises(PlacementConflict, match="placement changes"):
        verify_spmd(placed)
