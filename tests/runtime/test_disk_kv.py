"""Sessions that go on after a restart of the engine, or a crash of it: what they say is what they would say without any cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.schema import WindowPool
from tokenspeed.runtime import kv_store
from tokenspeed.runtime.disk_kv import check_disk_kv, layout_of, open_store
from tokenspeed.runtime.scheduling.request import SchedulerStats

from .llama_plan import MemoryPlan
from .test_returning_sessions import Served, plan_with, weights

__all__ = ["weights"]

ROOM = 4 << 20
PROMPTS = [np.random.default_rng(number).integers(0, 96, 80).tolist() for number in range(4)]
STORED = 4 * 64


@pytest.fixture(autouse=True)
def little_space_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "_SPARE_BYTES", 0)
    monkeypatch.setattr(kv_store, "_PROBE_BYTES", 1 << 16)


def plan() -> MemoryPlan:
    """Room for one of the sessions at a time."""
    return plan_with(32, 64)


def engine(folder: Path, weights: Path, served: MemoryPlan | None = None) -> Served:
    served = plan() if served is None else served
    return Served(served, weights, overlap=True, store=open_store(served.manifest, str(folder), ROOM))


class Before(NamedTuple):
    """What an engine left: its folder, and one as it was in the midst of its work; what was said to it, what that goes on with
    in truth, and what it told of itself."""

    folder: Path
    crashed: Path
    said: list[list[int]]
    following: list[list[int]]
    stats: SchedulerStats


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Before]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kv_store, "_SPARE_BYTES", 0)
        folder, crashed = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("crashed") / "disk"
        served = engine(folder, weights)
        copied: list[Path] = []
        write = kv_store.KvStore._put_record

        def copying(store: kv_store.KvStore, place: int, data: bytes) -> None:
            if store._stamp == 4 and not copied:  # the fourth's payload is there, its record is not
                copied.append(Path(shutil.copytree(folder, crashed)))
            write(store, place, data)

        patched.setattr(kv_store.KvStore, "_put_record", copying)
        said = [tokens + served.turn(f"{number}", str(number), tokens) for number, tokens in enumerate(PROMPTS)]
        said[0] += served.turn("again", "0", said[0])
        served.close()
        assert copied
    alone = Served(plan_with(32, 0), weights, overlap=False)
    following = [alone.turn(f"{number}", "", tokens) for number, tokens in enumerate(said)]
    alone.close()
    yield Before(folder, crashed, said, following, served.scheduler.stats())


def go_on(served: Served, before: Before, salt: str = "") -> SchedulerStats:
    """The sessions' next turns, which say what is true."""
    for number, (tokens, truth) in enumerate(zip(before.said, before.following, strict=True)):
        assert served.turn(f"{number}", str(number), tokens, salt) == truth
    served.close()
    return served.scheduler.stats()


def folder_like(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "disk"))


def test_sessions_are_there_after_a_restart_for_their_tenant(tmp_path: Path, before: Before, weights: Path) -> None:
    assert before.stats.stored_tokens == STORED and before.stats.fetched_tokens == before.stats.restored_tokens == 0
    served = engine(folder_like(before.folder, tmp_path), weights)
    assert served.turn("other", "other", before.said[0], "another tenant") == before.following[0]
    other = served.scheduler.stats()
    assert other.restored_tokens == STORED and other.prefix_hits == other.fetched_tokens == 0
    told = go_on(served, before)
    assert told.fetched_tokens == told.reloaded_tokens == told.prefix_hits == told.host_hits == STORED
    assert told.refused_tokens == 0 and told.disk_usage > 0


def test_sessions_are_there_after_a_crash_but_for_what_was_spoilt(tmp_path: Path, before: Before, weights: Path) -> None:
    """Of four units the last was not written to its end, and one bit of another has changed."""
    folder, size = folder_like(before.crashed, tmp_path), layout_of(plan().manifest).unit_bytes
    (segment,) = folder.glob("tokenspeed-kv/segment-*")
    data = np.fromfile(segment, np.uint8)
    data[size + size // 2] ^= 1
    data.tofile(segment)
    told = go_on(engine(folder, weights), before)
    assert (told.restored_tokens, told.refused_tokens) == (3 * 64, 64)
    assert told.fetched_tokens == told.prefix_hits == 2 * 64


def test_plans_of_other_kv_do_not_find_it(tmp_path: Path, before: Before) -> None:
    folder = str(folder_like(before.folder, tmp_path))
    manifest = plan().manifest
    group = msgspec.structs.replace(manifest.kv.groups[0], block_order="head_major")
    for changed, count in (({"compatibility": "other"}, 0), ({"groups": (group,)}, 0), ({"blocks": 99, "host_blocks": 7}, 4)):
        other = msgspec.structs.replace(manifest, kv=msgspec.structs.replace(manifest.kv, **changed))
        store = open_store(other, folder, ROOM)
        assert len(store.units) == count
        store.close()


def test_plans_that_can_have_none(tmp_path: Path) -> None:
    manifest = plan().manifest
    kv = manifest.kv
    window = WindowPool(window=8, blocks=4, bytes_per_block=64)
    for changed, size, word in (
        (msgspec.structs.replace(manifest, kv=msgspec.structs.replace(kv, host_blocks=0)), ROOM, "--host-kv"),
        (msgspec.structs.replace(manifest, kv=msgspec.structs.replace(kv, windows=(window,))), ROOM, "--no-window-pools"),
        (manifest, None, "--disk-kv-bytes"),
    ):
        with pytest.raises(UsageError) as refused:
            check_disk_kv(changed, tmp_path, size)
        assert word in str(refused.value) and refused.value.expected and refused.value.got
    with pytest.raises(UsageError, match="mkdir -p"):
        check_disk_kv(manifest, tmp_path / "none", ROOM)
    assert check_disk_kv(manifest, tmp_path, ROOM) == ROOM
