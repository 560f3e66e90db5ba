from __future__ import annotations

import mmap
from pathlib import Path

from tokenspeed.runtime.mapped_pages import release_pages

PAGES = 64


def _resident(path: Path) -> int:
    """Bytes of a mapped file in this process's memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.endswith(str(path)):
            inside = True
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0


def test_pages_leave_and_their_bytes_stay(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = bytes(range(256)) * (PAGES * mmap.PAGESIZE // 256)
    path.write_bytes(content)
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    part = whole[100 : len(whole) - 100]
    assert bytes(whole) == content
    assert _resident(path) == len(content)
    release_pages(part)
    assert _resident(path) <= 2 * mmap.PAGESIZE
    assert bytes(whole) == content


def test_other_memory_and_less_than_a_page_are_left_alone(tmp_path: Path) -> None:
    plain = memoryview(bytearray(b"x" * 3 * mmap.PAGESIZE))
    release_pages(plain)
    assert bytes(plain) == b"x" * 3 * mmap.PAGESIZE
    path = tmp_path / "small"
    path.write_bytes(b"y" * mmap.PAGESIZE)
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    release_pages(whole[1:])
    release_pages(whole[5:5])
    assert bytes(whole) == b"y" * mmap.PAGESIZE
