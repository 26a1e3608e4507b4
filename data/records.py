"""Files a run leaves behind: append-only JSONL records and atomically replaced JSON summaries.

A crash may cut the last JSONL line short. `open_records` drops such a line before it appends, so a
file that is resumed holds exactly one finished record per line.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from common.errors import UserError

# Of `json.loads`: no JSON, bytes that are no text, nested absurdly deep.
BROKEN_JSON = (ValueError, RecursionError)
Record = dict[str, Any]  # of JSON values by field name; `data.task` says which fields a task's has


def numbered_jsonl(
    path: str | os.PathLike, may_be_cut: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one JSON object per line with its line number, counted from 1; blank lines are skipped
    but counted.

    With `may_be_cut`, a last line without its newline that is no JSON is passed over: somebody is
    writing it, or was. Raises UserError naming the file and the line for anything that is not a
    JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except BROKEN_JSON as error:
                if may_be_cut and not line.endswith(b"\n"):
                    return
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}, line {number}: expected a JSON object, found {type(record).__name__}"
                )
            yield number, record


def numbered_csv(
    path: str | os.PathLike, required: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file with a header, each with the number of the line it ends on.

    UserError, naming file and line, if a required column is missing (all of them are named), a row
    is longer or shorter than the header, or the file is no CSV in UTF-8.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = list(reader.fieldnames or [])
            if missing := [name for name in required if name not in columns]:
                raise UserError(
                    f"{path}: no column {', '.join(map(repr, missing))}; "
                    f"the columns are {', '.join(columns) or 'none'}"
                )
            for row in reader:
                # None is how DictReader marks a row that is too long or too short.
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: the row does not have "
                        f"{len(columns)} columns"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            line = reader.reader.line_num  # DictReader's own stands at the last good row
            raise UserError(f"{path}, line {line}: not valid CSV ({error})") from None
        except UnicodeDecodeError as error:
            # The file is decoded in blocks, so the line is not known.
            raise UserError(f"{path}: not UTF-8 text ({error})") from None


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a whole file as `numbered_jsonl` does, without the line numbers."""
    return [record for _, record in numbered_jsonl(path)]


def text_field(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text in a field. UserError, beginning with `where`, if there is none or it is blank."""
    if field not in record:
        raise UserError(f"{where}: no {field!r}, only {sorted(record)}")
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} should be a string, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {field!r} is empty")
    return value


def repair_jsonl(path: str | os.PathLike) -> None:
    """Cut a half-written last line off `path`; a complete last record that only lacks its newline
    gets one.
    """
    path = Path(path)
    if not path.exists():
        return
    with open(path, "r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        try:
            json.loads(content[start:])
        except BROKEN_JSON:
            file.truncate(start)
        else:
            file.write(b"\n")


@contextmanager
def named_write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError while `path` is written into a UserError with the file and the free space."""
    try:
        yield
    except OSError as error:
        folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free / 2**20
        raise UserError(
            f"{path}: cannot be written ({error.strerror}; {free:,.0f} MiB free on its disk); make "
            "room, then the same command goes on from here"
        ) from None


def open_records(path: str | os.PathLike, resume: bool) -> TextIO:
    """Open `path` to append records to it, after those finished earlier if `resume`, else to an
    empty file.
    """
    path = Path(path)
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume:
            repair_jsonl(path)
        return open(path, "a" if resume else "w", encoding="utf-8")


def rewrite_records(path: str | os.PathLike, records: Iterable[dict[str, Any]]) -> None:
    """Replace `path` atomically by these records, one a line."""
    with _replacing(Path(path)) as file:
        for record in records:
            file.write(_line(record))


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Yield a file that replaces `path` once it is whole and on the disk; else it is removed."""
    partial = path.with_name(path.name + ".partial")
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def append_record(file: TextIO, record: dict[str, Any]) -> None:
    """Write one record as one line and flush it, so that a crash loses at most the record being
    written.
    """
    with named_write_errors(file.name):
        file.write(_line(record))
        file.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read one JSON object; UserError names the file if it is anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except BROKEN_JSON as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_list(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a JSON list of objects; UserError names the file and what it holds instead."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except BROKEN_JSON as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list, found {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, record {number}: expected a JSON object, found {type(value).__name__}"
            )
    return values


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Replace `path` atomically: a reader sees the old file or the new one, never a part."""
    with _replacing(Path(path)) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
