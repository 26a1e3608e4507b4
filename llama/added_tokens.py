"""Special and added tokens that a checkpoint declares outside `tokenizer.json`."""

from pathlib import Path
from typing import Any

import tokenizers

from llama.checkpoint_files import locate, read_json
from llama.errors import UserError

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4 and 5
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def named_tokens(source: Path) -> dict[str, str]:
    """Return the special tokens by name ("eos_token"), as templates see them.

    They stand in tokenizer_config.json. Checkpoints saved before `added_tokens_decoder` was written
    there have them in special_tokens_map.json, which then counts first, as in transformers.
    """
    named = {}
    for name, (value, path) in _declarations(source, NAMED_TOKENS).items():
        content = value.get("content") if isinstance(value, dict) else value
        if not isinstance(content, str):
            raise UserError(f"{path}: {name} = {value!r}: expected text or an object with content")
        named[name] = content
    return named


def add_declared_tokens(
    source: Path, raw: dict[str, Any], built: tokenizers.Tokenizer, named: dict[str, str]
) -> dict[str, Any]:
    """Return `raw`, a tokenizer.json, with the added tokens that other files declare as well.

    Those are the `added_tokens_decoder` of tokenizer_config.json or else added_tokens.json, the
    named tokens and the additional ones. `built` is the tokenizer of `raw`. UserError for a
    declaration of another form, or an id that another token has.
    """
    added = list(raw.get("added_tokens") or [])
    present = {token["content"] for token in added}
    next_id = built.get_vocab_size(with_added_tokens=True)
    for token, path in _declared_tokens(source, named):
        if token["content"] in present:
            continue
        known_id = built.token_to_id(token["content"])
        if known_id is None and token["id"] is None:
            continue  # a name for a token that the vocabulary lacks
        index = next_id if known_id is None else known_id
        if token["id"] not in (None, index):
            raise UserError(
                f"{path}: token {token['content']!r} is declared with the id {token['id']}, but "
                f"the vocabulary of tokenizer.json gives it {index}"
            )
        next_id += known_id is None
        present.add(token["content"])
        added.append(token | {"id": index})
    return raw | {"added_tokens": added}


def _declared_tokens(source: Path, named: dict[str, str]) -> list[tuple[dict[str, Any], Path]]:
    """List the declared tokens, each with `id` (None: that of the vocabulary) and flags."""
    special = set(named.values())
    extra = []
    for name, (value, path) in _declarations(source, EXTRA_TOKENS).items():
        values = value.values() if isinstance(value, dict) else value
        if not isinstance(value, (list, dict)):
            raise UserError(f"{path}: {name} = {value!r}: expected a list of tokens")
        extra += [(_token(entry, name, path, special=True), path) for entry in values]
    special |= {token["content"] for token, _ in extra}
    path = locate(source, "tokenizer_config.json")
    decoder = (read_json(source, "tokenizer_config.json") or {}).get("added_tokens_decoder")
    tokens = []
    if decoder is None:
        path = locate(source, "added_tokens.json")
        for content, index in (read_json(source, "added_tokens.json") or {}).items():
            token = _token(content, "added_tokens.json", path, special=content in special)
            tokens.append((token | {"id": _index(index, path)}, path))
    elif not isinstance(decoder, dict):
        raise UserError(f"{path}: added_tokens_decoder: expected an object, found {decoder!r}")
    else:
        for index, entry in decoder.items():
            token = _token(entry, "added_tokens_decoder", path, special=False)
            token["special"] = token["special"] or token["content"] in special
            tokens.append((token | {"id": _index(index, path)}, path))
    tokens.sort(key=lambda pair: pair[0]["id"])
    names = [(_token(content, "special token", path, special=True), path) for content in special]
    return tokens + extra + sorted(names, key=lambda pair: pair[0]["content"])


def _declarations(source: Path, names: tuple[str, ...]) -> dict[str, tuple[Any, Path]]:
    """Return the fields `names` that are not null, each with the file it stands in."""
    found = {}
    config = read_json(source, "tokenizer_config.json") or {}
    files = [("tokenizer_config.json", config)]
    if "added_tokens_decoder" not in config:
        name = "special_tokens_map.json"
        files.append((name, read_json(source, name) or {}))
    for file_name, content in files:
        for name in names:
            if content.get(name) is not None:
                found[name] = (content[name], locate(source, file_name))
    return found


def _token(value: Any, name: str, path: Path, special: bool) -> dict[str, Any]:
    """Return an entry of tokenizer.json's `added_tokens`, its id still None."""
    entry = {"content": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise UserError(f"{path}: {name}: expected text or an object with content, found {value!r}")
    defaults = {"normalized": not special, "special": special}
    flags = {flag: bool(entry.get(flag, defaults.get(flag, False))) for flag in FLAGS}
    return {"id": None, "content": entry["content"], **flags}


def _index(value: Any, path: Path) -> int:
    """Return a token id that is written as a number or, as a key of an object, in digits."""
    text = str(value)
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise UserError(f"{path}: token id {value!r}: expected a number")
    return int(text)
