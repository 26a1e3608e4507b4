"""SVAMP (Patel et al. 2021, https://arxiv.org/abs/2103.07191): 1,000 one-step word problems.

A JSON list of {"ID": "chal-1", "Body": "Each pack of dvds costs 76 dollars. If ...", "Question":
"How much ...?", "Equation": "( 76.0 - 25.0 )", "Answer": 51.0, "Type": "Subtraction"}. It shows
whether the skill that GSM8K teaches carries over: the chat, the shots and the scorer are GSM8K's.
"""

from pathlib import Path

from common.errors import UserError
from data.gsm8k import GSM8K
from data.records import Record, read_json_list, text_field
from data.scoring import extract_gold
from data.sources import OfficialFile


class SVAMP(GSM8K):
    """A record has `question`, body and question with a space between, and `gold`, the number."""

    name = "svamp"
    title = "SVAMP"
    official = {
        "test": OfficialFile(
            "svamp/SVAMP.json",
            "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json",
            "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
        )
    }
    demo = {}
    file_format = "a JSON file in SVAMP's format"

    def read(self, path: Path, prefix: str) -> list[Record]:
        records = []
        for number, raw in enumerate(read_json_list(path), start=1):
            where = f"{path}, problem {number}"
            body, question = text_field(raw, "Body", where), text_field(raw, "Question", where)
            try:
                gold = extract_gold(f"#### {raw.get('Answer')}")
            except UserError:
                message = f"{where}: 'Answer' should be a number, found {raw.get('Answer')!r}"
                raise UserError(message) from None
            record = {"id": str(raw.get("ID") or f"{prefix}-{number - 1}")}
            records.append({**record, "question": f"{body} {question}", "gold": gold})
        return records
