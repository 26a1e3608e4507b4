"""The details of a report, a row a run: each task and its judges, training, time and memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from data.registry import TASKS
from data.task import Task
from reporting.descriptions import describe_adapter, describe_model, describe_shots
from reporting.load_runs import Run
from reporting.rates import Rate, RatePath
from reporting.run_parts import CUT_OFF, Answers, Judgement, Part, Training
from reporting.scores import headline_scores, judge_title, judges_of, task_scores
from reporting.setting_differences import plain_value
from reporting.tables import (
    EMPTY,
    Table,
    duration,
    make_table,
    number,
    percent,
    percent_interval,
)
from reporting.votes import votes_table

P = TypeVar("P", bound=Part)
ANSWERS_CUT_OFF: RatePath = ("answers_cut_off",)  # the answers' own table says it
# How the names of settings end that identify the program or the weights.
PROVENANCE = ("unforget", "version", "commit", "fingerprint")
# What a summary calls a rate that is no measure of its task, where its own words would not do.
RATE_TITLES: dict[RatePath, str] = {("has_marker",): "has ####"}


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """Every table of details; those that no run has anything for are left out."""
    tables: list[Table | None] = []
    for task in TASKS.values():
        tables.append(_answers_table(runs, task))
        for judge in judges_of(runs, task):
            tables += [_judge_table(runs, task, judge), _cut_off_table(runs, task, judge)]
    tables.append(votes_table(runs))
    tables += [_training_table(runs), _costs_table(runs), _provenance_table(runs)]
    return [table for table in tables if table]


def _answers_table(runs: Sequence[Run], task: Task) -> Table | None:
    """Everything about the answers to a task but its main score."""
    answered = {i: run.answers[task.name] for i, run in enumerate(runs) if task.name in run.answers}
    main = task.measures[0].path
    paths = [path for path in _rate_paths(list(answered.values())) if path != main]
    header = ["run", "model", "adapter", "shots", *(rate_title(task, path) for path in paths)]
    rows = []
    for index, part in answered.items():
        about = [describe_model(part), describe_adapter(part), describe_shots(part)]
        rates = [rate_cell(part, path, percent) for path in paths]
        rows.append((index, [runs[index].name, *about, *rates]))
    return make_table(f"{task.title} in detail", header, rows)


def _judge_table(runs: Sequence[Run], task: Task, judge: str) -> Table | None:
    """Everything that a judge says of the answers to a task, but what is a main score already."""
    judged = {i: run.judgement(task.name, judge) for i, run in enumerate(runs)}
    parts = {index: part for index, part in judged.items() if part}
    measures = [measure.path for measure in task.measures]
    said = _rate_paths(list(parts.values()))
    main = [s.measure.path for s in headline_scores(runs) if (s.task, s.judge) == (task, judge)]
    paths = [path for path in said if path not in (*main, ANSWERS_CUT_OFF)]
    if not any(_is_worth_a_table(part, paths, measures) for part in parts.values()):
        return None
    rows = []
    for index, part in parts.items():
        cells = [runs[index].name]
        for path in paths:
            show = percent_interval if path in measures else percent
            cells.append(rate_cell(part, path, show))
        rows.append((index, cells))
    titles = ["verdicts cut off" if path == CUT_OFF else rate_title(task, path) for path in paths]
    title = f"{task.title} judged by {judge_title(judge)}, in detail"
    return make_table(title, ["run", *titles], rows)


def _is_worth_a_table(
    part: Judgement, paths: Sequence[RatePath], measures: Sequence[RatePath]
) -> bool:
    """True if there is another measure, or a verdict that could not be read or was cut off."""
    for path in paths:
        rate = part.rates.get(path)
        if path in measures or (rate and rate.count):
            return True
    return False


def _rate_paths(parts: Sequence[Answers] | Sequence[Judgement]) -> list[RatePath]:
    return list(dict.fromkeys(path for part in parts for path in part.rates))


def rate_title(task: Task, path: RatePath) -> str:
    """A rate as a column: the measure's title, else the words under which a summary holds it."""
    for measure in task.measures:
        if measure.path == path:
            return measure.title
    return RATE_TITLES.get(path) or " ".join(path).replace("_", " ")


