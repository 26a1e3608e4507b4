"""YAML written by people is read within bounds: what a recipe needs, and one line for all else."""

import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.yaml_files import MAX_BYTES, parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_values_are_read_and_a_date_is_text():
    text = "about: 2026-07-01\nlr: 1.5\nshots: 3\ntarget: [q_proj, mlp]\nheader: false\nnone:\n"
    assert parse_yaml(text, "f") == {
        "about": "2026-07-01",
        "lr": 1.5,
        "shots": 3,
        "target": ["q_proj", "mlp"],
        "header": False,
        "none": None,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000, "nested more than 10 deep"),
        ("[" * 90_000, "nested more than 10 deep"),
        ("- " * 45_000, "nested more than 10 deep"),
        ("a: &a [*a]", r"the alias \*a is not read; write the value out"),
        (BOMB, r"the alias \*a is not read"),
        ("a: !!python/object/apply:os.getcwd []", "the tag .* is not read"),
        ("a: !!int b", "the tag .* is not read"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice"),
        ("a: {b: 1, b: 2}", "'b' is given twice"),
        ("1: a", "the key 1 is no text"),
        ("? [a]\n: b", "is no text"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 0b_", "not valid YAML"),
        ("a: 'open", "not valid YAML"),
        ("<<: {a: 1}", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("#" * (MAX_BYTES + 1), "longer than 100,000 bytes"),
    ],
)
def test_everything_else_is_one_line_within_seconds(text, message):
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        parse_yaml(text, "f.yaml")
    assert time.monotonic() - begin < 10
    assert str(error.value).startswith("f.yaml") and "\n" not in str(error.value)


def test_a_file_is_read_no_further_than_its_bound(tmp_path):
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(
            10**12
        )  # a sparse file: reading all of it would take the memory of ten machines
    with pytest.raises(UserError, match=r"huge\.yaml: longer than"):
        read_yaml(huge)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfea", "not UTF-8 text"), (b"- a", "expected keys and values, found list")],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, message):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_yaml(path)
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_yaml(Path("nowhere"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbftitle: t\n")
    assert read_yaml(path) == {"title": "t"}
