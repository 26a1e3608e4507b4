"""Votes of several samples a question: their summary read and checked, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from common.errors import UserError
from data.checked import checked, checked_field
from data.registry import TASKS
from data.task import Task
from data.voting import samples_stem
from reporting.rates import Rate, read_rate
from reporting.run_files import read_summary
from reporting.run_parts import Part
from reporting.tables import EMPTY, Table, make_table, percent_interval

if TYPE_CHECKING:
    from reporting.load_runs import Run

ABOUT_VOTES = (
    "K samples a question, apart from the single answers above. single: the mean accuracy of one "
    "sample. maj@K: the answer that most of the K give is right. pass@K: at least one of them is, "
    "which is no accuracy, since nobody says which. 95 % intervals over questions."
)


class ChanceFields(TypedDict):
    """A mean of chances in a summary; see `data.voting.summarise_votes`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Votes(Part):
    """A run's samples for one task. `passes` holds pass@k with its interval, as shares, by k."""

    task: Task
    samples: int = 0
    majority: Rate | None = None
    passes: dict[int, ChanceFields] = field(default_factory=dict)


def read_votes(folder: Path, task: Task) -> Votes | None:
    """The votes on `task` that `folder` holds, if any. UserError for a malformed summary."""
    stem = samples_stem(task)
    path = folder / f"{stem}.summary.json"
    if not path.is_file():
        return None
    summary, common = read_summary(path, stem, stem)
    where = str(path)
    if not common["finished"]:
        planned = checked_field(summary, "planned", int, where)
        done = checked_field(checked_field(summary, "cut_off", dict, where), "total", int, where)
        return Votes(task=task, done=done, total=planned, **common)
    samples = checked_field(summary, "samples", int, where)
    return Votes(
        task=task,
        done=checked_field(summary, "planned", int, where),
        total=checked_field(summary, task.unit, int, where),
        samples=samples,
        majority=read_rate(summary, ("maj",), where),
        passes=_read_passes(summary, samples, where),
        **common,
    )


def _read_passes(summary: Mapping[str, Any], samples: int, where: str) -> dict[int, ChanceFields]:
    passes: dict[int, ChanceFields] = {}
    for name, value in checked_field(summary, "pass", dict[str, dict[str, Any]], where).items():
        place = f"{where}: in pass@{name:.20}"
        chance = checked(value, ChanceFields, place)
        if not name.isdecimal() or not 0 <= chance["low"] <= chance["high"] <= 1:
            raise UserError(f"{place}: expected shares from 0 to 1 by a number of samples")
        passes[int(name)] = chance
    if not {1, samples} <= passes.keys():
        raise UserError(f"{where}: field 'pass' lacks pass@1 or pass@{samples}")
    return passes


def votes_table(runs: Sequence["Run"]) -> Table | None:
    """The votes of every run and task that has some."""
    header = ["run", "task", "K", "questions", "single", "maj@K", "pass@K"]
    rows = []
    for index, run in enumerate(runs):
        for name, votes in run.votes.items():
            rows.append((index, [run.name, TASKS[name].title, *_cells(votes)]))
    return make_table("Votes", header, rows, ABOUT_VOTES)


def _cells(votes: Votes) -> list[str]:
    if not votes.finished:
        return [EMPTY, votes.progress, EMPTY, EMPTY, EMPTY]
    return [
        str(votes.samples),
        f"{votes.total or 0:,}",
        _percent(votes.passes[1]),
        percent_interval(votes.majority),
        _percent(votes.passes[votes.samples]),
    ]


def _percent(chance: ChanceFields) -> str:
    mean, low, high = 100 * chance["mean"], 100 * chance["low"], 100 * chance["high"]
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
