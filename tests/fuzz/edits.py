"""Edits of files as a stranger, a bad disk or somebody with an editor makes them."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 100_000
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**53, 2**64, 10**400, -0.5, 0.5, 1e308, float("nan")]
NUMBERS += [float("inf"), float("-inf"), 1e-45]
TEXTS = ["", " ", "x", "1", "..", "/etc/passwd", "../../x", "a.b", "$_{", "<script>", "\x1b[31m"]
TEXTS += ["\u202e", "\ud800", "\x00", "none", "Safe", "length", "x" * 5000, "{{ 9**9 }}"]
OTHERS = [None, True, False, [], {}, [[]], [None], {"": 1}, {"a": {"b": []}}, ["x"] * 3, [0, 1]]
VALUES: st.SearchStrategy[Any] = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS])

Draw = Callable[[st.SearchStrategy[Any]], Any]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value; of a long list only those at its beginning."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places_in(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value[:4]):
            yield from places_in(item, (*path, place))


def edit_json(draw: Draw, document: Any, count: int = 2) -> Any:
    """Replace, remove, rename, copy or add up to `count` values of a copy of `document`."""
    value = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, count))):
        path = draw(st.sampled_from(list(places_in(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = copy.deepcopy(draw(VALUES))
            continue
        target = value
        for key in path[:-1]:
            target = target[key]
        _change(draw, target, path[-1])
    return value


def _change(draw: Draw, target: Any, key: Any) -> None:
    kinds = ["near"] * 4 + ["replace"] * 4 + ["remove", "rename", "double", "nest"]
    action = draw(st.sampled_from(kinds))
    if action == "near":
        target[key] = _near(draw, target[key])
    elif action == "replace":
        target[key] = copy.deepcopy(draw(VALUES))
    elif action == "remove":
        del target[key]
    elif action == "nest":
        target[key] = [target[key]]
    elif isinstance(target, list):
        target.append(target[key])
    elif action == "rename":
        target[draw(st.sampled_from(["", "x", "a.b", "\x1b", "0"]))] = target.pop(key)
    else:
        target[f"{key}2"] = target[key]


def _near(draw: Draw, value: Any) -> Any:
    """Another value of the same type, such as a check of types alone lets through."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return draw(st.sampled_from([value + 1, value - 1, value * 2, value // 2, -value]))
    if isinstance(value, str):
        return draw(st.sampled_from([value[::-1], value + "x", value[1:], value.upper()]))
    if isinstance(value, list):
        return draw(st.sampled_from([value[::-1], value[1:], value + value[:1], []]))
    return dict(reversed(value.items()))


def as_text(draw: Draw, value: Any) -> str:
    """JSON, seldom with something in it that is none."""
    text = json.dumps(value)
    action = draw(st.integers(0, 30))
    if action == 30:
        return DEEP
    if action == 29:
        return text[: len(text) // 2]
    return text


def parsed(text: str | bytes) -> Any:
    """What a JSON text holds; an empty object if an edit before has broken it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


def edit_bytes(draw: Draw, content: bytes, until: int | None = None) -> bytes:
    """Flip, overwrite, double, remove or cut off bytes at up to three places before `until`."""
    # Hypothesis likes small numbers: places drawn from it would crowd at the beginning.
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        place = chance.randrange(max(1, min(len(content), until or len(content))))
        action = chance.random()
        if action < 0.4 and content:
            flipped = content[place] ^ 1 << chance.randrange(8)
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
        elif action < 0.7:
            noise = chance.randbytes(chance.randint(1, 8))
            content = content[:place] + noise + content[place + len(noise) :]
        elif action < 0.8:
            content = content[:place] + content[place : place + 40] + content[place:]
        elif action < 0.9:
            content = content[:place] + content[place + chance.randint(1, 40) :]
        else:
            content = content[:place]
    return content


def edit_text(draw: Draw, text: str, pieces: Sequence[str]) -> str:
    """Put pieces of the language into a text, and cut pieces out."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(chance.choice([1, 1, 1, 2])):
        between = [0, len(text), *(match.end() for match in re.finditer("[%}]}|\n", text))]
        within = range(len(text) + 1)
        place = chance.choice(between if chance.random() < 0.7 else within)
        cut = chance.choice([0, 0, 0, 0, 1, 5, 40])
        text = text[:place] + chance.choice(pieces) + text[place + cut :]
    return text


def edit_lines(draw: Draw, lines: Sequence[str]) -> bytes:
    """Edit one record of a JSONL file, repeat a line, or damage its bytes."""
    changed = list(lines)
    place = draw(st.integers(0, len(lines) - 1))
    action = draw(st.integers(0, 9))
    if action < 7:
        changed[place] = as_text(draw, edit_json(draw, parsed(changed[place])))
    elif action == 7:
        changed.insert(place, changed[-1])
    content = "".join(line + "\n" for line in changed).encode("utf-8", "surrogatepass")
    return edit_bytes(draw, content) if action > 7 else content
