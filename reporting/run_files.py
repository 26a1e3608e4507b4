"""The files of a run, read and checked: what training, answering or judging left behind.

A summary or record that is not what it should be is refused with its file and field, so that no
number in a report is a guess. Nothing is ever written to a run folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from sys import intern
from typing import Any, TypedDict

from common.errors import UserError
from data.checked import checked, checked_field
from data.records import numbered_jsonl, read_json
from data.task import Measure, Task
from reporting.rates import Rate, RatePath, find_rates, read_rate
from reporting.run_parts import (
    CUT_OFF,
    Answer,
    Answers,
    GroupRates,
    Judgement,
    Training,
    Verdict,
    VerdictFields,
)

Values = dict[str, Any]  # a JSON object that has not been checked yet


class OptionalSummaryFields(TypedDict, total=False):
    environment: dict[str, Any] | None
    planned: int | None
    seconds: float | None
    peak_memory_bytes: float | None
    new_tokens_per_second: float | None


class SummaryFields(OptionalSummaryFields):
    """Fields of every summary in a run."""

    task: str
    finished: bool
    settings: dict[str, Any]


def read_training(folder: Path) -> Training | None:
    """The training that `folder` holds, if any."""
    path = folder / "train.summary.json"
    if not path.is_file():
        return None
    summary, common = read_summary(path, "train", "train")
    losses: dict[int, float] = {}
    validation: dict[int, float] = {}
    last_step = 0
    for values, where in _records(folder / "train.jsonl", common["finished"]):
        step = checked_field(values, "step", int, where)
        last_step = max(last_step, step)
        for name, series in (("loss", losses), ("validation_loss", validation)):
            loss = _optional(values, name, float, where)
            if loss is not None:
                series[step] = loss  # the last one where a resumed training took a step again
    if not common["finished"]:
        total = common["settings"].get("steps")
        planned = total if type(total) is int else None
        return Training(
            done=last_step, total=planned, losses=losses, validation_losses=validation, **common
        )
    where = str(path)
    return Training(
        done=last_step,
        total=checked_field(summary, "steps", int, where),
        losses=losses,
        validation_losses=validation,
        examples=_optional(summary, "examples", int, where),
        first_loss=_optional(summary, "first_loss", float, where),
        last_loss=_optional(summary, "last_loss", float, where),
        best_validation_loss=_optional(summary, "best_validation_loss", float, where),
        tokens_per_second=_optional(summary, "tokens_per_second", float, where),
        adapter_fingerprint=_optional(summary, "adapter_fingerprint", str, where),
        best_adapter_fingerprint=_optional(summary, "best_adapter_fingerprint", str, where),
        **common,
    )


def read_answers(folder: Path, task: Task) -> Answers | None:
    """The answers to `task` that `folder` holds, if any."""
    path = folder / f"{task.name}.summary.json"
    if not path.is_file():
        return None
    summary, common = read_summary(path, task.name, task.name)
    records = []
    lines: dict[str, int] = {}
    for values, where in _records(folder / f"{task.name}.jsonl", common["finished"]):
        answer = _read_answer(values, task, where)
        _refuse_second(answer.id, lines, where)
        records.append(answer)
    adapter_path = _optional(summary, "adapter_path", str, str(path))
    if not common["finished"]:
        return Answers(
            task=task,
            done=len(records),
            total=_optional(summary, "planned", int, str(path)),
            records=records,
            adapter_path=adapter_path,
            **common,
        )
    return Answers(
        task=task,
        done=len(records),
        total=checked_field(summary, task.unit, int, str(path)),
        records=records,
        rates=_read_rates(summary, task, str(path)),
        adapter_path=adapter_path,
        **common,
    )


def _read_answer(values: Values, task: Task, where: str) -> Answer:
    fields = dict.fromkeys(("id", task.prompt_field, "response", *task.fields, *task.groups), str)
    for name, kind in {**fields, **task.score_fields}.items():
        checked_field(values, name, kind, where)
    finish_reason = _optional(values, "finish_reason", str, where)
    return Answer(
        id=values["id"],
        prompt=values[task.prompt_field],
        response=values["response"],
        cut_off=finish_reason == "length",
        detail=task.detail(values),
        groups={name: intern(values[name]) for name in task.groups},
        outcomes=_outcomes(values, task, where, judged=False),
        gold=_optional(values, "gold", str, where),
        prediction=_optional(values, "prediction", str, where),
    )


def read_judgements(folder: Path, task: Task) -> list[Judgement]:
    """The verdicts on the answers to `task` that `folder` holds, by the judges' names."""
    ending = ".summary.json"
    judgements = []
    for path in sorted(folder.glob(f"{task.name}.*{ending}")):
        judge = path.name[len(task.name) + 1 : -len(ending)]
        judgements.append(_read_judgement(path, task, judge))
    return judgements


