"""Read the JSON files of a checkpoint, with errors that name the file and the field."""

import json
import re
from pathlib import Path
from typing import Any

from llama.errors import UserError

# Upper bounds: no checkpoint has a size near 2**24 and torch overflows not far above it; every
# other number ends up as float32.
LARGEST = {int: 2**24, float: 3.4e38}
REQUIRED = object()
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it: one of two surrogates


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read one JSON object. UserError names the file if it is missing, broken or no object."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; is {path.parent} a checkpoint folder?")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails for halves without the other
    except (ValueError, RecursionError) as error:  # broken JSON, no UTF-8, absurd nesting
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_number(
    raw: dict[str, Any],
    field: str,
    kind: type,
    default: Any = REQUIRED,
    largest: int | float | None = None,
) -> Any:
    """Return the positive number `raw[field]` as `kind` (int or float), or `default` if it is null
    or absent.

    UserError names the field and its value: missing without a default, another type, zero or
    less, NaN, infinite or beyond `largest` (by default `LARGEST[kind]`).
    """
    largest = LARGEST[kind] if largest is None else largest
    value = raw.get(field)
    if value is None and default is REQUIRED:
        raise UserError(f"field {field} is missing")
    if value is None:
        return default
    is_number = type(value) in (int, float)  # bool is a subclass of int
    if not is_number or not 0 < value <= largest or value != kind(value):
        expected = "integer" if kind is int else "number"
        raise UserError(f"{field} = {value!r}: expected a positive {expected} of at most {largest}")
    return kind(value)
