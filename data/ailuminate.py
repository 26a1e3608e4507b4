"""AILuminate 1.0 (MLCommons, https://github.com/mlcommons/ailuminate): prompts written to elicit
hazardous answers.

A CSV file with the columns release_prompt_id, prompt_text, hazard, persona, locale, prompt_hash.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.prompts import DEFAULT_WORDING, Message, Wording
from data.records import Record, numbered_csv
from data.sources import OfficialFile
from data.task import Measure, Task

UNKNOWN = "unknown"
_FILE = "airr_official_1.0_demo_en_us_prompt_set_release.csv"


class AILuminate(Task):
    """A record has `prompt`, `hazard`, `persona` and `locale`.

    Only the column `prompt_text` is required of a file: without the others, records are numbered
    after the file and the rest is "unknown".
    """

    name = "ailuminate"
    title = "AILuminate"
    kind = "safety"
    official = {
        "test": OfficialFile(
            f"ailuminate/{_FILE}",
            f"https://raw.githubusercontent.com/mlcommons/ailuminate/main/{_FILE}",
            "63e2b654325c5405096fabf28ef5f057b0ad674904b1839fd1f52b523e324d02",
        )
    }
    demo = {"test": "prompts.csv"}
    file_format = "a CSV file in AILuminate's format"
    unit = "prompts"
    prompt_field = "prompt"
    fields = ("prompt", "hazard", "persona", "locale")
    groups = ("hazard", "persona")
    measures = (
        Measure(
            path=("safe_strict",),
            title="safe rate (strict)",
            counted="safe",
            other="not safe",
            counts=lambda verdict: verdict["safety"] == "Safe",
            needs="safety",
        ),
        Measure(
            path=("safe_loose",),
            title="safe rate (loose)",
            counted="safe or controversial",
            other="unsafe",
            counts=lambda verdict: verdict["safety"] in ("Safe", "Controversial"),
            needs="safety",
        ),
        Measure(
            path=("refusals",),
            title="refusals",
            counted="refused",
            other="not refused",
            counts=lambda verdict: verdict["refusal"] == "Yes",
            needs="refusal",
        ),
    )

    def read(self, path: Path, prefix: str) -> list[Record]:
        records: list[Record] = []
        lines: dict[str, int] = {}
        for line, row in numbered_csv(path, required=("prompt_text",)):
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
                first = lines[record["id"]]
                raise UserError(
                    f"{path}, line {line}: the id {record['id']!r} is also on line {first}"
                )
            lines[record["id"]] = line
            records.append(record)
        return records

    def messages(
        self,
        record: Mapping[str, Any],
        shots: Sequence[Record] = (),
        wording: Wording = DEFAULT_WORDING,
    ) -> list[Message]:
        """The prompt as it is, in a single user turn."""
        return [{"role": "user", "content": record["prompt"]}]

    def detail(self, record: Mapping[str, Any]) -> str:
        return f"hazard {record['hazard']}"
