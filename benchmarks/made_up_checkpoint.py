"""Writes a checkpoint of random values that a plan's weights can be loaded from: safetensors in shards, with their index.

    python benchmarks/made_up_checkpoint.py PLAN DIRECTORY [--shard-bytes 4000000000]

For measuring how weights are loaded where the real ones are not at hand. Values are normal, of standard deviation 0.02, one
stretch of them repeated; only float types.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import SourceTensor

_STRETCH = (1 << 24) + 4099
"""Values that are drawn; odd, so that rows differ."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shard-bytes", type=int, default=4_000_000_000)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with Plan.open(arguments.plan) as plan:
        sources = plan.manifest.sources
    odd = {source.encoding for source in sources} - {"BF16", "F16", "F32"}
    if odd:
        parser.error(f"the plan reads tensors of {', '.join(sorted(odd))}")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    shards = list(cut(sources, arguments.shard_bytes))
    names = [f"model-{at + 1:05}-of-{len(shards):05}.safetensors" for at in range(len(shards))]
    values = np.random.default_rng(0).standard_normal(_STRETCH, np.float32) * np.float32(0.02)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: write(arguments.directory / pair[0], pair[1], values), zip(names, shards, strict=True)))
    index = {source.name: name for name, shard in zip(names, shards, strict=True) for source in shard}
    total = sum(source.bytes for source in sources)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (arguments.directory / "model.safetensors.index.json").write_text(text)
    print(json.dumps({"bytes": total, "shards": len(shards), "seconds": round(time.perf_counter() - start, 2)}))
    return 0


def cut(sources: Sequence[SourceTensor], most: int) -> Iterator[list[SourceTensor]]:
    """The tensors in order, in shards of at most that many bytes, or one tensor."""
    shard: list[SourceTensor] = []
    for source in sources:
        if shard and sum(item.bytes for item in shard) + source.bytes > most:
            yield shard
            shard = []
        shard.append(source)
    if shard:
        yield shard


def write(path: Path, shard: Sequence[SourceTensor], values: NDArray[np.float32]) -> None:
    header, at = {}, 0
    for source in shard:
        header[source.name] = {"dtype": source.encoding, "shape": source.shape, "data_offsets": [at, at + source.bytes]}
        at += source.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    encoded = {encoding: _encoded(values, encoding) for encoding in {source.encoding for source in shard}}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for source in shard:
            left = source.bytes
            while left:
                part = encoded[source.encoding][:left]
                file.write(part)
                left -= len(part)


def _encoded(values: NDArray[np.float32], encoding: str) -> memoryview:
    if encoding == "BF16":
        stored: NDArray[np.generic] = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(np.float16 if encoding == "F16" else np.float32)
    return stored.view(np.uint8).data


if __name__ == "__main__":
    sys.exit(main())
