"""The untouched model at its best, and every tuned run against it.

Of the untouched model's runs in a report, and of the readings of its answers, the kindest counts:
what a tuned model gains over a format that the untouched one misses is no gain in skill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.intervals import mcnemar_test, paired_interval
from data.registry import tasks_of_kind
from data.scoring import METHODS
from reporting.load_runs import Run
from reporting.paired_tables import SECTION, format_p, format_points
from reporting.rates import make_rate
from reporting.run_parts import Answers
from reporting.tables import Table, make_table, percent_interval

ABOUT = (
    "Of the runs without an adapter that have answered most of the same questions, each read as is "
    "best for it ({readings}), the best one on these. The tuned runs are read by the number behind "
    "the last '####'. Only what lies beyond this is a gain in skill; that the best of several was "
    "picked makes it a little too high."
)


@dataclass(frozen=True)
class Yardstick:
    """The best accuracy of an untouched model on some questions, and how it comes about."""

    run: int
    reading: str
    right: dict[str, bool]  # by id, of all that the run has answered

    @property
    def is_first_run(self) -> bool:
        """True if it is the report's first run by the main reading, with which all are paired."""
        return (self.run, self.reading) == (0, METHODS[0])

    @property
    def rate(self) -> float:
        return sum(self.right.values()) / max(1, len(self.right))

    def describe(self, runs: Sequence[Run]) -> str:
        """`23.7 [21.4, 26.0] (plain, read as flexible)`, of all that the run has answered."""
        share = percent_interval(make_rate(sum(self.right.values()), len(self.right)))
        return f"{share} ({runs[self.run].name}, read as {self.reading})"


def untouched_runs(runs: Sequence[Run], task: str) -> list[Yardstick]:
    """Every untouched run's finished answers to a task with a numeric answer, as read best."""
    found = []
    for index, run in enumerate(runs):
        part = run.answers.get(task)
        if part is None or not part.finished or is_tuned(part):
            continue
        rates = {reading: part.rates.get(("accuracy", reading)) for reading in METHODS}
        shares = {reading: rate.rate for reading, rate in rates.items() if rate is not None}
        if shares:
            reading = max(shares, key=lambda name: shares[name])
            found.append(Yardstick(index, reading, part.right(reading)))
    return found


def best_on(
    candidates: Sequence[Yardstick], runs: Sequence[Run], task: str, like: Answers
) -> Yardstick | None:
    """The candidate of the same model that is best on the questions of `like`.

    Those that share most questions with it go before others, however good these are on few. None
    if none shares a question.
    """
    best, best_key = None, (0, 0)
    for candidate in candidates:
        part = runs[candidate.run].answers[task]
        common = common_questions(part, like) if model_of(part) == model_of(like) else []
        key = len(common), sum(candidate.right[name] for name in common)
        if common and (best is None or key > best_key):
            best, best_key = candidate, key
    return best


def best_of_each_model(runs: Sequence[Run], task: str) -> list[Yardstick]:
    """For each untouched model, its best on the questions of the run that answered most."""
    candidates = untouched_runs(runs, task)
    largest: dict[str, Answers] = {}
    for candidate in candidates:
        part = runs[candidate.run].answers[task]
        known = largest.setdefault(model_of(part), part)
        if len(part.records) > len(known.records):
            largest[model_of(part)] = part
    found = [best_on(candidates, runs, task, part) for part in largest.values()]
    return [yardstick for yardstick in found if yardstick is not None]


def is_tuned(part: Answers) -> bool:
    return part.settings.get("adapter") is not None


def model_of(part: Answers) -> str:
    """The fingerprint of the untouched model, or its name where there is none."""
    return str(part.settings.get("model_fingerprint") or part.settings.get("model"))


def common_questions(one: Answers, other: Answers) -> list[str]:
    """The ids under which both have answered the same question."""
    asked = {answer.id: (answer.prompt, answer.gold) for answer in one.records}
    common = []
    for answer in other.records:
        if asked.get(answer.id) == (answer.prompt, answer.gold):
            common.append(answer.id)
    return common


def yardstick_table(runs: Sequence[Run]) -> Table | None:
    """Every tuned run against the untouched model at its best, in pairs.

    Where that is the first run by the main reading there is no row: the paired comparison has it.
    """
    rows: list[tuple[int, tuple[str, ...]]] = []
    notes = {ABOUT.format(readings=", ".join(METHODS)): None}
    for task in tasks_of_kind("skill"):
        candidates = untouched_runs(runs, task.name)
        for index, run in enumerate(runs):
            part = run.answers.get(task.name)
            if part is None or not part.finished or not is_tuned(part):
                continue
            yardstick = best_on(candidates, runs, task.name, part)
            if yardstick is None or yardstick.is_first_run:
                continue
            common = common_questions(runs[yardstick.run].answers[task.name], part)
            cells = _paired_cells(yardstick.right, part.right(METHODS[0]), common)
            rows.append((index, (run.name, task.title, *cells)))
            notes[f"{task.title}: {yardstick.describe(runs)}."] = None
    header = "run|task|n|untouched|this run|points|lost|gained|p".split("|")
    title = "Against the untouched model at its best"
    return make_table(title, header, rows, "\n".join(notes), SECTION)


def _paired_cells(
    before: Mapping[str, bool], after: Mapping[str, bool], common: Sequence[str]
) -> tuple[str, ...]:
    lost = sum(before[name] and not after[name] for name in common)
    gained = sum(after[name] and not before[name] for name in common)
    total = len(common)
    share_before = sum(before[name] for name in common) / total
    share_after = sum(after[name] for name in common) / total
    return (
        f"{total:,}",
        f"{100 * share_before:.1f}",
        f"{100 * share_after:.1f}",
        format_points((gained - lost) / total, paired_interval(lost, gained, total)),
        f"{lost}",
        f"{gained}",
        format_p(mcnemar_test(lost, gained)),
    )
