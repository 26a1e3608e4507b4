"""The command line and --config file of a script, read into its settings.

settings = parse_settings(JudgingSettings, __doc__, argv)
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from common.errors import UserError
from common.options import Option, Settings, options
from common.yaml_files import read_yaml

S = TypeVar("S", bound=Settings)


class Parser(argparse.ArgumentParser):
    """Options of a script; a bad one is a single line, like every other bad input."""

    def __init__(self, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it; an unknown option gets the nearest known one named."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return parsed
        name = unknown[0].partition("=")[0]
        known = list(self._option_string_actions)
        close = get_close_matches(name, known, n=1) if name.startswith("-") else []
        hint = f"; did you mean {close[0]}?" if close else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def build_parser(
    settings: type[Settings], description: str | None, defaults: Mapping[str, Any] | None = None
) -> Parser:
    """The command line of `settings`, with --config; `description` heads its --help.

    `defaults` holds values by field name that count instead of the fields' own defaults.
    """
    parser = Parser(description)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML: option names and values; what the command line says overrules it",
    )
    places: dict[tuple[str | None, str | None], Any] = {(None, None): parser}
    for item in dataclasses.fields(settings):
        about: Option = item.metadata["option"]
        group, exclusive = (about.group, None), (about.group, about.exclusive)
        if group not in places:
            places[group] = parser.add_argument_group(about.group)
        if exclusive not in places:
            places[exclusive] = places[group].add_mutually_exclusive_group()
        _add_argument(places[exclusive], item, defaults or {})
    return parser


def _add_argument(target: Any, item: "dataclasses.Field[Any]", defaults: Mapping[str, Any]) -> None:
    about: Option = item.metadata["option"]
    name = item.name if about.positional else f"--{item.name.replace('_', '-')}"
    default = defaults.get(item.name, item.default)
    keywords: dict[str, Any] = {"help": about.help}
    if default is not MISSING and not about.positional:
        keywords["default"] = default
    if about.flag:
        keywords["action"] = "store_true"
    elif isinstance(item.default, bool):
        keywords["action"] = argparse.BooleanOptionalAction
    else:
        given = {"type": about.parse, "metavar": about.metavar, "choices": about.choices}
        keywords |= {key: value for key, value in given.items() if value is not None}
        if about.nargs:
            keywords["nargs"] = about.nargs
        if about.repeated:
            keywords |= {"action": "append", "default": list(default or ())}
    if about.positional and item.name in defaults:  # no longer required on the command line
        keywords |= {"nargs": "*" if about.nargs else "?", "default": default}
    target.add_argument(name, **keywords)


def parse_settings(settings: type[S], description: str | None, argv: Sequence[str] | None) -> S:
    """The settings that `argv` (the command line, if None) and its --config file ask for.

    Exits with status 2 and one line for a bad option, as argparse does, and for settings that do
    not go together, which the dataclass says by a UserError from `__post_init__`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(settings, description)
    try:
        path = _config_path(words)
        if path is not None:
            defaults = _config_values(path, settings, words)
            parser = build_parser(settings, description, defaults)
        parsed = vars(parser.parse_args(words))
        parsed.pop("config")
        values = {name: _frozen(value) for name, value in parsed.items()}
        return settings(**values)
    except UserError as error:
        parser.error(str(error))


def _config_path(words: Sequence[str]) -> Path | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path, nargs="?")
    return finder.parse_known_args(list(words))[0].config


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _config_values(path: Path, settings: type[Settings], words: Sequence[str]) -> dict[str, Any]:
    """The file's values by field name, without those that the command line overrules."""
    overruled = _overruled(settings, words)
    values = {}
    for name, value in read_config(path, settings).items():
        field_name = name.replace("-", "_")
        if field_name not in overruled:
            values[field_name] = value
    return values


def _overruled(settings: type[Settings], words: Sequence[str]) -> set[str]:
    """The fields that the command line names, and those of which only one may be given."""
    known = options(settings)
    given = {word.partition("=")[0] for word in words}
    named = set()
    for name in known:
        dashed = name.replace("_", "-")
        if f"--{dashed}" in given or f"--no-{dashed}" in given:
            named.add(name)
    sets = {known[name].exclusive for name in named} - {None}
    return named | {name for name, about in known.items() if about.exclusive in sets}


def read_config(path: Path, settings: type[Settings]) -> dict[str, Any]:
    """The options that a YAML file sets, parsed as the command line would be.

    UserError names the file and the key that is unknown, with the nearest option, or whose value
    is not what the option takes. A key without a value counts as not there.
    """
    raw = read_yaml(path)
    names = [name.replace("_", "-") for name in options(settings)]
    check_keys(raw, names, str(path), "option")
    values = {}
    for item in dataclasses.fields(settings):
        name = item.name.replace("_", "-")
        if raw.get(name) is not None:
            values[name] = _parse_config_value(path, item, raw[name])
    exclusive: dict[str | None, str] = {}
    for name in values:
        one_of = options(settings)[name.replace("-", "_")].exclusive
        if one_of is not None and one_of in exclusive:
            raise UserError(f"{path}: give one of {exclusive[one_of]} and {name}, not both")
        exclusive[one_of] = name
    return values


def _parse_config_value(path: Path, item: "dataclasses.Field[Any]", value: Any) -> Any:
    about: Option = item.metadata["option"]
    name = item.name.replace("_", "-")
    if isinstance(item.default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{path}: {name} should be true or false, found {value!r:.60}")
        return value
    takes_several = about.repeated or about.nargs in ("*", "+")
    parts = value if isinstance(value, list) and takes_several else [value]
    if not parts or any(isinstance(part, list | dict | bool) or part is None for part in parts):
        expected = "values" if takes_several else "one value"
        raise UserError(f"{path}: {name} should be {expected}, found {value!r:.60}")
    parsed = []
    for part in map(str, parts):
        try:
            parsed.append(about.parse(part) if about.parse else part)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UserError(f"{path}: {name}: {error}") from None
        if about.choices and part not in about.choices:
            raise UserError(f"{path}: {name} is {part!r}, but one of {', '.join(about.choices)}")
    return parsed if takes_several else parsed[0]


def read_number(
    values: Mapping[str, Any], name: str, default: float, parse: Callable[[str], float], path: Path
) -> float:
    """The number of an option in the file `path`, read as its script will read it.

    UserError, naming the file, if it is none.
    """
    try:
        return parse(str(values.get(name, default)))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: {name}: {error}") from None


def check_keys(found: Iterable[Any], known: Iterable[str], where: str, what: str) -> None:
    """UserError, with the nearest valid name, for a key of `found` that is not `known`."""
    names = list(known)
    for key in found:
        if key not in names:
            close = get_close_matches(str(key), names, n=1, cutoff=0)
            nearest = f"; the nearest valid name is {close[0]!r}" if close else ""
            raise UserError(f"{where}: unknown {what} {key!r:.60}{nearest}")
