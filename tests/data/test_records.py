import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.records import (
    append_record,
    numbered_jsonl,
    open_records,
    read_json,
    read_json_list,
    read_jsonl,
    repair_jsonl,
    rewrite_records,
    write_json,
)


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert list(numbered_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2})]
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("line", [b'{"a": ', b"[1]", b"\xff\xfe", b'"text"', b"[" * 100_000])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"a": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: "):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a": 1}\n{"b": "\xc3', b'{"a": 1}\n'),  # cut inside a character
        (b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n{"b": 2}\n'),  # only the newline is missing
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a', b""),
        (b'{"a": 1}\n' + b"[" * 100_000, b'{"a": 1}\n'),  # nested too deep to be read
        (b"", b""),
    ],
)
def test_repair(tmp_path, before, after):
    path = tmp_path / "a.jsonl"
    path.write_bytes(before)
    repair_jsonl(path)
    assert path.read_bytes() == after


def test_resuming_after_a_crash_loses_only_the_half_written_record(tmp_path):
    path = tmp_path / "runs" / "a.jsonl"
    file = open_records(path, resume=True)
    append_record(file, {"id": 0, "text": "naïve\nline"})
    file.write('{"id": 1, "te')
    file.close()
    file = open_records(path, resume=True)
    append_record(file, {"id": 1})
    assert read_jsonl(path) == [
        {"id": 0, "text": "naïve\nline"},
        {"id": 1},
    ]  # flushed, though still open
    file.close()


def test_without_resume_the_file_starts_empty(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    open_records(path, resume=False).close()
    assert path.read_text() == ""


def test_json_round_trip_leaves_no_partial_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": "ü"})
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000])
def test_read_json_names_the_file(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: "):
        read_json(path)


def test_a_line_being_written_may_be_passed_over(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert [record for _, record in numbered_jsonl(path, may_be_cut=True)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line 3"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="line 2"):
        list(numbered_jsonl(path, may_be_cut=True))


def test_rewriting_replaces_the_file_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nhalf')

    def broken():
        yield {"a": 3}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        rewrite_records(path, broken())
    assert path.read_text().endswith("half"), "a rewrite that fails leaves the old file"
    rewrite_records(path, [{"a": 3}, {"a": "é"}])
    assert read_jsonl(path) == [{"a": 3}, {"a": "é"}]
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "expected a JSON list, found dict"),
        ('[{"a": 1}, 2]', "record 2: expected a JSON object, found int"),
    ],
)
def test_a_file_that_is_no_list_of_objects_is_named(tmp_path, text, message):
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {}]')
    assert read_json_list(path) == [{"a": 1}, {}]
    path.write_text(text)
    with pytest.raises(UserError, match=rf"list\.json.*{message}"):
        read_json_list(path)


FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.is_char_device(), reason="only Linux has /dev/full")


@full_disk
def test_a_full_disk_is_named_with_its_free_space():
    message = (
        r"/dev/full: cannot be written \(No space left on device; [\d,]+ MiB free on its disk\)"
    )
    with (
        pytest.raises(OSError, match="No space left"),
        open(FULL, "a") as file,
        pytest.raises(UserError, match=message),
    ):
        append_record(file, {"a": 1})


@full_disk
@pytest.mark.parametrize(
    "write", [lambda path: write_json(path, {"a": 1}), lambda path: rewrite_records(path, [{}])]
)
def test_what_cannot_be_replaced_stays(write, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    (tmp_path / "a.json.partial").symlink_to(FULL)
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(No space left on device;"):
        write(path)
    assert path.read_text() == "before" and not (tmp_path / "a.json.partial").exists()
