"""One of several ranks that send rows to each other's experts and back, as a process: `python -m ... RANK RANKS FILE`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.context import Context
from tokenspeed.runtime.functions.registry import lookup
from torch import Tensor, distributed

ROWS, WIDTH, TOP, EXPERTS = 5, 6, 2, 7
"""Of a rank. Three ranks have three experts, three and one."""


def indices_of(step: int, ranks: int) -> Tensor:
    """In the second step all rows go to the first two experts, so that nothing is sent to others."""
    generator = torch.Generator().manual_seed(step)
    most = EXPERTS if step == 0 else 2
    return torch.stack([torch.randperm(most, generator=generator)[:TOP] for _ in range(ranks * ROWS)]).int()


def rows_of(rank: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(100 + rank))


def owners(indices: Tensor, ranks: int) -> Tensor:
    return indices // -(-EXPERTS // ranks)


def main(rank: int, ranks: int, file: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    group: Any = distributed.new_group(list(range(ranks)))
    context = Context({"dp": group})
    attributes: dict[str, Any] = {"axis": "dp", "dimension": 0, "ranks": ranks, "experts": EXPERTS}
    everything = torch.cat([rows_of(other) for other in range(ranks)])
    for dtype in (torch.float32, torch.bfloat16):
        x, whole = rows_of(rank).to(dtype), torch.full((ranks * ROWS, WIDTH), torch.nan, dtype=dtype)
        indices, out = torch.zeros(ranks * ROWS, TOP, dtype=torch.int32), torch.full((ROWS, WIDTH), torch.nan, dtype=dtype)
        send = lookup("dispatch")(Operands("dispatch", [x, indices], [whole], attributes, context))
        back = lookup("combine")(Operands("combine", [whole, indices], [out], attributes, context))
        for step in (0, 1, 0):
            indices.copy_(indices_of(step, ranks))
            whole.fill_(torch.nan)
            send()
            here = (owners(indices, ranks) == rank).any(1)
            assert torch.equal(whole[here], everything.to(dtype)[here]) and whole[~here].isnan().all()
            whole.mul_(rank + 1)
            back()
            reached = torch.stack([(owners(indices, ranks) == other).any(1) * (other + 1) for other in range(ranks)]).sum(0)
            expected = (x.float() * reached[rank * ROWS : (rank + 1) * ROWS, None]).to(dtype)
            assert torch.allclose(out.float(), expected.float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
