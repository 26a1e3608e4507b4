"""Chat data to train on, in the four formats that people have; the first record tells which.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"instruction": "...", "input": "...", "output": "..."}
    {"prompt": "...", "completion": "..."}

They are OpenAI's and TRL's, ShareGPT's, Alpaca's, and TRL's prompt and completion. One JSON object
a line; other fields of a record are ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from common.errors import UserError
from data.prompts import Message
from data.records import numbered_jsonl

# ShareGPT's names of the roles, as its exports and the tools that read them spell them.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES |= {"chatgpt": "assistant", "system": "system"}


class Chat(TypedDict):
    """A conversation: a system turn or none, then user and assistant turns by turns."""

    id: str
    messages: list[Message]


def load_chats(path: str | Path) -> list[Chat]:
    """Read a file in one of the formats. The last turn of every conversation is the assistant's.

    UserError, naming file and line, for a record of another format than the first one, a field that
    is missing or no text, an empty turn, turns out of order, and a conversation without an answer.
    """
    path = Path(path)
    chats: list[Chat] = []
    first = ""
    for line, record in numbered_jsonl(path):
        where = f"{path}, line {line}"
        format_name = _format_of(record, where)
        first = first or format_name
        if format_name != first:
            raise UserError(
                f"{where}: a record in the format {format_name!r}, but the first one is in "
                f"{first!r}; one file holds one format"
            )
        messages = _FORMATS[format_name](record, where)
        _check_turns(messages, where)
        chats.append({"id": f"{path.stem}-{len(chats)}", "messages": messages})
    if not chats:
        raise UserError(f"{path}: no records in this file")
    return chats


def is_chat_file(path: str | Path) -> bool:
    """True for a file whose first record is in one of the four formats."""
    if not Path(path).is_file():
        return False
    for _, record in numbered_jsonl(path):
        return any(key in record for key in _FORMATS)
    return False


def opening_question(messages: Sequence[Message]) -> str:
    """The first user turn, by which a conversation is told from others."""
    return next(turn["content"] for turn in messages if turn["role"] == "user")


def _format_of(record: Mapping[str, Any], where: str) -> str:
    """The field that gives a record's format away."""
    found = [key for key in _FORMATS if key in record]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{where}: both {found[0]!r} and {found[1]!r}; which of them is the chat?")
    raise UserError(
        f"{where}: none of {', '.join(map(repr, _FORMATS))} among its fields {sorted(record)}"
    )


def _from_messages(record: Mapping[str, Any], where: str) -> list[Message]:
    turns = _list(record, "messages", where)
    return [_turn(turn, "role", "content", where) for turn in turns]


def _from_sharegpt(record: Mapping[str, Any], where: str) -> list[Message]:
    turns = _list(record, "conversations", where)
    messages = []
    for turn in turns:
        message = _turn(turn, "from", "value", where)
        if message["role"] not in _ROLES:
            raise UserError(
                f"{where}: 'from' is {message['role']!r}, expected one of {', '.join(_ROLES)}"
            )
        messages.append({**message, "role": _ROLES[message["role"]]})
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": _text(record, "system", where)})
    return messages


def _from_alpaca(record: Mapping[str, Any], where: str) -> list[Message]:
    question = _text(record, "instruction", where)
    if record.get("input"):
        question = f"{question}\n\n{_text(record, 'input', where)}"
    answer = _text(record, "output", where)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _from_completion(record: Mapping[str, Any], where: str) -> list[Message]:
    """Either field may be text or, as in TRL's conversational form, a list of turns."""
    messages = []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(field), list):
            turns = _list(record, field, where)
            messages += [_turn(turn, "role", "content", where) for turn in turns]
        else:
            messages.append({"role": role, "content": _text(record, field, where)})
    return messages


_FORMATS: dict[str, Callable[[Mapping[str, Any], str], list[Message]]] = {
    "messages": _from_messages,
    "conversations": _from_sharegpt,
    "instruction": _from_alpaca,
    "prompt": _from_completion,
}


def _turn(turn: Any, role: str, content: str, where: str) -> Message:
    if not isinstance(turn, dict):
        raise UserError(
            f"{where}: a turn is an object with {role!r} and {content!r}, found {turn!r:.60}"
        )
    return {"role": _text(turn, role, where), "content": _text(turn, content, where)}


def _list(record: Mapping[str, Any], field: str, where: str) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {field!r} should be a list of turns, found {value!r:.60}")
    return value


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(f"{where}: no {field!r}, only {sorted(record)}")
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} should be text, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {field!r} is empty")
    return value


def _check_turns(messages: list[Message], where: str) -> None:
    """UserError unless roles come in their order and the last turn is an answer."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise UserError(
                f"{where}: turn {number + 1} is of role {message['role']!r}, expected "
                f"{expected!r}: user and assistant take turns, behind at most one system turn"
            )
    if not turns or turns[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: the last turn is not the assistant's: there is no answer to learn"
        )
