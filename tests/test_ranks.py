"""Acceptance: plans over several ranks, each a process, give transformers' logits."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions, Overlap
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.placing.pins import Pins
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.writer import write_plan

from .mesh import ROWS_OF_NORMS, WHATEVER_CAN_BE
from .test_families import ALL_KINDS, BLOCKS_PER_SEQUENCE, CHUNK, CONTEXT, SEQUENCES, TOLERANCE
from .tiny_models import FAMILIES, MIXTURES, MORE_FAMILIES, build, remember_traces, save

CHOSEN = {
    "tp=2": ("phi3", "deepseek_v3"),
    "tp=4": ("llama",),
    "ep=2,tp=2": ("gpt_oss",),
    "pp=3": ("qwen2",),
    "pp=2,tp=2": ("deepseek_v3",),
}
"""Packed projections, latents; tied embeddings, heads in copies; biases, sinks, whole experts
in parts; stages of 2, 2 and 1 layers;
latents on ranks of two axes."""


ROWS_CUT = {"deepseek_v3", "llama"}
"""Those in which each rank does the norms of some of the rows."""


OVERLAPPED = {"phi3", "gpt_oss"}
"""Those whose layers run in halves of a prompt's rows."""


def compiled(directory: Path, parallel: str, pins: Pins = WHATEVER_CAN_BE, overlap: Overlap = "auto") -> Path:
    """A plan in which whatever can be cut is: models this small would be replicated."""
    options = CompileOptions(
        dtype="f32",
        max_context=CONTEXT,
        max_sequences=SEQUENCES,
        prefill_chunk=CHUNK,
        traffic=TrafficProfile(prompt_tokens=CONTEXT, output_tokens=CONTEXT),
        parallel=parallel,
        placement=pins.pins,
        overlap=overlap,
    )
    with context():
        state = compile_model(open_model(directory), options, lambda _phase, _state: None)
    assert state.manifest is not None
    path = directory.parent / f"{directory.name}.{parallel}.bin"
    write_plan(path, state.manifest, state.entries)
    return path


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="module")
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """As many as the largest mesh has ranks; a smaller one has the first of them."""
    command, pipe = [sys.executable, str(Path(__file__).with_name("ranked_logits.py"))], subprocess.PIPE
    with ExitStack() as stack:
        yield [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in range(4)]


@pytest.mark.parametrize("parallel", CHOSEN)
def test_logits_on_several_ranks(parallel: str, processes: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    ranks = math.prod(int(part.partition("=")[2]) for part in parallel.split(","))
    tokens = np.random.default_rng(11).integers(0, 160, (6, CONTEXT), dtype=np.int32)
    steps = [[(key, start, tokens[key, start : start + count].tolist()) for key, start, count in step] for step in ALL_KINDS]
    models = {name: build({**FAMILIES, **MORE_FAMILIES, **MIXTURES}[name]) for name in CHOSEN[parallel]}
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        for number, (name, model) in enumerate(models.items()):
            directory = save(model, tmp_path / str(number))
            pins = ROWS_OF_NORMS if name in ROWS_CUT else WHATEVER_CAN_BE
            plans.append(
                (name, str(compiled(directory, parallel, pins, "always" if name in OVERLAPPED else "auto")), str(directory))
            )
    out = tmp_path / "logits.npz"
    job = {"plans": plans, "steps": steps, "blocks_per_sequence": BLOCKS_PER_SEQUENCE, "address": free_address(), "out": str(out)}
    for rank, process in enumerate(processes[:ranks]):
        assert process.stdin is not None
        process.stdin.write(json.dumps(job | {"rank": rank}) + "\n")
        process.stdin.flush()
    assert [process.stdout.readline() for process in processes[:ranks] if process.stdout is not None] == ["done\n"] * ranks
    found = np.load(out)
    for name, model in models.items():
        lengths: dict[int, int] = {}
        for key, start, count in (part for step in ALL_KINDS for part in step):
            lengths[key] = max(lengths.get(key, 0), start + count)
        with torch.no_grad():
            expected = {
                key: model(input_ids=torch.from_numpy(tokens[key, :length].astype(np.int64))[None], use_cache=False).logits[0]
                for key, length in lengths.items()
            }
        for number, step in enumerate(ALL_KINDS):
            wanted = np.concatenate([expected[key][start : start + count].numpy() for key, start, count in step])
            worst = np.abs(found[f"{name}/{number}"] - wanted).max()
            assert worst <= TOLERANCE, f"{name}, step {number}: {worst}"
