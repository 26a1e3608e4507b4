"""A script's settings as one frozen dataclass: its options and what its summary records of them.

    @dataclass(frozen=True, kw_only=True)
    class JudgingSettings(RunSettings):
        max_new_tokens: int = option(64, "length of a verdict", parse=positive_int, metavar="N")

    settings = parse_settings(JudgingSettings, __doc__, argv)  # see common/command_line.py
    summary["settings"] = recorded(settings)

Names, types, defaults and help stand in the fields and nowhere else, and so does `scope`: whether a
setting is recorded, and whether it may differ between two calls that work on the same run.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_type_hints

from common.errors import UserError
from data.checked import checked_field
from data.records import Record

LARGEST = 10**15  # of the numbers that an option takes: none of ours is a count beyond that
HIDDEN = argparse.SUPPRESS  # as the help of an option that --help does not list


class Scope(Enum):
    """Reach of a setting: the result, the cost or one call."""

    RESULT = "result"  # recorded; a call that goes on with a run must have the same
    COST = "cost"  # recorded; only time, memory or the number of records depend on it
    CALL = "call"  # of one call, such as --resume: not recorded


@dataclass(frozen=True)
class Option:
    """A field's form on the command line and in a summary; see `option`."""

    help: str
    parse: Callable[[str], Any] | None
    metavar: str | None
    choices: tuple[str, ...] | None
    group: str | None
    exclusive: str | None
    nargs: str | None
    scope: Scope
    positional: bool
    flag: bool
    repeated: bool
    when: Callable[[Any], bool] | None

    @property
    def shown(self) -> bool:
        """True if --help lists it."""
        return self.help != HIDDEN


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    group: str | None = None,
    exclusive: str | None = None,
    nargs: str | None = None,
    scope: Scope = Scope.RESULT,
    positional: bool = False,
    flag: bool = False,
    repeated: bool = False,
    when: Callable[[Any], bool] | None = None,
) -> Any:
    """A settings field that is also a command-line option, named as the field, with dashes.

    A bool becomes `--name / --no-name`, or `--name` alone with `flag`. `group` is the heading under
    which --help lists it, `exclusive` names a set of options of which one may be given, `nargs`
    and `repeated` ("append") give tuples. `%(default)s` in `help` is filled in by argparse.
    `when(settings)` tells whether the setting has an effect beside the others; where it has none
    it is not recorded.
    """
    about = Option(
        help=help,
        parse=parse,
        metavar=metavar,
        choices=tuple(choices) if choices else None,
        group=group,
        exclusive=exclusive,
        nargs=nargs,
        scope=scope,
        positional=positional,
        flag=flag,
        repeated=repeated,
        when=when,
    )
    if isinstance(default, list):
        raise TypeError("a frozen setting's default is a tuple, not a list")
    return field(default=default, metadata={"option": about})


class Settings(Protocol):
    """Any frozen dataclass whose fields were made by `option`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def options(settings: type[Settings] | Settings) -> dict[str, Option]:
    """The option of each field, by the field's name."""
    return {item.name: item.metadata["option"] for item in dataclasses.fields(settings)}


def to_argv(values: Mapping[str, Any], settings: type[Settings]) -> list[str]:
    """`{"shots": 3, "system-header": False}` -> `["--shots=3", "--no-system-header"]`."""
    positional: list[str] = []
    argv: list[str] = []
    for name, value in values.items():
        about = options(settings)[name.replace("-", "_")]
        several = value if isinstance(value, list) else [value]
        if about.positional:
            positional += map(str, several)
        elif isinstance(value, bool):
            argv += _switch(name, value, about)
        elif about.nargs:
            argv += [f"--{name}", *map(str, several)]
        else:
            argv += [f"--{name}={item}" for item in several]  # one word: it may begin with a dash
    return [*positional, *argv]  # an option that takes several words would take these as well


def _switch(name: str, value: bool, about: Option) -> list[str]:
    if about.flag:
        return [f"--{name}"] if value else []
    return [f"--{'' if value else 'no-'}{name}"]


def recorded(settings: Settings) -> dict[str, Any]:
    """The settings that a summary keeps, as JSON values by field name."""
    kept = {}
    for name, about in options(settings).items():
        has_effect = about.when is None or about.when(settings)
        if about.scope is not Scope.CALL and has_effect:
            kept[name] = _json_value(getattr(settings, name))
    return kept


def checked_settings(values: Mapping[str, Any], settings: type[Settings], where: str) -> Record:
    """The settings of the class among the recorded `values`, seen to be what its options allow.

    None stands for a default. UserError, naming `where` and the field, for the first that is of
    another type, no choice, or outside the option's range.
    """
    kinds, found = get_type_hints(settings), {}
    for name, about in options(settings).items():
        if about.scope is Scope.CALL or values.get(name) is None:
            continue
        kind = str if about.choices else kinds[name]
        value = found[name] = checked_field(values, name, kind, where)
        if about.choices and value not in about.choices:
            raise UserError(
                f"{where}: field {name!r} must be one of {', '.join(about.choices)}, "
                f"found {value!r:.60}"
            )
        if about.parse and isinstance(value, int | float):
            try:
                about.parse(str(value))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{where}: field {name!r}: {error}") from None
    return found


def recorded_defaults(settings: type[Settings]) -> dict[str, Any]:
    """The values of settings that a summary lacks because it is older than the options."""
    return {item.name: _json_value(item.default) for item in dataclasses.fields(settings)}


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def may_change(settings: type[Settings] | Settings) -> frozenset[str]:
    """The recorded settings that two calls of one run need not share."""
    return frozenset(n for n, about in options(settings).items() if about.scope is Scope.COST)


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def probability(text: str) -> float:
    """argparse type: a number above 0 and at most 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def fraction(text: str) -> float:
    """argparse type: a number of at least 0 and below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def seed(text: str) -> int:
    """argparse type: a random seed."""
    expected = "a whole number from 0 to 4294967295"
    return _number(text, int, lambda value: 0 <= value < 2**32, expected)


def _number(text: str, kind: type, valid: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r:.60}") from None
    if abs(value) > LARGEST:
        raise argparse.ArgumentTypeError(f"expected a number of at most {LARGEST}, got {text:.60}")
    if not valid(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text:.60}")
    return value
