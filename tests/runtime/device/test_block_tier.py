"""The tier of KV blocks in page-locked memory, over a fake driver whose streams put off what nothing waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from msgspec.structs import replace
from tokenspeed.plans.kv_caches import cache_names
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import KvGroup, WindowPool
from tokenspeed.runtime.device import block_tier
from tokenspeed.runtime.device.arrays import DeviceArena, fetched
from tokenspeed.runtime.device.errors import DeviceError
from tokenspeed.runtime.device.page_locked import PageLockedPieces
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.functions.context import Launch
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.step import BlockCopies, StepBatch, WindowPart, empty_step

from ...plans.sample_plan import sample_manifest
from .cached_plan import CACHE_BLOCK_BYTES, LAYERS, write_cached_plan
from .device_plan import BLOCK_TOKENS
from .fake_driver import FakeDriver

HOST_BLOCKS = 7
FIRST, SECOND = [3, 9, 4, 1, 17, 5, 22], [7, 5, 8, 30, 2, 11, 6]
ORDERS = {"at once": (False, False), "copies late": (False, True), "rows late": (True, False), "all late": (True, True)}


@pytest.fixture(params=[1, 1 << 20], ids=["pieces of a block", "one piece"])
def executor(
    fake: FakeDriver, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PlanExecutor]:
    monkeypatch.setattr(block_tier, "PIECE_BYTES", request.param)
    with Plan.open(write_cached_plan(tmp_path / "plan.bin", fake.vendor, HOST_BLOCKS)) as plan:
        loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver(), host_tier=True)
    for slot in range(2):
        none = np.empty(0, np.int32)
        loaded.admit(slot, SamplingParameters(max_tokens=9, temperature=0.0), (), np.array([1], np.int32), none)
    yield loaded
    fake.put_off()
    loaded.close()


def copies(device: Sequence[int], host: Sequence[int]) -> tuple[BlockCopies, ...]:
    return (BlockCopies(np.array(device, np.int32), np.array(host, np.int32)),)


def rows(slot: int, start: int, tokens: Sequence[int], blocks: Sequence[int]) -> StepBatch:
    """Rows of one sequence that has these blocks."""
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    table = np.array([blocks], np.int32)
    return StepBatch(
        step_id=0,
        token_ids=np.array(tokens, np.int32),
        positions=positions,
        slot_mapping=table[0][positions // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS + positions % BLOCK_TOKENS,
        row_slots=np.full(len(tokens), slot, np.int32),
        sequence_starts=np.array([0, len(tokens)], np.int32),
        context_lengths=np.array([start + len(tokens)], np.int32),
        block_tables=table,
        logit_rows=np.array([len(tokens) - 1], np.int32),
        logit_slots=np.array([slot], np.int32),
        decode_rows=int(len(tokens) == 1),
        request_ids=(str(slot),),
        logit_request_ids=(str(slot),),
        admissions=(),
    )


def logits(executor: PlanExecutor, batch: StepBatch) -> list[float]:
    return executor.logits_for(batch)[0].tolist()


def alone(executor: PlanExecutor, blocks: Sequence[int]) -> tuple[list[float], list[float]]:
    """What FIRST gives where nothing is copied: of its last rows, and of one more."""
    logits(executor, rows(0, 0, FIRST[:4], blocks))
    return logits(executor, rows(0, 4, FIRST[4:], blocks)), logits(executor, rows(0, 7, [13], blocks))


@pytest.mark.parametrize("order", ORDERS)
def test_a_sequence_comes_back_as_it_was(fake: FakeDriver, executor: PlanExecutor, order: str) -> None:
    """Saved, overwritten by another, loaded elsewhere in the very step whose rows read it; then in a captured decode step."""
    chunk, token = alone(executor, [1, 2])
    other = logits(executor, rows(1, 0, SECOND, [5, 9]))
    first, others = ORDERS[order]
    fake.put_off(first=first, others=others)
    executor.run(rows(0, 0, FIRST, [1, 2]))
    executor.run(replace(rows(1, 0, SECOND[:3], [3, 4]), saves=copies([1, 2], [6, 2])))
    executor.run(rows(1, 0, SECOND, [2, 1]))  # over what was saved
    assert logits(executor, replace(rows(0, 4, FIRST[4:], [8, 7]), loads=copies([7, 8], [2, 6]))) == chunk
    executor.run(rows(1, 0, SECOND, [7, 8]))
    executor.run(replace(empty_step(0), loads=copies([2, 1], [2, 6])))
    executor.run(rows(0, 4, FIRST[4:], [1, 2]))  # the last block was not full when it was saved
    assert logits(executor, rows(0, 7, [13], [1, 2])) == token
    executor.run(rows(1, 0, SECOND, [7, 8]))
    executor.run(replace(empty_step(0), saves=copies([8], [0])))
    executor.run(rows(0, 0, FIRST, [7, 8]))
    assert (
        logits(executor, replace(rows(1, 6, SECOND[6:], [7, 3]), loads=copies([3], [0]), saves=())) != other
    )  # another's prefix
    fake.put_off()


def test_the_bytes_of_host_blocks_are_all_of_them_and_may_go_elsewhere(executor: PlanExecutor) -> None:
    """As the tier on disk reads and writes them: what was saved to two blocks is loaded from two others."""
    chunk, _ = alone(executor, [1, 2])
    executor.run(rows(0, 0, FIRST, [1, 2]))
    executor.run(replace(empty_step(0), saves=copies([1, 2], [6, 2])))
    for source, target in ((6, 0), (2, 5)):
        found, there = executor.host_block(source), executor.host_block(target)
        assert sum(part.nbytes for part in found) == 2 * LAYERS * CACHE_BLOCK_BYTES
        for one, other in zip(found, there, strict=True):
            other[...] = one
            one[...] = 0
    executor.run(rows(1, 0, SECOND, [1, 2]))
    assert logits(executor, replace(rows(0, 4, FIRST[4:], [8, 7]), loads=copies([8, 7], [0, 5]))) == chunk


@pytest.mark.parametrize("order", ORDERS)
def test_overlapped_steps_keep_copies_and_rows_apart(fake: FakeDriver, executor: PlanExecutor, order: str) -> None:
    """Each step starts while the one before it runs, and names blocks that were copied by one that is complete."""
    chunk, token = alone(executor, [1, 2])
    first, others = ORDERS[order]
    fake.put_off(first=first, others=others)
    zero = executor.start(rows(0, 0, FIRST, [1, 2]))
    one = executor.start(rows(1, 0, SECOND[:4], [3, 4]))
    zero()
    two = executor.start(replace(rows(1, 4, SECOND[4:], [3, 4]), saves=copies([1, 2], [4, 5])))
    one()
    three = executor.start(rows(1, 7, [-1], [3, 4]))
    two()  # what it saved may be overwritten now, with a step in flight
    four = executor.start(rows(1, 0, SECOND, [1, 2]))
    three()
    five = executor.start(replace(empty_step(5), loads=copies([9, 10], [4, 5])))
    four()
    six = executor.start(rows(0, 4, FIRST[4:], [9, 10]))  # rows behind loads that are still under way
    five()
    assert len(six().tokens) == 1
    assert logits(executor, rows(0, 4, FIRST[4:], [9, 10])) == chunk and logits(executor, rows(0, 7, [13], [9, 10])) == token
    fake.put_off()


def test_loads_wait_for_a_step_in_flight_that_touches_their_place(fake: FakeDriver, executor: PlanExecutor) -> None:
    chunk, _ = alone(executor, [1, 2])
    executor.run(rows(0, 0, FIRST, [1, 2]))
    executor.run(replace(empty_step(0), saves=copies([1, 2], [0, 1])))
    for first, others in ORDERS.values():
        fake.put_off(first=first, others=others)
        running = executor.start(rows(1, 0, SECOND, [6, 7]))
        loading = executor.start(replace(rows(0, 4, FIRST[4:], [6, 7]), loads=copies([6, 7], [0, 1])))
        running()
        loading()
        assert logits(executor, rows(0, 4, FIRST[4:], [6, 7])) == chunk
    fake.put_off()


def test_saves_wait_for_the_step_that_writes_what_they_read(fake: FakeDriver, executor: PlanExecutor) -> None:
    chunk, _ = alone(executor, [1, 2])
    executor.run(rows(1, 0, SECOND, [1, 2]))
    fake.put_off(first=True)
    running = executor.start(rows(0, 0, FIRST, [1, 2]))
    saving = executor.start(replace(empty_step(0), saves=copies([1, 2], [0, 1])))
    running()
    saving()
    assert logits(executor, replace(rows(0, 4, FIRST[4:], [6, 7]), loads=copies([6, 7], [0, 1]))) == chunk
    fake.put_off()


@pytest.mark.parametrize("order", ORDERS)
def test_with_other_ranks_copies_keep_to_the_order_of_steps(fake: FakeDriver, executor: PlanExecutor, order: str) -> None:
    """Another rank tells that a step is complete: here its copies may still be under way when their blocks are used again."""
    chunk, _ = alone(executor, [1, 2])
    tier = executor._placement.tier
    assert isinstance(tier, block_tier.DeviceBlockTier)
    tier._alone = False
    first, others = ORDERS[order]
    fake.put_off(first=first, others=others)
    executor.run(rows(0, 0, FIRST, [1, 2]))
    executor.run(rows(1, 0, SECOND, [3, 4]))
    saving = executor.start(replace(empty_step(0), saves=copies([1, 2], [0, 1])))
    over = executor.start(rows(1, 0, SECOND, [1, 2]))  # over what is saved
    saving()
    loading = executor.start(replace(empty_step(0), loads=copies([6, 7], [0, 1])))
    over()
    again = executor.start(replace(empty_step(0), saves=copies([3, 4], [0, 1])))  # over what is loaded
    again()
    loading()
    more = executor.start(replace(empty_step(0), saves=copies([1], [2])))
    last = executor.start(replace(empty_step(0), loads=copies([8, 10], [0, 2])))  # one of them is saved just now
    last()
    more()
    assert logits(executor, rows(0, 4, FIRST[4:], [6, 7])) == chunk
    other = logits(executor, rows(1, 6, SECOND[6:], [3, 4]))
    assert logits(executor, rows(1, 6, SECOND[6:], [8, 4])) == logits(executor, rows(1, 6, SECOND[6:], [10, 4])) == other
    fake.put_off()


def test_what_the_driver_is_asked_for(fake: FakeDriver, executor: PlanExecutor) -> None:
    """Runs of blocks in a rectangle of all caches; layer by layer where rows read them, each layer waited for by its launches."""
    pieces = block_tier.PIECE_BYTES == 1
    held = fake.held
    fake.clear_log()
    executor.run(replace(empty_step(0), saves=copies([4, 1, 2, 3], [5, 1, 2, 4])))
    parts = [1, 1, 1, 1] if pieces else [2, 2]
    asked = [line for line in fake.log() if "rows of" in line]
    assert asked == [f"copy {2 * LAYERS} rows of {blocks * CACHE_BLOCK_BYTES} to host" for blocks in parts]
    fake.clear_log()
    executor.run(replace(rows(0, 8, FIRST, [1, 2, 9, 10]), loads=copies([1, 2], [1, 2])))
    words = ("copy 2 rows", "wait in stream", "launch write", "launch read")
    log = [line for line in fake.log() if line.startswith(words)]
    loading = [line for line in log if line.startswith("copy 2 rows")]
    assert loading == [f"copy 2 rows of {(1 if pieces else 2) * CACHE_BLOCK_BYTES} to device"] * (
        2 * LAYERS if pieces else LAYERS
    )
    layers = [line.split()[0] for line in log[len(loading) :]]
    assert layers == ["wait", "launch", "launch", "launch", "launch"] * LAYERS
    fake.clear_log()
    executor.run(replace(rows(0, 15, [3], [12, 2, 9, 10]), loads=copies([12], [1])))  # a graph: all layers together
    log = [line for line in fake.log() if line.startswith((*words, "copy 8 rows", "launch graph"))]
    copy = f"copy {2 * LAYERS} rows of {CACHE_BLOCK_BYTES} to device"
    assert [line.split(" of ")[0] for line in log] == [
        "wait in stream, 0",
        copy.split(" of ")[0],
        "wait in stream, 0",
        *["launch graph"] * 2,
    ]
    assert log[1] == copy
    fake.clear_log()
    executor.run(replace(rows(0, 15, [3], [1, 2, 9, 10]), loads=copies([13], [1])))  # nothing that its rows read
    waits = [line for line in fake.log() if line.startswith(("wait in", "launch graph"))]
    assert waits[0] == "wait in stream, 0" and waits[1].startswith("launch graph")  # for the loads of the step before, alone
    assert fake.held == held


def test_a_step_that_cannot_be_started_leaves_nothing_under_way(fake: FakeDriver, executor: PlanExecutor) -> None:
    chunk, _ = alone(executor, [1, 2])
    executor.run(rows(0, 0, FIRST, [1, 2]))
    executor.run(replace(empty_step(0), saves=copies([1, 2], [0, 1])))
    executor.run(rows(1, 0, SECOND[:6], [8, 9]))
    other = logits(executor, rows(1, 6, SECOND[6:], [8, 9]))
    fake.put_off(others=True)
    fake.clear_log()
    executor.run(replace(rows(0, 4, FIRST[4:], [8, 9]), loads=copies([8, 9], [0, 1])))
    calls = len(fake.log())
    for nth in range(2, calls):
        fake.fail(nth, 304)
        try:
            executor.run(replace(rows(0, 4, FIRST[4:], [8, 9]), loads=copies([8, 9], [0, 1])))
        except DeviceError as error:
            assert error.code == 304
        executor.run(rows(1, 0, SECOND, [8, 9]))  # the blocks are another's at once
        fake.put_off(others=True)
        assert logits(executor, rows(1, 6, SECOND[6:], [8, 9])) == other
    fake.put_off()
    assert logits(executor, replace(rows(0, 4, FIRST[4:], [8, 9]), loads=copies([8, 9], [0, 1]))) == chunk


@pytest.mark.parametrize(("device", "host"), [([16], [0]), ([0], [HOST_BLOCKS]), ([-1], [0]), ([0, 1], [0])])
def test_blocks_that_are_not_there_are_refused(executor: PlanExecutor, device: list[int], host: list[int]) -> None:
    with pytest.raises(ValueError, match="a step copies"):
        executor.run(replace(empty_step(0), saves=copies(device, host)))


def test_without_a_tier_nothing_can_be_copied(fake: FakeDriver, tmp_path: Path) -> None:
    with Plan.open(write_cached_plan(tmp_path / "plan.bin", fake.vendor, HOST_BLOCKS)) as plan:
        loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
    with pytest.raises(ValueError, match="no host tier"):
        loaded.run(replace(empty_step(0), saves=copies([0], [0])))
    loaded.close()


def test_memory_that_cannot_be_locked_is_an_error_of_the_step_that_needs_it(fake: FakeDriver, tmp_path: Path) -> None:
    device = fake.device()
    pieces = PageLockedPieces(device, (64, 1 << 20), "a test")
    fake.fail(3, 2)  # set context, the first piece, the second
    pieces.start()
    assert pieces.address(0)
    with pytest.raises(DeviceError):
        pieces.address(1)
    pieces.close()
    device.close()


def test_pools_and_geometries_of_their_own(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 0 and 2 keep latents, 1 and 3 have a window and a pool of their own; each layer is there before its launch."""
    monkeypatch.setattr(block_tier, "PIECE_BYTES", 1 << 12)
    latent = KvGroup(name="a", kind="latent", layers=(0, 2), heads=1, head_dim=20, dtype="bf16")
    window = KvGroup(name="b", kind="paged", layers=(1, 3), heads=2, head_dim=4, dtype="f8e4m3", window=8, pool=1)
    sizes, base = (2 * 4 * 20 * 2, 2 * 2 * 4 * 2 * 4), sample_manifest()
    pool = WindowPool(window=8, blocks=6, bytes_per_block=sizes[1], host_blocks=70)
    kv = structs.replace(
        base.kv, block_tokens=4, blocks=9, bytes_per_block=sizes[0], groups=(latent, window), host_blocks=15, windows=(pool,)
    )
    device = fake.device()
    arena = DeviceArena(device, 8192, "caches")
    caches = {
        name: arena.take((kv.pool_blocks[group.pool], 4, group.heads, group.head_dim), group.dtype)
        for group in kv.groups
        for name in cache_names(group)
    }
    random = np.random.default_rng(7)
    fills = {name: random.integers(0, 255, array.shape, np.uint8) for name, array in caches.items()}
    for name, array in caches.items():
        values = fills[name] if array.dtype == "f8e4m3" else fills[name].astype(np.uint16)
        fills[name] = values
        device.upload(array.address, values)
    device.synchronise()
    tier = block_tier.device_block_tier(device, structs.replace(base, kv=kv), caches, alone=True)
    both = copies([3, 4, 8], [14, 0, 1]) + tuple(replace(item, pool=1) for item in copies([0, 5], [69, 3]))
    tier.begin(replace(empty_step(0), saves=both), {}).wait()
    for array in caches.values():
        device.upload(array.address, np.zeros(array.nbytes, np.uint8))
    seen: dict[str, np.ndarray] = {}
    order = ["kv.latent.0", "kv.k.1", "kv.v.1", "kv.latent.2", "kv.k.3", "kv.v.3"]

    def look(name: str) -> None:
        seen[name] = fetched(device, caches[name]).data

    launches: dict[str, Launch] = {name: partial(look, name) for name in order}
    fake.put_off(others=True)
    back = copies([1, 2], [14, 1]) + tuple(replace(item, pool=1) for item in copies([2, 3], [3, 69]))
    batch = replace(rows(0, 0, [1], [1]), loads=back, windows=(WindowPart(np.array([[2]], np.int32), np.array([8], np.int64)),))
    step = tier.begin(batch, {launch: (name,) for name, launch in launches.items()})
    for launch in step.ordered(launches.values()):
        launch()
    step.wait()
    for name in order:
        moved = {1: 3, 2: 8} if "latent" in name else {2: 5, 3: 0}
        for block, found in enumerate(seen[name]):
            assert found.tobytes() == (fills[name][moved[block]].tobytes() if block in moved else bytes(found.nbytes))
    fake.put_off()
    tier.close()
    device.close()
