"""Files edited by hand are refused with the field that is wrong, and nothing wrong passes."""

from typing import Any, TypedDict

import pytest

from common.errors import UserError
from data.checked import checked, checked_field


class Share(TypedDict):
    count: int
    rate: float | None


class Optional(TypedDict, total=False):
    note: str | None


class Summary(Optional):
    task: str
    finished: bool
    accuracy: dict[str, Share]
    categories: list[str]
    settings: dict[str, Any]


GOOD: dict[str, Any] = {
    "task": "gsm8k",
    "finished": True,
    "accuracy": {"number": {"count": 3, "rate": 1}},
    "categories": ["a"],
    "settings": {"shots": 3},
}


def test_what_is_declared_passes_as_it_is():
    assert checked(GOOD, Summary, "f.json") is GOOD
    assert checked(GOOD | {"note": None, "unknown": 3}, Summary, "f.json")["note"] is None
    assert checked(GOOD | {"accuracy": {}}, Summary, "f.json")["accuracy"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": 3}, "f.json: field 'task' must be text, found 3"),
        ({"finished": 1}, "field 'finished' must be true or false, found 1"),
        ({"finished": None}, "field 'finished' must be true or false, found None"),
        ({"note": []}, r"field 'note' must be text, found \[\]"),
        ({"accuracy": []}, r"field 'accuracy' must be an object, found \[\]"),
        (
            {"accuracy": {"number": {"count": True, "rate": 1.0}}},
            "f.json: in 'accuracy': in 'number': field 'count' must be a whole number, found True",
        ),
        ({"accuracy": {"n": {"count": 1.5, "rate": 1}}}, "'count' must be a whole number"),
        ({"accuracy": {"n": {"count": 10**30, "rate": 1}}}, "'count' must be a whole number"),
        ({"accuracy": {"n": {"count": 1, "rate": float("nan")}}}, "'rate' must be a number"),
        ({"accuracy": {"n": {"count": 1, "rate": 10**400}}}, "'rate' must be a number"),
        ({"accuracy": {"n": {"count": 1}}}, "'rate' must be a number, which is missing"),
        ({"categories": ["a", None]}, "in 'categories': field '1' must be text, found None"),
        ({"settings": "none"}, "field 'settings' must be an object, found 'none'"),
        ({"task": None}, "field 'task' must be text, found None"),
    ],
)
def test_what_is_not_is_refused_with_its_place(changes, message):
    with pytest.raises(UserError, match=message):
        checked(GOOD | changes, Summary, "f.json")


def test_what_is_no_object_is_refused():
    with pytest.raises(UserError, match=r"f.json: expected an object, found \[1\]"):
        checked([1], Summary, "f.json")


def test_a_message_holds_nothing_that_steers_a_terminal():
    with pytest.raises(UserError) as caught:
        checked(GOOD | {"finished": "\x1b[2J\u202e"}, Summary, "f.json")
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


def test_a_field_alone():
    assert checked_field({"a": 1}, "a", int, "f.json") == 1
    with pytest.raises(UserError, match=r"f\.json: field 'b' must be text, which is missing"):
        checked_field({}, "b", str | None, "f.json")
