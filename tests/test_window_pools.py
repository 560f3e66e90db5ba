"""Layers that see a window keep its blocks alone: logits are transformers' own over contexts of many windows, while all that is
behind a window, and all that no sequence has written, is not a number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.kv_caches import cache_names
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import KvGeometry, Manifest, WindowPool
from tokenspeed.plans.window_blocks import window_blocks
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, WindowPlaces, fixed_batch
from tokenspeed.runtime.goldens import replay_goldens
from tokenspeed.runtime.host_arrays import HostArray
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.kv import KvManager, manager_of
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.sequence_blocks import SequenceBlocks
from tokenspeed.runtime.scheduling.windows import WindowBlocks
from tokenspeed.runtime.scheduling.windows import WindowPool as ManagedPool
from transformers import PreTrainedModel

from .mesh import WHATEVER_CAN_BE
from .test_ranks import free_address
from .tiny_models import FAMILIES, MIXTURES, MORE_FAMILIES, build, remember_traces, save

TOLERANCE = 1e-4
CONTEXT, SEQUENCES, CHUNK, BLOCK = 448, 3, 80, 64
BLOCKS_PER_SEQUENCE = CONTEXT // BLOCK
WINDOWS = {"mistral": 70, "gemma2": 64, "gpt_oss": 33}

# each step: (sequence, first position, rows); sequences of one row come first
STEPS = (
    *(((0, start, 80),) for start in (0, 80, 160)),
    ((0, 240, 1), (1, 0, 60)),
    ((0, 241, 1), (1, 60, 70)),
    *(((0, 242 + n, 1), (1, 130 + n, 1)) for n in range(2)),
    ((0, 244, 1), (1, 132, 60)),
    ((1, 192, 1), (0, 245, 75)),
    ((0, 320, 1), (1, 193, 1)),
    ((0, 321, 64), (2, 0, 3)),
)


def family(name: str) -> dict[str, Any]:
    sizes = {"max_position_embeddings": CONTEXT, "sliding_window": WINDOWS[name]}
    return {**(FAMILIES | MORE_FAMILIES | MIXTURES)[name], **sizes}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)


def compiled(directory: Path, **more: Any) -> Path:
    options = CompileOptions(
        dtype="f32",
        max_context=CONTEXT,
        max_sequences=CHUNK + 2,  # as many rows may have logits
        prefill_chunk=CHUNK,
        traffic=TrafficProfile(prompt_tokens=CONTEXT, output_tokens=1, concurrency=SEQUENCES),
        window_pools=True,
        **more,
    )
    with context():
        state = compile_model(open_model(directory), options, lambda _phase, _state: None)
    assert state.manifest is not None
    path = directory.parent / "plan.bin"
    write_plan(path, state.manifest, state.entries)
    return path


def expected(model: PreTrainedModel, tokens: NDArray[np.int32], steps: Sequence[Any]) -> list[NDArray[np.float32]]:
    lengths: dict[int, int] = {}
    for key, start, count in (part for step in steps for part in step):
        lengths[key] = max(lengths.get(key, 0), start + count)
    with torch.no_grad():
        whole = {
            key: model(input_ids=torch.from_numpy(tokens[key, :length].astype(np.int64))[None], use_cache=False).logits[0].numpy()
            for key, length in lengths.items()
        }
    return [np.concatenate([whole[key][start : start + count] for key, start, count in step]) for step in steps]


def places(pool: WindowPool) -> WindowPlaces:
    most = window_blocks(pool.window, CHUNK, BLOCK)
    assert most < BLOCKS_PER_SEQUENCE and SEQUENCES * most < pool.blocks
    return WindowPlaces(pool.window, tuple(np.arange(1, 1 + SEQUENCES * most, dtype=np.int32).reshape(SEQUENCES, most)))


class Sequences:
    """Sequences that own as few blocks of every pool as they need; the first block of a window's pool is nobody's."""

    def __init__(self, kv: KvGeometry, executor: PlanExecutor) -> None:
        self.kv, self.lengths = kv, dict.fromkeys(range(SEQUENCES), 0)
        self.windows = [places(pool) for pool in kv.windows]
        state = executor._placement.surroundings.state
        found = ((group.pool, state[name]) for group in kv.groups for name in cache_names(group))
        self.caches = [(pool, array.data) for pool, array in found if isinstance(array, HostArray)]

    def logits(self, executor: PlanExecutor, tokens: NDArray[np.int32], step: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
        self.forget()
        rows = [Rows(key, start, tokens[key, start : start + count].tolist()) for key, start, count in step]
        batch = fixed_batch(rows, BLOCKS_PER_SEQUENCE, BLOCK, all_logits=True, windows=self.windows)
        found = executor.logits_for(batch).copy()
        for key, start, count in step:
            self.lengths[key] = start + count
        return found

    def forget(self) -> None:
        """What no sequence's next row sees is not a number."""
        for pool, cache in self.caches:
            kept = [block for key, length in self.lengths.items() for block in self.seen(pool, key, length)]
            cache[np.setdiff1d(np.arange(len(cache)), kept)] = np.nan

    def seen(self, pool: int, key: int, length: int) -> list[int]:
        """Blocks with tokens that the row at position `length` sees."""
        if not pool:
            return list(range(key * BLOCKS_PER_SEQUENCE, key * BLOCKS_PER_SEQUENCE + -(-length // BLOCK)))
        places = self.windows[pool - 1]
        own = places.blocks[key]
        first = max(0, length - places.window + 1) // BLOCK
        return [int(own[number % len(own)]) for number in range(first, -(-length // BLOCK))]


@pytest.mark.parametrize(("name", "kernels"), [("mistral", "auto"), ("gemma2", "auto"), ("gemma2", "library")])
def test_logits_are_those_of_transformers(name: str, kernels: str, tmp_path: Path) -> None:
    model = build(family(name))
    directory = save(model, tmp_path / "model")
    with Plan.open(compiled(directory, kernels=kernels)) as plan:
        kv = plan.manifest.kv
        (pool,) = kv.windows
        assert pool.window == WINDOWS[name]
        assert {group.pool for group in kv.groups} == ({1} if name == "mistral" else {0, 1})
        assert (kv.bytes_per_block == 0) == (name == "mistral")
        tokens = np.random.default_rng(5).integers(0, plan.manifest.model.vocabulary, (SEQUENCES, CONTEXT), dtype=np.int32)
        executor = load_executor(plan, str(directory), 1, lambda _phase: None)
        sequences = Sequences(kv, executor)
        for number, (step, wanted) in enumerate(zip(STEPS, expected(model, tokens, STEPS), strict=True)):
            worst = np.abs(sequences.logits(executor, tokens, step) - wanted).max()
            assert worst <= TOLERANCE, f"step {number}: {worst}"
        executor.close()
        assert all(outcome.passed for outcome in replay_goldens(plan, None, lambda _phase: None))


def test_the_check_can_fail(tmp_path: Path) -> None:
    """A block too few behind the window is noticed."""
    model = build(family("gemma2"))
    directory = save(model, tmp_path / "model")
    with Plan.open(compiled(directory, kernels="library")) as plan:
        tokens = np.random.default_rng(5).integers(0, 160, (SEQUENCES, CONTEXT), dtype=np.int32)
        executor = load_executor(plan, str(directory), 1, lambda _phase: None)
        sequences = Sequences(plan.manifest.kv, executor)
        for step in STEPS[:3]:
            sequences.logits(executor, tokens, step)
        sequences.windows = [WindowPlaces(1, places.blocks) for places in sequences.windows]
        assert np.isnan(sequences.logits(executor, tokens, ((0, 240, 1),))).any()
        executor.close()


def test_on_two_ranks(tmp_path: Path) -> None:
    model = build(family("gpt_oss"))
    directory = save(model, tmp_path / "model")
    path = compiled(directory, parallel="tp=2", placement=WHATEVER_CAN_BE.pins)
    tokens = np.random.default_rng(5).integers(0, 160, (SEQUENCES, CONTEXT), dtype=np.int32)
    steps = [[(key, start, tokens[key, start : start + count].tolist()) for key, start, count in step] for step in STEPS]
    out = tmp_path / "logits.npz"
    job = {"plans": [("model", str(path), str(directory))], "steps": steps, "blocks_per_sequence": BLOCKS_PER_SEQUENCE}
    job |= {"address": free_address(), "out": str(out)}
    command = [sys.executable, str(Path(__file__).with_name("ranked_logits.py"))]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    for rank, process in enumerate(running):
        assert process.stdin is not None
        process.stdin.write(json.dumps(job | {"rank": rank}) + "\n")
        process.stdin.close()
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    found = np.load(out)
    for number, wanted in enumerate(expected(model, tokens, STEPS)):
        assert np.abs(found[f"model/{number}"] - wanted).max() <= TOLERANCE, number


def test_served_sequences_keep_their_windows_alone(tmp_path: Path) -> None:
    """Through the scheduler: long outputs, prompts in chunks, equal prefixes; blocks that nobody has are not numbers."""
    model = build(family("gemma2"))
    directory = save(model, tmp_path / "model")
    with Plan.open(compiled(directory)) as plan:
        manifest = plan.manifest
        executor = load_executor(plan, str(directory), 1, lambda _phase: None)
        scheduler, kv = one_group(manifest)
        caches = Sequences(manifest.kv, executor).caches
        tokens = np.random.default_rng(5).integers(0, 160, (2, CONTEXT), dtype=np.int32)
        prompts = {"long": tokens[0, :200], "short": tokens[1, :10], "again": tokens[0, :230]}
        found: dict[str, list[int]] = {name: [] for name in prompts}
        scheduler.submit(Request("long", prompts["long"], 150))
        scheduler.submit(Request("short", prompts["short"], 180))
        sampling = SamplingParameters(max_tokens=CONTEXT, temperature=0.0, ignore_eos=True)
        most = 0
        while scheduler.has_work:
            batch = scheduler.schedule()
            assert batch is not None
            for pool, cache in caches:
                cache[[block.index for block in (kv.windows[pool - 1].pool if pool else kv.pool).free]] = np.nan
            for admission in batch.admissions:
                executor.admit(admission.slot, sampling, (), admission.prompt, admission.output)
            for outcome in scheduler.complete(batch.step_id, executor.run(batch).tokens):
                assert outcome.token is not None
                found[outcome.request_id].append(outcome.token)
                if outcome.request_id == "long" and outcome.finish_reason:
                    scheduler.submit(Request("again", prompts["again"], 20))
            scheduler.check_integrity()
            held = (windows_of(kv, blocks) for blocks in kv.open_sequences())
            most = max([most, *(len(window.indices(part)) for pairs in held for window, part in pairs)])
        assert most <= window_blocks(WINDOWS["gemma2"], 2 * CHUNK, BLOCK) + 1 < BLOCKS_PER_SEQUENCE
        assert scheduler.stats().prefix_hits == 192
        executor.close()
    for name, prompt in prompts.items():
        whole = np.concatenate([prompt, np.array(found[name], np.int32)])
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(whole.astype(np.int64))[None], use_cache=False).logits[0].numpy()
        chosen = logits[len(prompt) - 1 : -1]
        best = chosen.max(1)
        assert (best - chosen[np.arange(len(chosen)), found[name]]).max() <= TOLERANCE, name


def one_group(manifest: Manifest) -> tuple[Scheduler, KvManager]:
    kv = manager_of(manifest.kv)
    return Scheduler(SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context), kv), kv


def windows_of(kv: KvManager, blocks: SequenceBlocks) -> Iterator[tuple[ManagedPool, WindowBlocks]]:
    return zip(kv.windows, blocks.windows, strict=True)
