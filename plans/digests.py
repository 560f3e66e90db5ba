"""Digests of checkpoint tensors, and what binding them does to a plan (docs/plan-format.md, "Recipes" and "Manifest")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from .schema import SourceTensor

DIGEST_CHUNK_BYTES = 64 << 20


class TensorDigest:
    """Chunked SHA-256 of a tensor that arrives in pieces of any length: `update` each, then `hexdigest`."""

    def __init__(self) -> None:
        self._outer = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._chunks: list[str] = []
        self._filled = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            piece = view[: DIGEST_CHUNK_BYTES - self._filled]
            self._chunk.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == DIGEST_CHUNK_BYTES:
                self._close_chunk()

    def hexdigest(self) -> str:
        """The digest of everything so far; no more updates after this."""
        if self._filled:
            self._close_chunk()
        return self._outer.hexdigest()

    def of(self, source: SourceTensor) -> SourceTensor:
        """The tensor with this digest, and those of its chunks where there are several; no more updates after this."""
        digest = self.hexdigest()
        return msgspec.structs.replace(source, digest=digest, chunks=tuple(self._chunks) if len(self._chunks) > 1 else ())

    def _close_chunk(self) -> None:
        self._outer.update(self._chunk.digest())
        self._chunks.append(self._chunk.hexdigest())
        self._chunk = hashlib.sha256()
        self._filled = 0


def tensor_digest(chunks: Iterable[bytes | bytearray | memoryview]) -> str:
    """SHA-256, in hex, over the concatenated SHA-256 digests of a tensor's 64 MiB chunks; `chunks` may be cut anywhere."""
    digest = TensorDigest()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def with_digests(source: SourceTensor, data: memoryview) -> SourceTensor:
    """The tensor with the digests of its bytes."""
    digest = TensorDigest()
    digest.update(data)
    return digest.of(source)


def digest_of_chunks(chunks: Iterable[str]) -> str:
    """A tensor's digest from those of its chunks."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, chunks))).hexdigest()


def bound_compatibility(shape_only: str, sources: Iterable[SourceTensor]) -> str:
    """`kv.compatibility` of a plan bound to weights, from that of the shape-only plan and the sources' digests.

    Both the compiler (given weights) and `tokenspeed-plan bind` use it, so the two ways give interchangeable KV.
    """
    digest = hashlib.sha256(b"tokenspeed kv 1\n" + shape_only.encode() + b"\n")
    for source in sorted(sources, key=lambda source: source.name):
        digest.update(f"{source.name} {source.digest}\n".encode())
    return digest.hexdigest()
