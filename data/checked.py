"""JSON values checked against the types that the code declares, where a file is read.

    class Share(TypedDict):
        count: int
        rate: float | None

    share = checked(values["cut_off"], Share, "gsm8k.summary.json: in 'cut_off'")

Whoever edits a run's files by hand is told the file, the field and what was found there; everything
behind the door can rely on the types.
"""

import math
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from common.errors import UserError

T = TypeVar("T")

WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}
LARGEST = 2**63  # a whole number in a file of ours is a count, a size or a seed


def checked(value: object, kind: type[T], where: str) -> T:
    """Return `value`, a JSON object, as the TypedDict `kind`.

    Every field must be there unless the class is `total=False`, and hold what its annotation says:
    str, bool, int, float (finite; a whole number will do), TypedDicts, `list[...]`, `dict[str,
    ...]`, `Any`, and unions with None. Other fields are let through. UserError, naming `where` and
    the field, for the first that does not.
    """
    _check_object(value, kind, where)
    return cast(T, value)


def checked_field(values: Mapping[str, Any], name: str, kind: Any, where: str) -> Any:
    """Return `values[name]`, seen to be a `kind`, which may be anything `checked` knows."""
    if name not in values:
        raise UserError(f"{where}: field {name!r} must be {_describe(kind)}, which is missing")
    _check_field(values[name], kind, where, name)
    return values[name]


def _check_object(value: Any, kind: Any, where: str) -> None:
    if type(value) is not dict:
        raise UserError(f"{where}: expected an object, found {_shown(value)}")
    for name, expected in _hints(kind).items():
        if name in value:
            _check_field(value[name], expected, where, name)
        elif name in kind.__required_keys__:
            words = _describe(expected)
            raise UserError(f"{where}: field {name!r} must be {words}, which is missing")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_field(value: Any, kind: Any, where: str, name: str) -> None:
    if type(value) is kind and kind is not int and kind is not float:
        return  # most fields, without a look at their annotation
    alternatives = _alternatives(kind)
    if value is None and NoneType in alternatives:
        return
    for alternative in alternatives:
        if _is_shallow(value, alternative):
            _check_inside(value, alternative, where, name)
            return
    words = _describe(kind)
    raise UserError(f"{where}: field {name!r} must be {words}, found {_shown(value)}")


@cache
def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_shallow(value: Any, kind: Any) -> bool:
    """Tell whether `value` is of the outer type of `kind`, whatever it contains."""
    if kind is Any:
        return True
    if kind is int:
        return type(value) is int and abs(value) < LARGEST
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST and math.isfinite(value)
    return type(value) is _plain(kind)


def _check_inside(value: Any, kind: Any, where: str, name: str) -> None:
    inside = f"{where}: in {name!r}"
    if is_typeddict(kind):
        _check_object(value, kind, inside)
    elif get_origin(kind) is dict:
        for key, item in value.items():
            _check_field(item, get_args(kind)[1], inside, key)
    elif get_origin(kind) is list:
        for place, item in enumerate(value):
            _check_field(item, get_args(kind)[0], inside, str(place))


def _plain(kind: Any) -> Any:
    """The JSON type behind an annotation: dict for a TypedDict, list for `list[int]`."""
    return dict if is_typeddict(kind) else get_origin(kind) or kind


def _describe(kind: Any) -> str:
    alternatives = [item for item in _alternatives(kind) if item is not NoneType]
    return " or ".join(WORDS.get(_plain(item), "a value") for item in alternatives)


def _shown(value: Any) -> str:
    """The value in a message: short, and nothing that steers a terminal."""
    return f"{value!r:.80}"
