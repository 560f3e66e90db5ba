"""Where a pipeline is cut: the slowest stage is as fast as can be, whatever the layers cost."""

from __future__ import annotations

import itertools
import random

import pytest
from tokenspeed.ir import module
from tokenspeed.passes.balance_stages import StepCosts, UnitCost, balance, step_costs
from tokenspeed.passes.select import Workload, select
from tokenspeed.plans.errors import MemoryPlanError, UsageError
from tokenspeed.targets.registry import find_target

from ..ir.modules import HEAD_DIM, HIDDEN, KV_HEADS, VOCABULARY, decoder
from ..mesh import laid_out, mesh


def layers(*seconds: float, before: float = 0.0, behind: float = 0.0, weights: float = 10.0, kept: float = 1.0) -> StepCosts:
    return StepCosts(UnitCost(before), tuple(UnitCost(each, weights, kept) for each in seconds), UnitCost(behind))


def test_embedding_and_head_are_counted():
    assert balance(layers(*[1.0] * 8), 2, None, 0) == [4]
    assert balance(layers(*[1.0] * 8, behind=4.0), 2, None, 0) == [6]
    assert balance(layers(5.0, 1.0, 1.0, 1.0, 1.0, 1.0), 2, None, 0) == [1]
    assert balance(layers(*[1.0] * 8), 1, None, 0) == []


@pytest.mark.parametrize("seed", range(6))
def test_no_other_cuts_have_a_faster_slowest_stage(seed: int):
    chosen = random.Random(seed)
    costs = layers(*(chosen.uniform(1, 9) for _ in range(9)), before=chosen.uniform(0, 9), behind=chosen.uniform(0, 30))
    for stages in (2, 3, 4):
        forbidden = {chosen.randrange(1, 9)}
        allowed = [cut for cut in range(1, 9) if cut not in forbidden]
        ways = list(itertools.combinations(allowed, stages - 1))
        least = min(max(stage.seconds for stage in costs.stages(cuts)) for cuts in ways)
        found = balance(costs, stages, None, 0, forbidden)
        assert tuple(found) in ways
        assert max(stage.seconds for stage in costs.stages(found)) <= 1.01 * least


def test_memory_goes_before_time():
    costs = StepCosts(UnitCost(), (UnitCost(8.0, 10, 1), *[UnitCost(1.0, 10, 1)] * 5), UnitCost(0.0, 30, 0))
    assert balance(costs, 2, None, 0) == [1]
    assert balance(costs, 2, 80 + 5 * 4, 4) == [1]
    assert balance(costs, 2, 80, 4) == [3], "the last stage holds three layers and the head: 3 x 14 + 30"
    with pytest.raises(MemoryPlanError, match="no cut of the layers"):
        balance(costs, 2, 40, 4)


def test_of_equal_times_the_one_with_most_room_for_keys_and_values():
    """The layer in the middle costs nothing; its weights go where there is room."""
    costs = StepCosts(UnitCost(0, 50, 0), (UnitCost(1, 10, 1), UnitCost(0, 10, 1), UnitCost(1, 10, 1)), UnitCost())
    assert balance(costs, 2, 1000, 1) == [1]


def test_too_few_layers_are_refused():
    with pytest.raises(UsageError, match="too few borders"):
        balance(layers(1.0, 1.0), 3, None, 0)
    with pytest.raises(UsageError) as refused:
        balance(layers(1.0, 1.0, 1.0), 3, None, 0, {1})
    assert "share a cache" in str(refused.value)


def test_costs_of_a_step():
    machine, loads = find_target("cpu-avx2"), (Workload(4, 4, 0.75), Workload(64, 1, 0.25))
    with module.context():
        placed = laid_out(module.parse(decoder(layers=4, tied=True)), mesh(tp=1))
        select(placed, machine, loads)
        costs = step_costs(placed, machine, loads, 512.0, None)
        further = step_costs(placed, machine, loads, 8192.0, None)
    assert len(costs.units) == 4 and len({*costs.units}) == 1
    table = VOCABULARY * HIDDEN * 4
    assert (costs.before.weights, costs.behind.weights) == (table, table + HIDDEN * 4), "tied embeddings are on both ends"
    assert costs.units[0].kept == 2 * KV_HEADS * HEAD_DIM * 4
    assert further.units[0].seconds > costs.units[0].seconds and further.behind == costs.behind
    first, last = costs.stages([1])
    assert first.kept * 3 == pytest.approx(last.kept)
    assert first.seconds + last.seconds == pytest.approx(sum(unit.seconds for unit in (costs.before, *costs.units, costs.behind)))
