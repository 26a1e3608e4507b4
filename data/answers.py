"""Answer records, RUN/gsm8k.jsonl, ailuminate.jsonl and self-instruct.jsonl: made, read back,
summed up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.gsm8k import GSM8K
from data.intervals import rate
from data.records import numbered_jsonl, repair_jsonl
from data.scoring import extract_number

Record = dict[str, Any]

PROMPT_FIELDS = {"gsm8k": "question", "ailuminate": "prompt", "self-instruct": "question"}
ANSWER_FIELDS = ("id", "response", "token_ids", "finish_reason", "prompt_tokens")


def score_answer(task: str, asked: Record, answer: Record) -> Record:
    """The record of one answer: what was asked, then `response`, `token_ids`, `finish_reason`,
    `prompt_tokens`.

    A GSM8K record also says which number was found (`number`), the gold one, and whether they are
    equal.
    """
    if task == "ailuminate":
        return {**asked, **answer}
    prediction, gold = extract_number(answer["response"], "number"), asked["gold"]
    scored = {"prediction": prediction, "gold": gold, "correct": prediction == gold}
    return {"id": asked["id"], "question": asked["question"], **answer, **scored}


def read_answers(path: Path, task: str, asked: Sequence[Record]) -> dict[str, Record]:
    """Finished answers by id. UserError unless each is whole and to the question that `asked` holds
    under its id now.

    A half-written last line is cut off the file.
    """
    questions = {record["id"]: record for record in asked}
    prompt = PROMPT_FIELDS[task]
    repair_jsonl(path)
    answers = {}
    for line, record in numbered_jsonl(path) if path.exists() else ():
        missing = [name for name in (*ANSWER_FIELDS, prompt) if name not in record]
        if missing:
            raise UserError(f"{path}, line {line}: no {missing[0]!r}; start again with --no-resume")
        question = questions.get(record["id"], record)
        if any(record.get(name) != question.get(name) for name in (prompt, "gold")):
            raise UserError(
                f"{path}, line {line}: {record['id']} was another question then; choose another --run, "
                "or start again with --no-resume"
            )
        answers[record["id"]] = record
    return answers


def summarise_answers(task: str, answers: Sequence[Record]) -> Record:
    """The result part of a summary: their number, accuracy where there is one, and how many were
    cut off.
    """
    if task == "gsm8k":
        return GSM8K().summarise(answers)
    if task == "self-instruct":
        return {
            "attempts": len(answers),
            "right": rate(sum(answer["correct"] for answer in answers), len(answers)),
        }
    cut_off = sum(answer["finish_reason"] == "length" for answer in answers)
    return {"prompts": len(answers), "cut_off": rate(cut_off, len(answers))}
