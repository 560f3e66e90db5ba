"""The key-value section of a GGUF file (version 2 or 3, little-endian), read in one pass with every length checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader builds an array object
per string, which takes seconds for the vocabularies that are read here.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...plans.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_LENGTH = struct.Struct("<Q")
_MAX_KEYS = 65_536


@dataclass(frozen=True)
class GgufMetadata:
    """`values` by key: int, float, bool, str, or a list of these. `sha256` is of the file up to the end of this section."""

    path: Path
    values: dict[str, Any]
    sha256: str

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, checked to be of `kind` (int values serve as float); `default` when absent."""
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise ModelError(
                "A metadata value has the wrong type.",
                where=f"{self.path}, key {key}",
                expected=kind.__name__,
                got=type(value).__name__,
                fix="convert the model again with a current llama.cpp",
            )
        return value

    def require(self, key: str, kind: type) -> Any:
        """The value of `key`. Raises ModelError when it is absent."""
        value = self.get(key, kind)
        if value is None:
            raise ModelError(
                "The GGUF file lacks a key that this model needs.",
                where=str(self.path),
                expected=key,
                fix="convert the model again with a current llama.cpp",
            )
        return value


def read_metadata(path: Path) -> GgufMetadata:
    """Raises ModelError when the file is not GGUF, is truncated, or is of a version that is not read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).metadata()
    except OSError as error:
        raise ModelError("The GGUF file cannot be read.", where=str(path), got=str(error.strerror)) from None
    except ValueError:  # mmap refuses an empty file
        raise ModelError("The GGUF file is empty.", where=str(path), fix="fetch the file again") from None


class _Cursor:
    """A position in the file; every read checks that the bytes are there."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def metadata(self) -> GgufMetadata:
        if self._data[:4] != b"GGUF":
            raise ModelError(
                "This is not a GGUF file.", where=str(self._path), expected="the bytes GGUF", got=repr(self._data[:4])
            )
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelError(
                "This GGUF version is not read.", where=str(self._path), expected="2 or 3, little-endian", got=str(version)
            )
        self._scalar("<Q")  # number of tensors
        count = self._scalar("<Q")
        if count > _MAX_KEYS:
            self._damaged(f"{count} keys")
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in values:
                self._damaged(f"key {key!r} twice")
            values[key] = self._value(self._scalar("<I"))
        with memoryview(self._data) as view, view[: self._at] as section:
            return GgufMetadata(self._path, values, hashlib.sha256(section).hexdigest())

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar("<I"), self._scalar("<Q"))
        if kind not in _SCALARS:
            self._damaged(f"value type {kind}")
        value = self._scalar(_SCALARS[kind])
        # the shortest decimal that is this float32: 1e-05 rather than 9.999999747378752e-06
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            self._require(count * _LENGTH.size)
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:  # nested arrays are in the format, but no key that is read uses them
            self._damaged(f"an array of type {kind}")
        layout = np.dtype(_SCALARS[kind])
        self._require(count * layout.itemsize)
        found = np.frombuffer(self._data, layout, count, self._at).tolist()
        self._at += count * layout.itemsize
        return found

    def _string(self) -> str:
        size = self._scalar("<Q")
        self._require(size)
        self._at += size
        try:
            return self._data[self._at - size : self._at].decode()
        except UnicodeDecodeError:
            self._damaged("text that is not UTF-8")

    def _scalar(self, layout: str) -> Any:
        size = struct.calcsize(layout)
        self._require(size)
        self._at += size
        return struct.unpack_from(layout, self._data, self._at - size)[0]

    def _require(self, size: int) -> None:
        if size > len(self._data) - self._at:
            self._damaged(f"{size} bytes wanted, {len(self._data) - self._at} left")

    def _damaged(self, found: str) -> NoReturn:
        raise ModelError(
            "The GGUF file is damaged.", where=f"{self._path}, byte {self._at}", got=found, fix="fetch the file again"
        )
