"""Text to token ids and back, and chats through the checkpoint's own template.

A template writes control tokens such as `<|eot_id|>` as text, and a tokenizer turns that text into
ids wherever it finds it, also inside a message somebody else wrote. Here only the template can
write them: characters in message contents that could begin or end such a token are replaced by
stand-ins while the template runs, the rendered text is cut at the control tokens that remain, and
the pieces between are encoded as plain text.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama.checkpoint_files import CHAT_TEMPLATE, locate, read_chat_template, read_json
from llama.errors import UserError
from llama.hub import resolve

DEFAULT_DATE = "26 Jul 2024"  # what Llama 3.2's template prints where no date is given
MONTHS = (
    "January February March April May June July August September October November December".split()
)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
FIRST_SURROGATE, SURROGATES = 0xD800, 2048


def load_tokenizer(ref: str | Path, date: str = DEFAULT_DATE) -> "Tokenizer":
    """The tokenizer of the checkpoint at `ref` (local folder, Hub id or alias).

    `date` is the day that chat templates print as today's. Raises UserError for a missing or broken
    file, and for a checkpoint that names no end token.
    """
    return Tokenizer(resolve(ref, allow_weights=False), date)


class Tokenizer:
    """A checkpoint's `tokenizer.json`, special tokens and chat template.

    `stop_ids`: every end token the checkpoint names, at least one; `end_id`: the one that ends an
    answer, by name the eos_token, else the lowest of them; `vocab_size`: added tokens included (a
    model's embedding may have more rows).
    """

    def __init__(self, source: Path, date: str = DEFAULT_DATE) -> None:
        self.path = locate(source, "tokenizer.json")
        raw = read_json(source, "tokenizer.json", required=True) or {}
        raw |= {"truncation": None, "padding": None}  # leftovers of somebody's training
        self._tokenizer = _build(raw, self.path)
        self._plain = _build(
            raw | {"added_tokens": []}, self.path
        )  # leaves control tokens in the text as text
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

        config = read_json(source, "tokenizer_config.json") or {}
        self._named = _named_tokens(config, locate(source, "tokenizer_config.json"))
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.stop_ids: frozenset[int] = self._read_stop_ids(source)
        named_end = self._tokenizer.token_to_id(self._named.get("eos_token", ""))
        self.end_id: int = min(self.stop_ids) if named_end is None else named_end
        self._template = _load_template(source, config, date)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: nothing is added, and special tokens spelled out in it stay
        text.
        """
        _require_text("text", text)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise UserError(
                f"{self.path}: plain text would become a special token in {text[:80]!r}"
            )
        return ids

    def encode_framed(self, text: str) -> list[int]:
        """Ids of `text` between the special tokens that the tokenizer puts around a text, if it
        puts any.

        Qwen3-Embedding ends a text with <|endoftext|>, Llama begins it with <|begin_of_text|>.
        """
        bare, framed = self.encode("a"), self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:start] + self.encode(text) + framed[start + len(bare) :]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, without special tokens unless asked for."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def encode_chat(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a chat, `[{"role": ..., "content": ...}, ...]`, rendered by the checkpoint's chat
        template.

        The ids are those of transformers' `apply_chat_template`, with one deliberate difference:
        added tokens spelled out in a message's content (`<|eot_id|>`, and also `<think>`) stay
        plain text. A template that reads contents as lists of parts gets each as one text part.
        Raises UserError for messages of another form, a checkpoint without a template,
        or a chat that the template refuses.
        """
        return self._encode_rendered(self._render(messages, add_generation_prompt))

    def _encode_rendered(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(self._cut.split(text)):  # text, token, text, ..., token, text
            ids += [self._added[piece]] if index % 2 else self.encode(piece.translate(self._reveal))
        return ids

    def _render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """The chat as text, with stand-ins for the characters in contents that begin or end an
        added token.
        """
        if self._template is None:
            raise UserError(
                f"{self.path.parent}: no chat template (chat_template.jinja or in tokenizer_config.json)"
            )
        if not messages:
            raise UserError("a chat needs at least one message")
        for index, message in enumerate(messages):
            self._check_message(f"message {index + 1}", message)
        try:
            return self._template.render(
                messages=[
                    message | {"content": self._template_content(message["content"])}
                    for message in messages
                ],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise UserError(
                f"{self.path.parent}: the chat template refuses these messages: {_one_line(error)}"
            ) from error

    def _template_content(self, text: str) -> Any:
        """A message's content as the template takes it, with stand-ins; see `_render`."""
        hidden = text.translate(self._hide)
        return _text_part(hidden) if self._reads_parts else hidden

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads contents as lists of parts, as Llama-Guard-3-1B's does.

        From plain text such a template prints an empty turn, without a word.
        """
        return not self._prints("probe", "probe") and self._prints("probe", _text_part("probe"))

    def _prints(self, text: str, content: Any) -> bool:
        assert self._template is not None
        messages = [{"role": "user", "content": content}]
        try:
            rendered = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._named,
            )
        except Exception:  # `_render` says so of the messages that are really asked for
            return False
        return text in rendered

    def _check_message(self, name: str, message: Any) -> None:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(f"{name}: expected an object with role and content, found {message!r}")
        for field, value in message.items():
            _require_text(f"{name}: {field}", value)
        if self._cut.search(message["role"]):
            raise UserError(f"{name}: role {message['role']!r} contains a token of the tokenizer")

    def _check_added_tokens(self) -> None:
        """Cutting at added tokens and encoding the rest piece by piece must be what the tokenizer
        itself does.
        """
        if len(self._hide) > SURROGATES:
            raise UserError(
                f"{self.path}: added tokens begin or end with more than {SURROGATES} different characters"
            )
        for token in self._added:
            if any(edge.isalnum() or edge.isspace() for edge in (token[0], token[-1])):
                raise UserError(
                    f"{self.path}: added token {token!r} looks like ordinary text: not supported"
                )
            for text in (f"a{token}a", f"a {token} a"):
                if self._tokenizer.encode(
                    text, add_special_tokens=False
                ).ids != self._encode_rendered(text):
                    raise UserError(
                        f"{self.path}: added token {token!r} does not cut text just where it stands: not supported"
                    )

    def _read_stop_ids(self, source: Path) -> frozenset[int]:
        """Every end token in generation_config.json, config.json and tokenizer_config.json."""
        stop_ids = set()
        for name in ("generation_config.json", "config.json"):
            path = locate(source, name)
            ids = (read_json(source, name) or {}).get("eos_token_id")
            for index in ids if isinstance(ids, list) else [ids] if ids is not None else []:
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
                    f"{self.path}: the eos_token {self._named['eos_token']!r} is not in the vocabulary"
                )
            stop_ids.add(index)
        if not stop_ids:
            raise UserError(
                f"{source}: names no end token, so no answer would ever end: expected an eos_token_id in "
                "generation_config.json or config.json, or an eos_token in tokenizer_config.json"
            )
        return frozenset(stop_ids)


def _text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


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


def _named_tokens(config: dict[str, Any], path: Path) -> dict[str, str]:
    """The special tokens that templates see; each is written as text or as an object with
    `content`.
    """
    named = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            named[name] = value
        elif config.get(name) is not None:
            raise UserError(
                f"{path}: {name} = {config[name]!r}: expected text or an object with content"
            )
    return named


def _load_template(source: Path, config: dict[str, Any], date: str) -> jinja2.Template | None:
    """The compiled chat template: `chat_template.jinja`, else the one in tokenizer_config.json,
    else None.
    """
    path = locate(source, CHAT_TEMPLATE)
    template = read_chat_template(source)
    if template is None:
        path = locate(source, "tokenizer_config.json")
        template = config.get("chat_template")
        if isinstance(template, list):  # several templates by name
            template = _default_template(template, path)
    environment = _environment(date)
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{path}: chat_template must be text, found {type(template).__name__}")
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{path}: broken chat template, line {error.lineno}: {error.message}"
        ) from None


def _default_template(entries: list[Any], path: Path) -> Any:
    for entry in entries:
        if not isinstance(entry, dict):
            raise UserError(
                f"{path}: chat_template: expected objects with name and template, found {entry!r}"
            )
    return next(
        (entry.get("template") for entry in entries if entry.get("name") == "default"), None
    )


def _environment(date: str) -> ImmutableSandboxedEnvironment:
    """What transformers offers to a template (its `utils/chat_template_utils.py`), with the date
    pinned.
    """
    today = _parse_date(date)
    names = {"%b": MONTHS[today.month - 1][:3], "%B": MONTHS[today.month - 1]}
    names |= {"%a": WEEKDAYS[today.weekday()][:3], "%A": WEEKDAYS[today.weekday()]}

    def strftime_now(form: str) -> str:
        return today.strftime(
            re.sub("%.", lambda match: names.get(match[0], match[0]), form)
        )  # English in any locale

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ):
        # jinja's own escapes HTML
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    extensions = [ext.loopcontrols, GenerationBlock]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"strftime_now": strftime_now, "raise_exception": raise_exception}
    return environment


class GenerationBlock(ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant wrote; here it only renders
    its body.
    """

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _parse_date(date: str) -> datetime:
    """A day like '26 Jul 2024', whatever the locale."""
    try:
        day, month, year = date.split()
        return datetime(int(year), [name[:3] for name in MONTHS].index(month) + 1, int(day))
    except (AttributeError, ValueError):
        raise UserError(f"date {date!r}: expected a day like '26 Jul 2024'") from None
