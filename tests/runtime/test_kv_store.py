"""KV units in files: what was written is read, by the next process too; what was spoilt is not there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenspeed.plans.errors import UsageError
from tokenspeed.runtime import kv_store
from tokenspeed.runtime.kv_records import HEADER_BYTES, Record, RecordFormat
from tokenspeed.runtime.kv_store import KvStore, StoreLayout
from tokenspeed.runtime.scheduling.disk_tier import StoredUnit

TOKENS, SIZE = 64, 10_000
LAYOUT = StoreLayout(SIZE, TOKENS, b"o" * 32)
SLOT = 12288
ROOM = 4096 + 5 * (SLOT + 512)


@pytest.fixture(autouse=True)
def little_space_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "_SPARE_BYTES", 0)
    monkeypatch.setattr(kv_store, "_PROBE_BYTES", 1 << 16)


def unit(number: int, place: int | None = None) -> StoredUnit:
    tokens = np.full(TOKENS, number, "<i4").tobytes()
    parent = bytes([number]) * 32
    return StoredUnit(number if place is None else place, sha256(parent + tokens).digest(), parent, tokens)


def content(number: int) -> list[NDArray[np.uint8]]:
    """Two caches whose rows lie apart, and one."""
    data = np.random.default_rng(number).integers(0, 256, 2 * 6000, dtype=np.uint8)
    return [data[:8000].reshape(2, 4000)[:, :3000], data[8000:]]


def read(store: KvStore, wanted: StoredUnit) -> list[NDArray[np.uint8]] | None:
    parts = [np.zeros((2, 3000), np.uint8), np.zeros(4000, np.uint8)]
    return parts if store.read(wanted, parts) else None


def is_there(store: KvStore, number: int, place: int | None = None) -> bool:
    found = read(store, unit(number, place))
    return found is not None and all(np.array_equal(one, other) for one, other in zip(found, content(number), strict=True))


def filled(folder: Path, numbers: Any = range(5), layout: StoreLayout = LAYOUT) -> KvStore:
    store = KvStore(folder, ROOM, layout)
    assert store.places == 5
    for number in numbers:
        assert store.write(unit(number), content(number))
    return store


def test_what_was_written_is_read_and_found_again_oldest_first(tmp_path: Path) -> None:
    store = filled(tmp_path, [3, 0, 4])
    assert store.units == () and all(is_there(store, number) for number in (0, 3, 4))
    assert store.write(unit(9, 3), content(9)) and is_there(store, 9, 3) and not is_there(store, 3)
    assert store.write(unit(9, 3), content(9))
    store.close()
    again = KvStore(tmp_path, ROOM, LAYOUT)
    assert again.units == (unit(0), unit(4), unit(9, 3))
    assert is_there(again, 0) and is_there(again, 9, 3) and not is_there(again, 1)
    assert again.bytes_per_second(2) > 0
    again.close()


def test_a_unit_written_twice_is_found_once_where_it_is_newest(tmp_path: Path) -> None:
    store = filled(tmp_path, [0, 1])
    store.write(unit(0, 4), content(0))
    store.close()
    again = KvStore(tmp_path, ROOM, LAYOUT)
    assert again.units == (unit(1), unit(0, 4))
    again.close()


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    (own,) = tmp_path.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in own.iterdir()} == {0o600}
    assert {file.name for file in own.iterdir()} == {"lock", "records", "segment-00000"}
    store.close()
    own.chmod(0o777)
    with pytest.raises(UsageError, match="written by others") as refused:
        KvStore(tmp_path, ROOM, LAYOUT)
    assert "0777" in refused.value.got


def test_one_engine_at_a_time(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    with pytest.raises(UsageError, match="another engine"):
        KvStore(tmp_path, ROOM, LAYOUT)
    store.close()
    KvStore(tmp_path, ROOM, LAYOUT).close()


@pytest.mark.parametrize("at", [0, 5000, SIZE - 1])
def test_flipped_bits_are_a_miss(tmp_path: Path, at: int) -> None:
    filled(tmp_path).close()
    flip(tmp_path / "tokenspeed-kv" / "segment-00000", 2 * SLOT + at)
    store = KvStore(tmp_path, ROOM, LAYOUT)
    assert [is_there(store, number) for number in range(5)] == [True, True, False, True, True]
    store.close()
    again = KvStore(tmp_path, ROOM, LAYOUT)
    assert len(again.units) == 4  # what was refused is not found again
    again.close()


def test_a_shorter_file_is_a_miss(tmp_path: Path) -> None:
    filled(tmp_path).close()
    os.truncate(tmp_path / "tokenspeed-kv" / "segment-00000", 2 * SLOT + 100)
    store = KvStore(tmp_path, ROOM, LAYOUT)
    assert [is_there(store, number) for number in range(5)] == [True, True, False, False, False]
    os.truncate(tmp_path / "tokenspeed-kv" / "segment-00000", 100)
    assert not is_there(store, 1)
    store.close()


def test_every_flipped_byte_of_a_record_is_a_miss() -> None:
    form = RecordFormat(TOKENS)
    data = form.encode(Record(unit(7), 1, 2, 3, b"o" * 32))
    assert form.decode(data, 7) == Record(unit(7), 1, 2, 3, b"o" * 32) and form.decode(data, 6) is None
    used = len(data.rstrip(b"\0"))
    for at in range(used):
        assert form.decode(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :], 7) is None
    assert form.decode(data[:300], 7) is None and form.decode(form.empty, 7) is None
    assert RecordFormat(65).decode(data, 7) is None


def test_records_that_are_torn_or_lost_are_misses(tmp_path: Path) -> None:
    filled(tmp_path).close()
    records = tmp_path / "tokenspeed-kv" / "records"
    flip(records, HEADER_BYTES + 512 + 40)
    store = KvStore(tmp_path, ROOM, LAYOUT)
    assert store.units == tuple(unit(number) for number in (0, 2, 3, 4))
    assert store.write(unit(1), content(1)) and is_there(store, 1)
    store.close()
    os.truncate(records, HEADER_BYTES + 512 + 300)
    store = KvStore(tmp_path, ROOM, LAYOUT)
    assert store.units == (unit(0),)
    store.close()


def test_what_another_owner_left_is_not_found_and_written_over(tmp_path: Path) -> None:
    filled(tmp_path).close()
    other = StoreLayout(SIZE, TOKENS, b"p" * 32)
    store = KvStore(tmp_path, ROOM, other)
    assert store.units == () and not is_there(store, 1)
    assert store.write(unit(1), content(1)) and is_there(store, 1)
    store.close()
    again = KvStore(tmp_path, ROOM, LAYOUT)
    assert again.units == tuple(unit(number) for number in (0, 2, 3, 4))
    again.close()


def test_files_for_units_of_another_size_are_made_anew(tmp_path: Path) -> None:
    filled(tmp_path).close()
    larger = StoreLayout(3 * SLOT, TOKENS, b"o" * 32)
    store = KvStore(tmp_path, ROOM, larger)
    assert store.units == () and store.places == 1
    store.close()


def test_the_tier_may_grow_and_shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "_SEGMENT_BYTES", 2 * SLOT)
    filled(tmp_path).close()
    own = tmp_path / "tokenspeed-kv"
    assert len([*own.glob("segment-*")]) == 3
    store = KvStore(tmp_path, ROOM - 4 * SLOT, LAYOUT)
    assert store.units == (unit(0),) and is_there(store, 0) and len([*own.glob("segment-*")]) == 1
    store.close()
    store = KvStore(tmp_path, ROOM + 2 * (SLOT + 512), LAYOUT)
    assert store.units == (unit(0),) and store.places == 7 and is_there(store, 0)
    assert store.write(unit(6), content(6)) and is_there(store, 6)
    store.close()


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, room, what in (
        (tmp_path / "none", ROOM, "cannot be used"),
        (tmp_path, 10_000, "does not hold one unit"),
        (tmp_path, 1 << 60, "no room"),
    ):
        with pytest.raises(UsageError, match=what) as refused:
            KvStore(folder, room, LAYOUT)
        error = refused.value
        assert error.where and error.expected and error.got and error.fix
    KvStore(tmp_path, ROOM, LAYOUT).close()  # nothing is left locked

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="no room"):
        KvStore(tmp_path, ROOM, LAYOUT)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, [1])

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        assert not store.write(unit(2), content(2)) and not store.write(unit(8, 1), content(8))
    assert not is_there(store, 2) and not is_there(store, 1) and not is_there(store, 8, 1)
    with pytest.raises(ValueError, match="a unit of 4000 bytes"):
        store.write(unit(3), content(3)[1:])
    store.close()
    again = KvStore(tmp_path, ROOM, LAYOUT)
    assert again.units == ()
    again.close()


WRITER = """
import sys
from pathlib import Path
from tokenspeed.runtime import kv_store
from tokenspeed.tests.runtime.test_kv_store import LAYOUT, ROOM, content, unit
kv_store._SPARE_BYTES = 0
store = kv_store.KvStore(Path(sys.argv[1]), ROOM, LAYOUT)
made = [content(number) for number in range(200)]
print("writing", flush=True)
for number in range(10**9):
    store.write(unit(number % 200, number % 5), made[number % 200])
    if number == 7:
        print("goes on", flush=True)
"""


def test_killed_while_it_writes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert [said.readline(), said.readline()] == ["writing\n", "goes on\n"]
        process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    store = KvStore(tmp_path, ROOM, LAYOUT)
    assert len(store.units) >= 4  # all but the one that was being written
    for left in store.units:
        assert is_there(store, left.parent[0], left.place)
    store.close()


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
