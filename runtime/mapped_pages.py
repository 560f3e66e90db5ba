"""Pages of mapped files: in this process's memory only as long as they are of use."""

from __future__ import annotations

import mmap

import numpy as np


def release_pages(data: memoryview) -> None:
    """Take the whole pages of `data` out of this process's memory where it lies in a mapped file; elsewhere nothing happens.

    The bytes stay as they are: who reads them again gets them from the page cache, or from the file.
    """
    mapping = data.obj
    if not isinstance(mapping, mmap.mmap) or len(data) == 0 or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = np.frombuffer(data, np.uint8).ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (first + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop:
        mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)
