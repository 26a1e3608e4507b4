"""YAML files written by people: --config files and recipes, read within bounds.

Only what such a file needs is read: keys and values, lists, text, numbers, true and false. Aliases,
tags and repeated keys are refused, so a file can neither grow when it is read nor lose a value
silently. A date is text, as it stands in the file.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from common.errors import UserError

MAX_BYTES = 100_000
MAX_DEPTH = 10  # of lists and mappings inside one another; a recipe has three
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates; a repeated key is an error instead of the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(
                    None, None, f"the key {key!r} is no text", key_node.start_mark
                )
            if key in keys:
                raise ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError, naming the file, for anything else."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    if len(content) > MAX_BYTES:
        raise _too_long(str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text holds. UserError, with `where` in front, if it is not allowed.

    Takes time and memory in proportion to the text, which has at most MAX_BYTES bytes.
    """
    if len(text.encode()) > MAX_BYTES:
        raise _too_long(where)
    try:
        _check_events(text, where)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that int() refuses
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None


def _too_long(where: str) -> UserError:
    return UserError(f"{where}: longer than {MAX_BYTES:,} bytes, the most that is read")


def _check_events(text: str, where: str) -> None:
    """UserError for aliases, tags and deep nesting, before anything is built from the text."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{where}: the alias *{event.anchor} is not read; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise UserError(f"{where}: the tag {tag!r} is not read; write a plain value")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{where}, line {line}: nested more than {MAX_DEPTH} deep")
