"""Text to token ids and back, and chats through the checkpoint's own template.

A template writes control tokens such as `<|eot_id|>` as text, and a tokenizer turns that text into
ids wherever it finds it, also inside a message somebody else wrote. Here only the template can
write them: characters in message contents that could begin or end such a token are replaced by
stand-ins in what the template prints (what it asks of a content is answered from the real text),
the rendered text is cut at the control tokens that remain, and the pieces between are encoded as
plain text.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from llama.added_tokens import add_declared_tokens, named_tokens
from llama.chat_template import DEFAULT_DATE, load_chat_template
from llama.checkpoint_files import locate, read_json
from llama.config import check_model_type
from llama.errors import UserError
from llama.hub import resolve

FIRST_SURROGATE, SURROGATES = 0xD800, 2048


def load_tokenizer(ref: str | Path, date: str = DEFAULT_DATE) -> "Tokenizer":
    """Load the tokenizer of the checkpoint at `ref` (local folder, GGUF file, Hub id or alias).

    `date` is the day that chat templates print as today's. Raises UserError for a model of a family
    that is not supported, a missing or broken file, and a checkpoint that names no end token.
    """
    source = resolve(ref, allow_weights=False)
    check_model_type(source)
    if (source / "tokenizer.model").is_file() and not (source / "tokenizer.json").is_file():
        raise UserError(
            f"{source}: has tokenizer.model but no tokenizer.json, which is what is read here; "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one"
        )
    return Tokenizer(source, date)


class Tokenizer:
    """A checkpoint's `tokenizer.json`, special tokens and chat template.

    `stop_ids`: every end token the checkpoint names, at least one; `end_id`: the one that ends an
    answer, by name the eos_token, else the lowest of them; `vocab_size`: added tokens included (a
    model's embedding may have more rows).
    """

    def __init__(self, source: Path, date: str = DEFAULT_DATE) -> None:
        self.source = source
        self.path = locate(source, "tokenizer.json")
        self._named = named_tokens(source)
        raw = read_json(source, "tokenizer.json", required=True) or {}
        raw |= {"truncation": None, "padding": None}  # leftovers of somebody's training
        raw = add_declared_tokens(source, raw, _build(raw, self.path), self._named)
        self._tokenizer = _build(raw, self.path)
        # Without added tokens, control tokens in a text stay text.
        plain = raw | {"added_tokens": []}
        self._plain = _build(plain, self.path)
        self._continued = _build_continued(plain, self.path) or self._plain
        added = [token for token in raw.get("added_tokens") or [] if token["content"]]
        self._added = {token["content"]: token["id"] for token in added}
        self._control_ids = {token["id"] for token in added if token["special"]}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Lone surrogates stand in for first and last characters: no text that can be encoded has
        # any.
        edges = sorted({token[0] for token in self._added} | {token[-1] for token in self._added})
        self._hide = {ord(edge): FIRST_SURROGATE + index for index, edge in enumerate(edges)}
        self._reveal = {FIRST_SURROGATE + index: edge for index, edge in enumerate(edges)}
        self._check_added_tokens()

        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.stop_ids: frozenset[int] = self._read_stop_ids()
        named_end = self._tokenizer.token_to_id(self._named.get("eos_token", ""))
        self.end_id: int = min(self.stop_ids) if named_end is None else named_end
        self._template = load_chat_template(source, date, self._named)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as plain text: nothing is added, and special tokens spelled out
        in it stay text.
        """
        _require_text("text", text)
        return self._encode_piece(text, self._plain)

    def _encode_piece(self, text: str, plain: tokenizers.Tokenizer) -> list[int]:
        ids = plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise UserError(
                f"{self.path}: plain text would become a special token in {text[:80]!r}"
            )
        return ids

    def encode_framed(self, text: str) -> list[int]:
        """Return the ids of `text` between the special tokens that the tokenizer puts around a
        text, if it puts any.

        Qwen3-Embedding ends a text with <|endoftext|>, Llama begins it with <|begin_of_text|>.
        """
        bare, framed = self.encode("a"), self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:start] + self.encode(text) + framed[start + len(bare) :]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, without special tokens unless asked for."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def encode_chat(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a chat, `[{"role": ..., "content": ...}, ...]`, rendered by the
        checkpoint's chat template.

        The ids are those of transformers' `apply_chat_template`, with one deliberate difference:
        added tokens spelled out in a message's content (`<|eot_id|>`, and also `<think>`) stay
        plain text where the template prints the content. A template that reads contents as lists of
        parts gets each as one text part. Raises UserError for messages of another form, a
        checkpoint without a template, or a chat that the template refuses.
        """
        return self._encode_rendered(self._render(messages, add_generation_prompt))

    def _encode_rendered(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self._cut.split(text)):  # text, token, text, ..., token, text
            if index % 2:
                ids.append(self._added[piece])
            else:
                plain = self._continued if index else self._plain
                ids += self._encode_piece(piece.translate(self._reveal), plain)
        return ids

    def _render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """Return the chat as text, with stand-ins for the characters in contents that begin or end
        an added token.
        """
        if self._template is None:
            raise UserError(
                f"{self.source}: no chat template: expected chat_template.jinja, or in "
                "tokenizer_config.json one chat_template or one named default"
            )
        if not messages:
            raise UserError("a chat needs at least one message")
        hidden = []
        for index, message in enumerate(messages):
            self._check_message(f"message {index + 1}", message)
            hidden.append(message | {"content": message["content"].translate(self._hide)})
        return self._template.render(hidden, add_generation_prompt, self._reveal)

    def _check_message(self, name: str, message: Any) -> None:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(f"{name}: expected an object with role and content, found {message!r}")
        for field, value in message.items():
            _require_text(f"{name}: {field}", value)
        if self._cut.search(message["role"]):
            raise UserError(f"{name}: role {message['role']!r} contains a token of the tokenizer")

    def _check_added_tokens(self) -> None:
        """Check that cutting at added tokens and encoding the rest piece by piece is what the
        tokenizer itself does.
        """
        if len(self._hide) > SURROGATES:
            raise UserError(
                f"{self.path}: added tokens begin or end with more than {SURROGATES} different "
                "characters"
            )
        for token in self._added:
            if any(edge.isalnum() or edge.isspace() for edge in (token[0], token[-1])):
                raise UserError(
                    f"{self.path}: added token {token!r} looks like ordinary text: not supported"
                )
            for text in (f"a{token}a", f"a {token} a", f"{token}a"):
                expected = self._tokenizer.encode(text, add_special_tokens=False).ids
                if self._encode_rendered(text) != expected:
                    raise UserError(
                        f"{self.path}: added token {token!r} does not cut text just where it "
                        "stands: not supported"
                    )

    def _read_stop_ids(self) -> frozenset[int]:
        """Return every end token in generation_config.json, config.json and the named eos_token."""
        stop_ids = set()
        for name in ("generation_config.json", "config.json"):
            path = locate(self.source, name)
            ids = (read_json(self.source, name) or {}).get("eos_token_id")
            if ids is None:
                continue
            for index in ids if isinstance(ids, list) else [ids]:
                known = type(index) is int and 0 <= index < 2**32  # what id_to_token takes
                if not known or self._tokenizer.id_to_token(index) is None:
                    raise UserError(
                        f"{path}: eos_token_id {index!r} is not in the vocabulary of {self.path}"
                    )
                stop_ids.add(index)
        if "eos_token" in self._named:
            index = self._tokenizer.token_to_id(self._named["eos_token"])
            if index is None:
                raise UserError(
                    f"{self.path}: the eos_token {self._named['eos_token']!r} is not in the "
                    "vocabulary"
                )
            stop_ids.add(index)
        if not stop_ids:
            raise UserError(
                f"{self.source}: names no end token, so no answer would ever end: expected an "
                "eos_token_id in generation_config.json or config.json, or an eos_token in "
                "tokenizer_config.json or special_tokens_map.json"
            )
        self._check_stop_rows(stop_ids)
        return frozenset(stop_ids)

    def _check_stop_rows(self, stop_ids: set[int]) -> None:
        """An end token that was added to the tokenizer but not to the model is never written."""
        rows = (read_json(self.source, "config.json") or {}).get("vocab_size")
        for index in sorted(stop_ids):
            if type(rows) is int and index >= rows:
                token = self._tokenizer.id_to_token(index)
                raise UserError(
                    f"{self.source}: the end token {token!r} has the id {index}, but the model's "
                    f"embedding has {rows} rows (config.json: vocab_size); resize the embedding, "
                    "or name an end token that the model has"
                )


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, found {type(value).__name__}: {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not valid Unicode ({error.reason} at position {error.start})"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _build(raw: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"{path}: not a tokenizer that the tokenizers library reads ({_one_line(error)})"
        ) from None


def _build_continued(raw: dict[str, Any], path: Path) -> tokenizers.Tokenizer | None:
    """Build the tokenizer for a piece that does not begin the text, where that makes a difference.

    `Metaspace` with the scheme "first" puts a space before the first word of a text alone.
    """
    changed = _without_first_space(raw.get("pre_tokenizer"))
    if changed == raw.get("pre_tokenizer"):
        return None
    return _build(raw | {"pre_tokenizer": changed}, path)


def _without_first_space(pre_tokenizer: Any) -> Any:
    if isinstance(pre_tokenizer, list):
        return [_without_first_space(entry) for entry in pre_tokenizer]
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    changed = {name: _without_first_space(value) for name, value in pre_tokenizer.items()}
    if changed.get("prepend_scheme") == "first":
        changed["prepend_scheme"] = "never"
    return changed
