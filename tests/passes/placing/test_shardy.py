"""Shardy as an oracle: for the same pins XLA's partitioner inserts collectives of the same kinds, and as many."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.sharding import COLLECTIVES
from tokenspeed.passes.placing.pins import Pin, Pins

from ...ir.modules import decoder
from ...mesh import laid_out, mesh

RANKS = 4
OUT, IN = ("q_proj", "gate_proj", "up_proj", "lm_head"), ("o_proj", "down_proj")
PINS = (*(Pin(f"*{name}", "shard(0)") for name in OUT), *(Pin(f"*{name}", "shard(1)") for name in IN))
PINS = (Pin("*", "cut"), *PINS)
"""The same as in the oracle. Two heads of keys over four ranks lie in copies here, which is no placement there."""


def found(rows: str) -> list[ir.Operation]:
    """The collectives of a decoder whose layers run in one body; `rows`: what is pinned of those of norms."""
    parsed = laid_out(module.parse(decoder()), mesh(tp=RANKS), Pins((*PINS, Pin("*norm*", rows=rows))))
    _alive.append(parsed)
    return [item for item in module.walk(module.step_block(parsed)) if item.name in COLLECTIVES]


_alive: list[ir.Module] = []


def counted(items: list[ir.Operation], label: str = "layers.", *, behind: str = "") -> Counter[str]:
    labels = ((item, module.label_of(item)) for item in items)
    return Counter(item.name.removeprefix("ts.") for item, own in labels if own.startswith(label) and own.endswith(behind))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_shardy_inserts_the_same_collectives() -> None:
    oracle = Path(__file__).parents[2] / "shardy_oracle.py"
    told = subprocess.run([sys.executable, str(oracle)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    expected = {name: Counter({kind: n for kind, n in kinds.items() if n}) for name, kinds in json.loads(told.stdout).items()}
    whole, cut = found("replicate"), found("cut")
    assert {
        "mlp": counted(whole, behind="down_proj"),
        "attention": counted(whole, behind="o_proj"),
        "layer": counted(whole),
        "layer of rows": counted(cut),
        "head": counted(whole, "lm_head"),
    } == expected
    assert expected["layer of rows"] == {"all_gather": 2, "reduce_scatter": 2}
    _alive.clear()
