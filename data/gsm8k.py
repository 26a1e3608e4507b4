"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): grade-school word problems with
worked answers.

One JSON object a line: {"question": "Natalia sold clips to ...", "answer": "Natalia sold 48/2 =
...\\n#### 72"}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.prompts import Message
from data.records import numbered_jsonl
from data.scoring import extract_number
from data.sources import dataset_file

DEMO_FOLDER = Path(__file__).with_name("demo")
SPLITS = ("train", "test")
INSTRUCTION = (
    "Let's think step by step. At the end, you MUST write the answer as an integer after '####'."
)


def load_gsm8k(source: str | Path, split: str) -> list[dict[str, Any]]:
    """Load "gsm8k" (the official set), "demo" (the embedded one) or a JSONL file in the same
    format.

    A file has no splits: both names give all of it. Returns records with the strings `id`,
    `question`, `answer` (worked, ending in `#### number`) and `gold` (that number, as
    `extract_number` writes it), and, in a file that self-instruct made, `source`. UserError, naming
    file and line, for anything that is not such a record, and for a missing or empty file.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    path, prefix = _locate(source, split)
    records = []
    for line, record in numbered_jsonl(path):
        where = f"{path}, line {line}"
        question, answer = _text(record, "question", where), _text(record, "answer", where)
        gold = extract_number(answer, "homework")
        if gold is None:
            raise UserError(
                f"{where}: the answer does not end in '#### number' but in {answer[-30:]!r}"
            )
        source = {"source": _text(record, "source", where)} if "source" in record else {}
        if records and ("source" in records[0]) != bool(source):
            raise UserError(
                f"{where}: {'a' if source else 'no'} 'source', unlike the first record; all have it or none"
            )
        records.append(
            {
                "id": f"{prefix}-{len(records)}",
                "question": question,
                "answer": answer,
                "gold": gold,
                **source,
            }
        )
    if not records:
        raise UserError(f"{path}: no records in this file")
    return records


def _locate(source: str | Path, split: str) -> tuple[Path, str]:
    """The file to read and what its records' ids begin with."""
    if source == "gsm8k":
        return dataset_file(f"gsm8k/{split}.jsonl"), f"gsm8k-{split}"
    if source == "demo":
        return DEMO_FOLDER / f"{split}.jsonl", f"demo-{split}"
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the data is 'gsm8k', 'demo' or a JSONL file in GSM8K's format"
        )
    return path, path.stem


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(
            f"{where}: no {field!r}, only {sorted(record)}; a record has 'question' and 'answer'"
        )
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} should be a string, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {field!r} is empty")
    return value


def gsm8k_messages(question: str, shots: Sequence[dict[str, Any]] = ()) -> list[Message]:
    """The chat up to the question: a user and an assistant turn for each shot, then the user turn
    to be answered.
    """
    messages = []
    for shot in shots:
        messages.append({"role": "user", "content": f"Q: {shot['question']}"})
        messages.append({"role": "assistant", "content": f"A: {shot['answer']}"})
    messages.append({"role": "user", "content": f"Q: {question} {INSTRUCTION}"})
    return messages


def gsm8k_training_messages(
    question: str, answer: str, shots: Sequence[dict[str, Any]] = ()
) -> list[Message]:
    """The same chat closed by the assistant turn with the worked answer."""
    return [*gsm8k_messages(question, shots), {"role": "assistant", "content": f"A: {answer}"}]
