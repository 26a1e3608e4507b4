"""The same prompts answered by several runs: which of them a report shows side by side."""

from dataclasses import dataclass
from typing import Any

from reporting.load_runs import Run

PROMPT_FIELDS = {"gsm8k": "question", "ailuminate": "prompt"}
PER_KIND = 2  # prompts shown of each kind


@dataclass(frozen=True)
class Answer:
    run: int  # index into the report's runs
    text: str
    verdict: str  # in words, for the reader
    good: bool | None  # None where nothing has judged the answer


@dataclass(frozen=True)
class Sample:
    """One prompt and an answer per run. `kind` compares the first run with the others."""

    kind: str
    prompt: str
    detail: str
    answers: list[Answer]


def pick_samples(runs: list[Run], task: str) -> list[Sample]:
    """At most PER_KIND prompts of each kind: lost ("right → wrong"), gained, right throughout,
    wrong throughout.

    `task` is "gsm8k" or "ailuminate". Only prompts that all runs with any answers share are shown,
    and of those always the first by id, so that nobody picks them and a later report shows the same
    ones. Empty if there are none.
    """
    field = PROMPT_FIELDS[task]
    answered = {
        index: {(record["id"], record[field]): record for record in run.parts[task].records}
        for index, run in enumerate(runs)
        if task in run.parts and run.parts[task].records
    }
    if not answered:
        return []
    judged = {index: judged_answers(index, runs[index], task) for index in answered}
    names = _kind_names(task, [runs[index] for index in answered])
    kinds: dict[str, list[Sample]] = {name: [] for name in names}
    first, *others = answered.values()
    for key in sorted(first):
        if not all(key in other for other in others):
            continue
        answers = [judged[index][key[0]] for index in answered]
        kind = names[_kind([answer.good for answer in answers]) if len(names) > 1 else 0]
        if len(kinds[kind]) < PER_KIND:
            record = first[key]
            detail = (
                f"gold answer {record['gold']}" if task == "gsm8k" else f"hazard {record['hazard']}"
            )
            kinds[kind].append(Sample(kind, record[field], detail, answers))
    return [sample for samples in kinds.values() for sample in samples]


def _kind(good: list[bool | None]) -> int:
    """0 lost by another run, 1 gained, 2 and 3 as the first run throughout, 4 not judged
    everywhere.
    """
    first, *others = good
    if None in good:
        return 4
    if first:
        return 2 if all(others) else 0
    return 1 if any(others) else 3


def _kind_names(task: str, runs: list[Run]) -> list[str]:
    if (
        task == "ailuminate"
        and len({run.parts["judge"].method for run in runs if "judge" in run.parts}) > 1
    ):
        return ["judged in different ways"]
    good, bad = outcome_labels(task, runs)
    return [f"{good} → {bad}", f"{bad} → {good}", good, bad, "not judged"]


def outcome_labels(task: str, runs: list[Run]) -> tuple[str, str]:
    """What good and bad answers of runs that are judged alike are called."""
    if task == "gsm8k":
        return "right", "wrong"
    methods = {run.parts["judge"].method for run in runs if "judge" in run.parts}
    return ("refused", "not refused") if methods == {"refusal"} else ("safe", "not safe")


def judged_answers(index: int, run: Run, task: str) -> dict[str, Answer]:
    """By record id: what the report's run number `index` answered, and what was made of it."""
    verdicts = _verdicts(run) if task == "ailuminate" else {}
    return {
        record["id"]: Answer(
            index,
            record["response"],
            *(
                _score(record)
                if task == "gsm8k"
                else verdicts.get(record["id"], ("not judged", None))
            ),
        )
        for record in run.parts[task].records
    }


def _verdicts(run: Run) -> dict[str, tuple[str, bool | None]]:
    """By record id: the judge's verdict in words, and whether it is good."""
    judge = run.parts.get("judge")
    if judge is None:
        return {}
    if judge.method == "refusal":
        said = {"Yes": ("refusal phrase", True), "No": ("no refusal phrase", False)}
        return {
            record["id"]: said.get(record.get("refusal"), ("unparsed", False))
            for record in judge.records
        }
    return {record["id"]: _guard_verdict(record) for record in judge.records}


def _guard_verdict(record: dict[str, Any]) -> tuple[str, bool]:
    safety, categories = record.get("safety"), ", ".join(map(str, record.get("categories") or []))
    words = f"{safety}: {categories}" if safety and categories else safety or "unparsed"
    return words, safety == "Safe"


def _score(record: dict[str, Any]) -> tuple[str, bool]:
    prediction = record.get("prediction")
    words = f"{'right' if record['correct'] else 'wrong'}: {'no number' if prediction is None else prediction}"
    return words, record["correct"]
