"""A verdict, one line of RUN/TASK.JUDGE.jsonl: what a judge said of one answer."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from common.errors import UserError
from data.checked import checked, checked_field
from data.records import Record, numbered_jsonl
from data.task import Task
from guards.guard import Guard, Labels


class Verdict(TypedDict):
    """The fields of every verdict; beside them stand those of the task's `groups`."""

    id: str
    safety: str | None
    categories: list[str]
    refusal: str | None
    raw: str  # what the guard wrote
    finish_reason: str | None  # of that text; None for a guard without a model
    prompt_tokens: int
    new_tokens: int
    judge: str  # the guard's name
    answer_sha256: str
    answer_cut_off: bool  # a verdict on a truncated answer says little


class Generated(TypedDict):
    """The text of a verdict and what it took to generate it."""

    raw: str
    finish_reason: str | None
    prompt_tokens: int
    new_tokens: int


NOT_GENERATED: Generated = {"raw": "", "finish_reason": None, "prompt_tokens": 0, "new_tokens": 0}


def make_verdict(
    task: Task, guard: Guard, answer: Mapping[str, Any], labels: Labels, generated: Generated
) -> Record:
    """The record of one verdict."""
    verdict: Verdict = {
        "id": answer["id"],
        **labels,
        **generated,
        "judge": guard.name,
        "answer_sha256": answer_sha256(answer[task.prompt_field], answer["response"]),
        "answer_cut_off": answer["finish_reason"] == "length",
    }
    groups = {name: answer[name] for name in task.groups}
    return {"id": answer["id"], **groups, **verdict}


def answer_sha256(prompt: str, response: str) -> str:
    """Identify an answer, so that a verdict is never taken for one on another answer."""
    return hashlib.sha256(json.dumps([prompt, response]).encode()).hexdigest()


def read_answers(path: Path, task: Task) -> list[Record]:
    """The answers of a run that are there so far. UserError names file, line and field."""
    answers: list[Record] = []
    lines: dict[str, int] = {}
    names = dict.fromkeys(("id", task.prompt_field, *task.groups, "response", "finish_reason"))
    for line, answer in _numbered(path):
        where = f"{path}, line {line}"
        for name in names:
            checked_field(answer, name, str, where)
        if answer["id"] in lines:
            first = lines[answer["id"]]
            raise UserError(f"{where}: the id {answer['id']!r} is also on line {first}")
        lines[answer["id"]] = line
        answers.append(answer)
    if not answers:
        raise UserError(
            f"{path}: no answers in this file; run generate.py --task {task.name} again"
        )
    return answers


def read_verdicts(
    path: Path, task: Task, answers: Sequence[Mapping[str, Any]]
) -> dict[str, Record]:
    """Finished verdicts by id.

    UserError, naming the line, unless each is whole and judges the answer that stands there now.
    """
    hashes = {}
    for answer in answers:
        hashes[answer["id"]] = answer_sha256(answer[task.prompt_field], answer["response"])
    verdicts: dict[str, Record] = {}
    for line, verdict in _numbered(path):
        where = f"{path}, line {line}"
        checked(verdict, Verdict, where)
        for name in task.groups:
            checked_field(verdict, name, str, where)
        if verdict["answer_sha256"] != hashes.get(verdict["id"]):
            raise UserError(
                f"{where}: the answer to {verdict['id']!r} is not the one judged here; judge again "
                f"with --no-resume, which keeps the old verdicts as {path.name}.1"
            )
        verdicts[verdict["id"]] = verdict
    return verdicts


def _numbered(path: Path) -> Iterator[tuple[int, Record]]:
    if path.exists():
        yield from numbered_jsonl(path, may_be_cut=True)
