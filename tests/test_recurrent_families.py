"""Acceptance of recurrent models: a compiled plan gives transformers' logits, packed, in chunks and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenspeed.runtime.goldens import replay_goldens

from .recurrent_models import RECURRENT_MODELS
from .test_families import ALL_KINDS, check, compiled
from .tiny_models import build, remember_traces, save


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Traces are remembered, and one thread does for arrays this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen3_next"])
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config: dict[str, Any] = RECURRENT_MODELS[name]
    model = build(config)
    directory = save(model, tmp_path / "model")
    found = compiled(directory, directory, model)
    check(found, ALL_KINDS)
    check(found, ALL_KINDS)  # the slots hold other sequences' states by now: position 0 starts anew
    kv, memory = found.plan.manifest.kv, found.plan.manifest.memory
    assert kv.states and not kv.shares_prefixes and memory.states > 0
    outcomes = replay_goldens(found.plan, None, lambda _phase: None)
    assert outcomes and all(outcome.passed for outcome in outcomes), outcomes
