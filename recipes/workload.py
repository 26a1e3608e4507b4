"""The work that is left to do, and the time it takes at the speed of the runs that are finished."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.records import read_json
from data.registry import TASKS
from data.self_instruct import SelfInstruct
from recipes.overlap import TRAINING_TASK
from recipes.own_options import SELF_INSTRUCT
from recipes.steps import TRAIN, Step, Work

MAX_HOURS_IN_MINUTES = 2  # up to so many hours a time is told in minutes


def count_records(work: Work, data: str) -> int:
    """The training examples seen, or the prompts answered, by a step."""
    if work.count is not None:
        return work.count
    records = work.limit or _size(work.kind, data)
    return round(work.passes * min(records, _size(work.kind, data)))


@cache
def _size(kind: str, data: str) -> int:
    """The number of records in the set that a kind of work goes through."""
    if kind in (TRAIN, SELF_INSTRUCT):
        return len(TASKS[TRAINING_TASK].load(data, "train"))
    return len(TASKS[kind].load(data, "test"))


def work_left(steps: Iterable[Step], data: str) -> Counter[str]:
    """The records of all steps that are not finished, by kind of work."""
    left: Counter[str] = Counter()
    for step in steps:
        if step.work is not None and not step.is_finished():
            left[step.work.kind] += count_records(step.work, data)
    return left


def seconds_per_record(folder: Path) -> dict[str, float]:
    """The seconds that a record took in the finished runs below `folder`, by kind of work."""
    seconds: dict[str, float] = {}
    records: dict[str, int] = {}
    for path in sorted(folder.glob("**/*.summary.json")):
        kind = path.name.removesuffix(".summary.json")
        if kind not in (TRAIN, SELF_INSTRUCT, *TASKS):
            continue
        summary = read_json(path)
        done = _records_of(kind, summary)
        spent = summary.get("seconds")
        if summary.get("finished") and done and isinstance(spent, int | float):
            seconds[kind] = seconds.get(kind, 0) + spent
            records[kind] = records.get(kind, 0) + done
    return {kind: seconds[kind] / records[kind] for kind in records}


def _records_of(kind: str, summary: Mapping[str, Any]) -> int:
    """The records that a summary's seconds went into; 0 if it does not tell."""
    if kind != TRAIN:
        unit = SelfInstruct.unit if kind == SELF_INSTRUCT else TASKS[kind].unit
        answered = summary.get(unit)
        return answered if isinstance(answered, int) else 0
    rate, spent = summary.get("examples_per_second"), summary.get("seconds")
    if not isinstance(rate, int | float) or not isinstance(spent, int | float):
        return 0
    return round(rate * spent)


def describe_work(steps: Iterable[Step], data: str, folder: Path) -> str:
    """The remaining work in a line or two; empty if there is none, or the data are missing."""
    try:
        left = work_left(steps, data)
    except UserError:  # the step that needs the data says what is wrong with them
        return ""
    if not left:
        return ""
    answers = sum(count for kind, count in left.items() if kind != TRAIN)
    text = f"To do: {left[TRAIN]:,} training examples, {answers:,} answers"
    speeds = seconds_per_record(folder)
    if not speeds.keys() & left.keys():
        return f"{text}; how long that takes is told once a first run in {folder} is finished"
    seconds = sum(count * speeds.get(kind, 0) for kind, count in left.items())
    unknown = sorted(left.keys() - speeds.keys())
    without = f", without {', '.join(unknown)}" if unknown else ""
    return (
        f"{text}: about {_duration(seconds)} at the speed of the runs in {folder}, judging not "
        f"counted{without}"
    )


def _duration(seconds: float) -> str:
    if seconds < MAX_HOURS_IN_MINUTES * 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"
