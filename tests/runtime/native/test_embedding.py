"""Rows of an embedding table, exact for every layout."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.plans.errors import PlanError

from ..functions.calling import poisoned, random
from .calling import MACHINES, call, on_every_machine
from .panels import GGML, packed, quantised

IDS = torch.tensor([0, 69, 3, 3, 31, 32, 64], dtype=torch.int32)


@on_every_machine
@pytest.mark.parametrize("dtype", ["row-major", "f32", "bf16", *GGML])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_rows(machine: str, dtype: str, out_dtype: torch.dtype) -> None:
    features = 96 if dtype in GGML else 77
    values = random(70, features, dtype=torch.bfloat16)
    table = values if dtype == "row-major" else packed(machine, values, dtype)
    expected = quantised(values, dtype)[1] if dtype in GGML else values
    frame = poisoned(len(IDS) + 2, features + 3, dtype=out_dtype)
    call(machine, "embedding", [IDS, table], [frame[1:-1, 1:-2]])
    tolerance = 2.0**-22 if dtype == "q4_1" else 0.0  # a product and a sum, rounded once here and twice there
    torch.testing.assert_close(frame[1:-1, 1:-2], expected[IDS.long()].to(out_dtype), rtol=tolerance, atol=tolerance)
    assert int(frame.isnan().sum()) == frame.numel() - len(IDS) * features


def test_an_id_outside_the_table_gives_zeros() -> None:
    out = poisoned(2, 8)
    call(next(iter(MACHINES)), "embedding", [torch.tensor([-1, 5], dtype=torch.int32), random(5, 8)], [out])
    assert not out.any()


def test_refuses_what_it_cannot_look_up() -> None:
    machine = next(iter(MACHINES))
    table, out = random(70, 32), poisoned(len(IDS), 32)
    for wrong in (
        ([IDS.float(), table], [out]),
        ([IDS, table.T], [poisoned(len(IDS), 70)]),
        ([IDS, table.to(torch.int32)], [out]),
        ([IDS, table], [poisoned(len(IDS) - 1, 32)]),
        ([IDS, table], [poisoned(32, len(IDS)).T]),
        ([IDS], [out]),
    ):
        with pytest.raises(PlanError):
            call(machine, "embedding", *wrong)