def _cut_off_table(runs: Sequence[Run], task: Task, judge: str) -> Table | None:
    """The main score of whole answers and of those that were cut off, apart."""
    score = next((score for score in task_scores(runs, task) if score.judge == judge), None)
    if score is None:
        return None
    rows = []
    kinds: list[str] = []
    for run in runs:
        part = run.judgement(task.name, judge)
        kinds += part.by_answer if part else []
    names = list(dict.fromkeys(kinds))
    for index, run in enumerate(runs):
        part = run.judgement(task.name, judge)
        if part is None:
            continue
        rates = [part.by_answer.get(name, {}).get(score.measure.path) for name in names]
        if not all(rates):
            continue  # all of one kind: the main score says it
        cells = [run.name]
        for rate in rates:
            cells += [percent_interval(rate), f"{rate.total:,}" if rate else EMPTY]
        rows.append((index, cells))
    header = ["run"]
    for name in names:
        header += [f"{name}: {score.measure.title}", "n"]
    title = f"{task.title}, answers that were cut off apart"
    note = "A verdict on a truncated answer says little: what would have followed is not known."
    return make_table(f"{title} ({judge_title(judge)})", header, rows, note)


def _training_table(runs: Sequence[Run]) -> Table | None:
    header = ["run", "examples", "steps", "first loss", "last loss", "validation", "tokens/s"]
    rows = [(i, _training_row(run.name, run.training)) for i, run in enumerate(runs)]
    note = "Validation is the best loss on held-out examples."
    return make_table("Training", header, rows, note)


def _training_row(name: str, part: Training | None) -> list[str]:
    return [
        name,
        cell(part, lambda p: number(p.examples, ",.0f")),
        cell(part, lambda p: number(p.total, ",.0f"), lead=True),
        cell(part, lambda p: number(p.first_loss, ".3f")),
        cell(part, lambda p: number(p.last_loss, ".3f")),
        cell(part, lambda p: number(p.best_validation_loss, ".3f")),
        cell(part, lambda p: number(p.tokens_per_second, ",.0f")),
    ]


def _costs_table(runs: Sequence[Run]) -> Table | None:
    """Seconds of training, of each task's answers and of all judging; speed and memory."""
    tasks = [task for task in TASKS.values() if any(task.name in run.answers for run in runs)]
    rows = []
    for index, run in enumerate(runs):
        seconds = [cell(run.training, lambda p: duration(p.seconds))]
        for task in tasks:
            seconds.append(cell(run.answers.get(task.name), lambda p: duration(p.seconds)))
        seconds.append(_judging_seconds(run))
        speeds = [part.new_tokens_per_second for part in run.answers.values()]
        known = [speed for speed in speeds if speed is not None]
        speed = number(min(known, default=None), ",.0f")
        peak = max((part.peak_memory_bytes or 0 for part in run.parts()), default=0)
        memory = f"{peak / 1e9:.1f} GB" if peak else EMPTY
        rows.append((index, [run.name, *seconds, speed, memory]))
    titles = [task.title for task in tasks]
    header = ["run", "training", *titles, "judging", "new tokens/s", "peak memory"]
    note = "New tokens/s are those of the slowest task. Peak memory is the largest of the parts."
    return make_table("Time and memory", header, rows, note)


def _judging_seconds(run: Run) -> str:
    parts = [part for judged in run.judgements.values() for part in judged.values()]
    if any(not part.finished for part in parts):
        return "running"
    known = [part.seconds for part in parts if part.seconds is not None]
    return duration(sum(known)) if known else EMPTY


def _provenance_table(runs: Sequence[Run]) -> Table | None:
    """Versions of the program and fingerprints of the weights, where the summaries have them."""
    found: list[dict[str, list[str]]] = []
    for run in runs:
        values: dict[str, list[str]] = {}
        for part in run.parts():
            for name, value in {**part.settings, **part.environment}.items():
                if name.endswith(PROVENANCE) and value is not None:
                    values.setdefault(name.replace("_", " "), []).append(plain_value(value))
        found.append(values)
    names = list(dict.fromkeys(name for values in found for name in values))
    rows = []
    for index, (run, values) in enumerate(zip(runs, found, strict=True)):
        cells = [" / ".join(dict.fromkeys(values.get(name, [EMPTY]))) for name in names]
        rows.append((index, [run.name, *cells]))
    return make_table("Provenance", ["run", *names], rows)


def rate_cell(part: Answers | Judgement, path: RatePath, show: Callable[[Rate | None], str]) -> str:
    return show(part.rates.get(path)) if part.finished else "running"


def cell(part: P | None, show: Callable[[P], str], lead: bool = False) -> str:
    """`show(part)`; "running" while it is unfinished, with progress if `lead`; '-' without it."""
    if part is None:
        return EMPTY
    if part.finished:
        return show(part)
    return part.progress if lead else "running"
