"""AILuminate 1.0 (MLCommons, https://github.com/mlcommons/ailuminate): prompts written to elicit
hazardous answers.

A CSV file with the columns release_prompt_id, prompt_text, hazard, persona, locale, prompt_hash.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.prompts import Message
from data.sources import AILUMINATE, dataset_file

DEMO_CSV = Path(__file__).with_name("demo") / "prompts.csv"
UNKNOWN = "unknown"


def load_ailuminate(source: str | Path) -> list[dict[str, Any]]:
    """Load "ailuminate" (the official demo prompts), "demo" (the embedded ones) or a CSV file with
    the same columns.

    Returns records with the strings `id`, `prompt`, `hazard`, `persona` and `locale`. Only the
    column `prompt_text` is required: without the others, records are numbered after the file and
    the rest is "unknown". UserError, naming file and line, for a file that is missing, empty or no
    CSV, an empty prompt, or an id that occurs twice.
    """
    path = _locate(source)
    records, lines = [], {}
    for line, row in _rows(path):
        record = {
            "id": row.get("release_prompt_id") or f"{path.stem}-{len(records)}",
            "prompt": row["prompt_text"],
            "hazard": row.get("hazard") or UNKNOWN,
            "persona": row.get("persona") or UNKNOWN,
            "locale": row.get("locale") or UNKNOWN,
        }
        if not record["prompt"].strip():
            raise UserError(f"{path}, line {line}: 'prompt_text' is empty")
        if record["id"] in lines:
            raise UserError(
                f"{path}, line {line}: the id {record['id']!r} is also on line {lines[record['id']]}"
            )
        lines[record["id"]] = line
        records.append(record)
    if not records:
        raise UserError(f"{path}: no prompts in this file")
    return records


def stratified_sample(records: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """Take `limit` records, each hazard and persona in its proportion; all of them if `limit` is
    None or larger.

    The official file is sorted by hazard, so its first 100 prompts are all of one kind. Every n-th
    record of the sorted list is a stratified sample instead, whose safe rate estimates that of the
    whole file. It needs no seed and keeps the file's order.
    """
    if limit is None or limit >= len(records):
        return list(records)
    if limit < 1:
        raise UserError(f"limit is {limit}: take at least 1 of the {len(records)} prompts")
    by_kind = sorted(
        range(len(records)), key=lambda i: (records[i]["hazard"], records[i]["persona"])
    )
    middles = ((2 * i + 1) * len(records) // (2 * limit) for i in range(limit))
    return [records[i] for i in sorted(by_kind[middle] for middle in middles)]


def _locate(source: str | Path) -> Path:
    if source == "ailuminate":
        return dataset_file(AILUMINATE)
    if source == "demo":
        return DEMO_CSV
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the data is 'ailuminate', 'demo' or a CSV file in AILuminate's format"
        )
    return path


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with the number of the line it ends on."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = reader.fieldnames or []
            if "prompt_text" not in columns:
                raise UserError(
                    f"{path}: no column 'prompt_text'; the columns are {', '.join(columns) or 'none'}"
                )
            for row in reader:
                if (
                    None in row or None in row.values()
                ):  # how DictReader marks a row too long or too short
                    raise UserError(
                        f"{path}, line {reader.line_num}: the row does not have {len(columns)} columns"
                    )
                yield reader.line_num, row
        except csv.Error as error:  # DictReader's own line_num stands at the last good row
            raise UserError(
                f"{path}, line {reader.reader.line_num}: not valid CSV ({error})"
            ) from None
        except (
            UnicodeDecodeError
        ) as error:  # the file is decoded in blocks, so the line is not known
            raise UserError(f"{path}: not UTF-8 text ({error})") from None


def ailuminate_messages(prompt: str) -> list[Message]:
    """The prompt as it is, in a single user turn."""
    return [{"role": "user", "content": prompt}]
