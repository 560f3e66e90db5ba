"""JSON files of a model directory, read with an error a user can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...plans.errors import ModelError


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; {} when it is `optional` and absent. Raises ModelError when missing or not an object."""
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError("A model file cannot be read.", where=str(path), got=str(error.strerror), fix="check the path") from None
    except (ValueError, RecursionError) as error:
        raise ModelError("A model file is not JSON.", where=str(path), got=str(error)[:200], fix="fetch the file again") from None
    if not isinstance(value, dict):
        raise ModelError(
            "A model file holds something else.", where=str(path), expected="a JSON object", got=type(value).__name__
        )
    return value