def _read_judgement(path: Path, task: Task, judge: str) -> Judgement:
    where = str(path)
    name = f"{task.name}.{judge}"
    summary, common = read_summary(path, name, task.name)
    named = checked_field(summary, "judge", str, where)
    if named != judge:
        raise UserError(f"{where}: field 'judge' must be {judge!r}, found {named!r:.80}")
    records = []
    lines: dict[str, int] = {}
    for values, line in _records(path.with_name(f"{name}.jsonl"), common["finished"]):
        verdict = _read_verdict(values, task, line)
        _refuse_second(verdict.fields["id"], lines, line)
        records.append(verdict)
    if not common["finished"]:
        total = _optional(summary, "planned", int, where)
        return Judgement(
            task=task, judge=judge, done=len(records), total=total, records=records, **common
        )
    groups = {}
    for group in task.groups:
        values = checked_field(summary, f"by_{group}", dict[str, dict[str, Any]], where)
        groups[group] = _read_groups(values, task, f"{where}: in 'by_{group}'")
    by_answer = _optional(summary, "by_answer", dict[str, dict[str, Any]], where) or {}
    return Judgement(
        task=task,
        judge=judge,
        done=len(records),
        total=checked_field(summary, "answers", int, where),
        records=records,
        rates=_read_rates(summary, task, where),
        groups=groups,
        by_answer=_read_groups(by_answer, task, f"{where}: in 'by_answer'"),
        note=_optional(summary, "note", str, where) or "",
        **common,
    )


def _read_verdict(values: Values, task: Task, where: str) -> Verdict:
    fields = checked(values, VerdictFields, where)
    for name in task.groups:
        checked_field(values, name, str, where)
    return Verdict(fields, _outcomes(values, task, where, judged=True))


def _outcomes(values: Values, task: Task, where: str, judged: bool) -> tuple[bool | None, ...]:
    """Outcomes of an answer, or of a verdict if `judged`, by the task's measures."""
    outcomes = []
    for measure in task.measures:
        applies = (measure.needs != "answer") == judged
        outcomes.append(_outcome(measure, values, where) if applies else None)
    return tuple(outcomes)


def _outcome(measure: Measure, values: Values, where: str) -> bool | None:
    try:
        return measure.counts(values)
    except KeyError as error:
        raise UserError(
            f"{where}: field {error} is missing, on which {measure.title} depends"
        ) from None


def _read_groups(values: dict[str, Values], task: Task, where: str) -> GroupRates:
    groups: GroupRates = {}
    for value, rates in values.items():
        groups[value] = _read_rates(rates, task, f"{where}: in {value!r:.80}")
    return groups


def _read_rates(summary: Values, task: Task, where: str) -> dict[RatePath, Rate]:
    """The rates of the task's measures first, then every other one there is."""
    rates: dict[RatePath, Rate] = {}
    for path in (*(measure.path for measure in task.measures), CUT_OFF):
        rate = read_rate(summary, path, where)
        if rate is not None:
            rates[path] = rate
    return {**rates, **find_rates(summary, where)}


def read_summary(path: Path, name: str, task: str) -> tuple[Values, Values]:
    """A summary, and what `Part` keeps of every one, by name."""
    summary = read_json(path)
    fields = checked(summary, SummaryFields, str(path))
    if fields["task"] != task:
        raise UserError(f"{path}: field 'task' must be {task!r}, found {fields['task']!r:.80}")
    common: Values = {
        "name": name,
        "finished": fields["finished"],
        "settings": fields["settings"],
        "environment": fields.get("environment") or {},
    }
    if fields["finished"]:
        for key in ("seconds", "peak_memory_bytes", "new_tokens_per_second"):
            common[key] = summary.get(key)
    return summary, common


def _records(path: Path, finished: bool) -> Iterator[tuple[Values, str]]:
    """Each record with its place; not the last of an unfinished part if it is being written."""
    if not path.is_file():
        return
    for line, values in numbered_jsonl(path, may_be_cut=not finished):
        yield values, f"{path}, line {line}"


def _refuse_second(name: str, lines: dict[str, int], where: str) -> None:
    """UserError for an id that a line before this one has: one of the two results is wrong."""
    line = int(where.rpartition(" ")[2])
    if name in lines:
        raise UserError(f"{where}: the id {name!r:.80} is also on line {lines[name]}")
    lines[name] = line


def _optional(values: Mapping[str, Any], name: str, kind: Any, where: str) -> Any:
    """The value, or None where there is none."""
    if values.get(name) is None:
        return None
    return checked_field(values, name, kind, where)
