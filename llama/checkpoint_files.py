"""Read the small files of a checkpoint: those of a folder, or what a GGUF file has in their
place.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama import gguf_model, gguf_tokenizer
from llama.errors import UserError
from llama.gguf import GGUFFile, read_header
from llama.json_files import read_json_object

CHAT_TEMPLATE = "chat_template.jinja"
_GGUF_FILES = {
    "config.json": gguf_model.config_dict,
    "generation_config.json": gguf_tokenizer.generation_config,
    "tokenizer.json": gguf_tokenizer.tokenizer_json,
    "tokenizer_config.json": gguf_tokenizer.tokenizer_config,
}


def locate(source: Path, name: str) -> Path:
    """Return the path that error messages about the file `name` of `source` should name."""
    return source if source.is_file() else source / name


def read_json(source: Path, name: str, required: bool = False) -> dict[str, Any] | None:
    """Read the JSON object `name` of the folder or GGUF file `source`; None if it has none.

    UserError names the file if it is broken, or missing although `required`.
    """
    if source.is_file():
        return read_gguf_json(source, name)
    path = source / name
    return read_json_object(path) if required or path.is_file() else None


def read_gguf_json(path: Path, name: str) -> dict[str, Any] | None:
    """Build the JSON object `name` from a GGUF file's header; None if it has no such part."""
    return _from_gguf(path, _GGUF_FILES[name]) if name in _GGUF_FILES else None


def _from_gguf(path: Path, build: Callable[[GGUFFile], Any]) -> Any:
    file = read_header(path)
    try:
        return build(file)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from None


def read_chat_template(source: Path) -> str | None:
    """Read `chat_template.jinja`, or the template in a GGUF file; None if there is none."""
    if source.is_file():
        return _from_gguf(source, gguf_tokenizer.chat_template)
    path = source / CHAT_TEMPLATE
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
