"""Checkpoints: named tensors mapped from safetensors or GGUF files. Hostile input; headers are bounds-checked here.

No torch: the compiler's frontends, `tokenspeed-plan bind` and the runtime all read weights through this.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from .errors import WeightsError
from .gguf_header import read_gguf_header
from .safetensors_header import read_safetensors_header
from .stored_tensor import HeaderError, StoredTensor

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor as stored: `encoding` is a safetensors dtype ("BF16") or a GGUF block type ("Q4_1"), `shape` is row-major and
    logical, `bytes` the stored size."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    bytes: int


class Checkpoint:
    """Tensors by name, in file order. `read` may be called from several threads; nothing is read from disk before it."""

    def __init__(self, path: Path, tensors: dict[str, CheckpointTensor], data: dict[str, memoryview]) -> None:
        self.path = path
        self.tensors = tensors
        self._data = data

    def read(self, name: str) -> memoryview:
        """The stored bytes of a tensor, mapped read-only. Raises WeightsError when there is none of that name."""
        if name not in self._data:
            raise WeightsError(
                "The weights lack a tensor.",
                where=str(self.path),
                expected=name,
                got=f"{len(self._data)} other tensors",
                fix="give the weights that the plan was compiled for",
            )
        return self._data[name]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory with safetensors (one file, or shards with their index), a .safetensors file or a .gguf file.

    Raises WeightsError, naming the file, for anything missing, malformed or out of bounds.
    """
    location = Path(path)
    if location.is_dir():
        return _open_directory(location)
    return _joined(location, [location], None)


def _open_directory(directory: Path) -> Checkpoint:
    index = directory / INDEX_NAME
    if index.is_file():
        weight_map = _weight_map(index)
        return _joined(directory, [directory / name for name in sorted(set(weight_map.values()))], weight_map)
    if (directory / _SINGLE_NAME).is_file():
        return _joined(directory, [directory / _SINGLE_NAME], None)
    found = sorted([*directory.glob("*.safetensors"), *directory.glob("*.gguf")])
    if len(found) != 1:
        raise WeightsError(
            "There are no weights in the directory." if not found else "The directory holds several weight files and no index.",
            where=str(directory),
            expected=f"{_SINGLE_NAME}, {INDEX_NAME} with its shards, or one .safetensors or .gguf file",
            got=", ".join(file.name for file in found[:4]) or "none of these",
            fix="name the directory or the file that holds the weights",
        )
    return _joined(directory, found, None)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard file name, from the index of a sharded checkpoint."""
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise _broken(index, f"an index of at most {_MAX_INDEX_BYTES} bytes", f"{index.stat().st_size} bytes")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _broken(index, "JSON", str(error)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(index, "an object with a weight_map", "none")
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file
        if not plain:
            raise _broken(index, "names of .safetensors files beside the index", f"{file!r} for {name}")
    return weight_map


def _joined(path: Path, files: list[Path], weight_map: dict[str, str] | None) -> Checkpoint:
    tensors: dict[str, CheckpointTensor] = {}
    data: dict[str, memoryview] = {}
    for file in files:
        view = _map(file)
        for stored in _header(file, view):
            if weight_map is not None and weight_map.get(stored.name) != file.name:
                continue
            tensors[stored.name] = CheckpointTensor(stored.name, stored.encoding, stored.shape, stored.stop - stored.start)
            data[stored.name] = view[stored.start : stored.stop]
    missing = sorted((weight_map or {}).keys() - tensors.keys())
    if missing:
        raise _broken(path / INDEX_NAME, f"tensor {missing[0]} in {(weight_map or {})[missing[0]]}", "no such tensor there")
    return Checkpoint(path, tensors, data)


def _header(file: Path, view: memoryview) -> list[StoredTensor]:
    try:
        if file.suffix == ".gguf":
            return read_gguf_header(view)
        if file.suffix == ".safetensors":
            return read_safetensors_header(view)
    except HeaderError as error:
        raise _broken(file, error.expected, error.got) from None
    raise WeightsError(
        "This kind of weight file is not read.",
        where=str(file),
        expected="a directory, a .safetensors file or a .gguf file",
        got=file.suffix or "no suffix",
        fix="name the directory or the file that holds the weights",
    )


def _map(file: Path) -> memoryview:
    try:
        with file.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise WeightsError(
            "A weight file cannot be opened.",
            where=str(file),
            expected="a readable file that is not empty",
            got=error.strerror or str(error) if isinstance(error, OSError) else str(error),
            fix="check the path, or download the file again",
        ) from None


def _broken(file: Path, expected: str, got: str) -> WeightsError:
    return WeightsError(
        "A weight file is damaged or not of its format.",
        where=str(file),
        expected=expected,
        got=got,
        fix="download the file again and compare its checksum",
    )
