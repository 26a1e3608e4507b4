"""The untouched model at its best, and every tuned run against it.

Of the untouched model's runs in a report, and of the readings of its answers, the kindest counts:
what a tuned model gains over a format that the untouched one misses is no gain in skill.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.intervals import mcnemar_test, paired_interval
from data.registry import TASKS
from data.scoring import METHODS, extract_number
from data.task import Task
from reporting.load_runs import Run
from reporting.paired_tables import SECTION, format_p, format_points
from reporting.rates import Rate
from reporting.run_parts import Answer, Answers
from reporting.tables import Table, make_table, percent_interval

ABOUT = (
    "Of the runs without an adapter, and of the readings of their answers ({readings}), the best "
    "one here. The tuned runs are read by the number behind the last '####'. Only what lies beyond "
    "this is a gain in skill; that the best of several was picked makes it a little too high."
)


@dataclass(frozen=True)
class Yardstick:
    """The best accuracy of an untouched model on a task, and how it comes about."""

    run: int
    reading: str
    rate: Rate

    @property
    def is_first_run(self) -> bool:
        """True if it is the report's first run by the main reading, with which all are paired."""
        return (self.run, self.reading) == (0, METHODS[0])

    def describe(self, runs: Sequence[Run]) -> str:
        return f"{percent_interval(self.rate)} ({runs[self.run].name}, read as {self.reading})"


def yardsticks(runs: Sequence[Run], task: str) -> dict[str, Yardstick]:
    """The best of each untouched model on a task with a numeric answer, by the model."""
    best: dict[str, Yardstick] = {}
    for index, run in enumerate(runs):
        part = run.answers.get(task)
        if part is None or not part.finished or part.settings.get("adapter") is not None:
            continue
        model = model_of(part)
        for reading in METHODS:
            rate = part.rates.get(("accuracy", reading))
            if rate is not None and (model not in best or rate.rate > best[model].rate.rate):
                best[model] = Yardstick(index, reading, rate)
    return best


def model_of(part: Answers) -> str:
    """The fingerprint of the untouched model, or its name where there is none."""
    return str(part.settings.get("model_fingerprint") or part.settings.get("model"))


def right_answers(part: Answers, reading: str) -> dict[str, bool]:
    """By id, whether the number that the reading finds is the gold one."""
    right = {}
    for answer in part.records:
        right[answer.id] = extract_number(answer.response, reading) == answer.gold
    return right


def yardstick_table(runs: Sequence[Run]) -> Table | None:
    """Every tuned run against the yardstick of each task, in pairs.

    A task whose yardstick is the first run by the main reading has no rows: the paired comparison
    has them.
    """
    rows: list[tuple[int, tuple[str, ...]]] = []
    notes = [ABOUT.format(readings=", ".join(METHODS))]
    for task in TASKS.values():
        for model, yardstick in yardsticks(runs, task.name).items():
            own = [] if yardstick.is_first_run else list(_rows(runs, task, model, yardstick))
            rows += own
            if own:
                notes.append(f"{task.title}: {yardstick.describe(runs)}.")
    header = "run|task|n|untouched|this run|points|lost|gained|p".split("|")
    title = "Against the untouched model at its best"
    return make_table(title, header, rows, "\n".join(notes), SECTION)


def _rows(
    runs: Sequence[Run], task: Task, model: str, yardstick: Yardstick
) -> Iterator[tuple[int, tuple[str, ...]]]:
    before = runs[yardstick.run].answers[task.name]
    right_before = right_answers(before, yardstick.reading)
    asked_before = {answer.id: _question(answer) for answer in before.records}
    for index, run in enumerate(runs):
        after = run.answers.get(task.name)
        if after is None or not after.finished or after.settings.get("adapter") is None:
            continue
        if model_of(after) != model:
            continue
        right_after = right_answers(after, METHODS[0])
        common = []
        for answer in after.records:
            if asked_before.get(answer.id) == _question(answer):
                common.append(answer.id)
        if not common:
            continue
        lost = sum(right_before[name] and not right_after[name] for name in common)
        gained = sum(right_after[name] and not right_before[name] for name in common)
        total = len(common)
        share_before = sum(right_before[name] for name in common) / total
        share_after = sum(right_after[name] for name in common) / total
        yield (
            index,
            (
                run.name,
                task.title,
                f"{total:,}",
                f"{100 * share_before:.1f}",
                f"{100 * share_after:.1f}",
                format_points((gained - lost) / total, paired_interval(lost, gained, total)),
                f"{lost}",
                f"{gained}",
                format_p(mcnemar_test(lost, gained)),
            ),
        )


def _question(answer: Answer) -> tuple[str, str | None]:
    return answer.prompt, answer.gold
