"""Detached Ed25519 signatures over the bytes of manifest.json (docs/plan-format.md, "Signature"; RFC 8032)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import PlanError, UsageError

_MAX_FILE_BYTES = 16 << 10


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a `.sig` file; both values base64."""

    algorithm: str
    public_key: str
    signature: str


def signature_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".sig")


def key_id(raw_public_key: bytes) -> str:
    """A short name for a key, for people: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(raw_public_key).hexdigest()[:16]


class TrustStore:
    """The public keys whose signatures count."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key.public_bytes_raw(): key for key in keys}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TrustStore:
        """Read a PEM public key, or every `*.pem` and `*.pub` of a folder. Raises `UsageError`."""
        location = Path(path)
        files = [location]
        if location.is_dir():
            files = sorted(file for file in location.iterdir() if file.suffix in (".pem", ".pub"))
        if not files:
            raise UsageError(
                "The trust store has no keys.",
                where=str(location),
                expected="*.pem or *.pub files",
                fix="copy a public key there",
            )
        return cls([_public_key(file) for file in files])

    def check_file(self, plan: Path, manifest: bytes) -> str:
        """Check `PLAN.sig` against the manifest's bytes; returns the id of the key that signed. Raises `PlanError`."""
        return self.check(read_signature(plan), manifest, str(signature_path(plan)))

    def check(self, signature: Signature, manifest: bytes, where: str) -> str:
        raw_key, raw_signature = _decoded(signature.public_key, where), _decoded(signature.signature, where)
        key = self._keys.get(raw_key)
        if key is None:
            known = ", ".join(sorted(map(key_id, self._keys)))
            fix = "sign it with a trusted key, or add the signer's public key to the trust store"
            raise PlanError(
                "The plan is signed by a key that is not trusted.", where=where, expected=known, got=key_id(raw_key), fix=fix
            )
        try:
            key.verify(raw_signature, manifest)
        except InvalidSignature:
            fix = "the plan or its signature was changed: fetch both again from whoever signed them"
            raise PlanError("The plan's signature is wrong.", where=where, got="a signature of other bytes", fix=fix) from None
        return key_id(raw_key)


def sign(manifest: bytes, key: Ed25519PrivateKey) -> Signature:
    """Sign a manifest's bytes."""
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    return Signature(algorithm="ed25519", public_key=public, signature=base64.b64encode(key.sign(manifest)).decode())


def write_signature(plan: Path, signature: Signature) -> Path:
    path = signature_path(plan)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(signature), indent=2) + b"\n")
    return path


def read_signature(plan: Path) -> Signature:
    """The signature beside a plan. Raises `PlanError` when there is none or it is not one."""
    path = signature_path(plan)
    fix = f"ask for a signed plan, or sign it: tokenspeed-plan sign {plan} --key FILE"
    try:
        signature = msgspec.json.decode(_read_small(path), type=Signature)
    except FileNotFoundError:
        raise PlanError(
            "The plan is not signed.", where=str(path), expected="a signature by a trusted key", got="no file", fix=fix
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError("The signature file cannot be read.", where=str(path), got=str(error), fix=fix) from None
    if signature.algorithm != "ed25519":
        raise PlanError(
            "The signature is of an unknown kind.", where=str(path), expected="ed25519", got=repr(signature.algorithm), fix=fix
        )
    return signature


def generate_key(path: Path) -> Path:
    """Make a key pair: the private key at `path` (mode 0600), the public one at `path`.pub, which is returned.

    Raises `UsageError` rather than overwrite either.
    """
    public_path = path.with_name(path.name + ".pub")
    for file in (path, public_path):
        if file.exists():
            raise _not_overwritten(file)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        _create(path, private, 0o600)
        _create(public_path, public, 0o644)
    except FileExistsError as error:
        raise _not_overwritten(Path(str(error.filename))) from None
    return public_path


def _not_overwritten(path: Path) -> UsageError:
    return UsageError("A key is never overwritten.", where=str(path), got="a file there", fix="choose another --key FILE")


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """An unencrypted PEM (PKCS 8) Ed25519 private key. Raises `UsageError`."""
    fix = f"make one: tokenspeed-plan keygen --key {path}"
    try:
        key = serialization.load_pem_private_key(_read_small(path), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError("The private key cannot be read.", where=str(path), got=str(error), fix=fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            "The private key is of another kind.", where=str(path), expected="Ed25519", got=type(key).__name__, fix=fix
        )
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    fix = "give a PEM public key as written by tokenspeed-plan keygen"
    try:
        key = serialization.load_pem_public_key(_read_small(path))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("A trusted key cannot be read.", where=str(path), got=str(error), fix=fix) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            "A trusted key is of another kind.", where=str(path), expected="Ed25519", got=type(key).__name__, fix=fix
        )
    return key


def _create(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _read_small(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")
    return data


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PlanError("The signature file cannot be read.", where=where, got="not base64", fix="fetch it again") from None
