"""Reading JSON files of a checkpoint, with errors that name the file."""

import json
from pathlib import Path
from typing import Any


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read one JSON object. ValueError names the file if it is missing, broken, or something else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; is {path.parent} a checkpoint folder?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
