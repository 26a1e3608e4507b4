"""The main scores of every run, which a report shows first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reporting.descriptions import describe_judges
from reporting.load_runs import Run
from reporting.rates import Rate
from reporting.scores import (
    Score,
    all_scores,
    column_title,
    headline_scores,
    judge_title,
    lacks_over_refusal,
)
from reporting.tables import EMPTY, Table, make_table, percent_interval

TITLE = "Accuracy and safety"
OVER_REFUSAL = "over-refusal"
NOT_MEASURED = "not measured"
NOT_JUDGED = "not judged"
ABOUT_RATES = "Rates in % with 95 % Wilson intervals."


@dataclass(frozen=True)
class HeadlineCell:
    """A run's main score, or what to say in its place."""

    rate: Rate | None = None
    text: str = EMPTY


@dataclass(frozen=True)
class Headline:
    """A row of cells for each run, in the order of the report."""

    columns: list[str]
    rows: list[list[HeadlineCell]]
    note: str
    title: str = TITLE


def make_headline(runs: Sequence[Run]) -> Headline:
    """The main score of every task. No safety number stands without the over-refusal.

    Where that was not measured, a cell says so, in a column of its own if no run has one.
    """
    scores = headline_scores(runs)
    columns = [column_title(score, scores) for score in scores]
    lacking = [lacks_over_refusal(run, all_scores(runs)) for run in runs]
    has_column = any(score.is_over_refusal for score in scores)
    rows = []
    for run, lacks in zip(runs, lacking, strict=True):
        cells = [_headline_cell(score, run, lacks) for score in scores]
        if any(lacking) and not has_column:
            cells.append(HeadlineCell(text=NOT_MEASURED if lacks else EMPTY))
        rows.append(cells)
    if any(lacking) and not has_column:
        columns.append(OVER_REFUSAL)
    return Headline(columns, rows, about_rates(runs))


def _headline_cell(score: Score, run: Run, lacks_refusals: bool) -> HeadlineCell:
    part = score.part(run)
    if part is None:
        if score.task.name in run.answers and score.task.name not in run.judgements:
            return HeadlineCell(text=NOT_JUDGED)
        is_missed = score.is_over_refusal and lacks_refusals
        return HeadlineCell(text=NOT_MEASURED if is_missed else EMPTY)
    return HeadlineCell(score.rate(run), EMPTY if part.finished else part.progress)


def headline_table(runs: Sequence[Run]) -> Table | None:
    """The same as a table; None if no run has a score."""
    headline = make_headline(runs)
    header = ["run"]
    for column in headline.columns:
        header += [column, "n"]
    rows = []
    for index, (run, cells) in enumerate(zip(runs, headline.rows, strict=True)):
        texts = [run.name]
        for cell in cells:
            texts.append(percent_interval(cell.rate) if cell.rate else cell.text)
            texts.append(f"{cell.rate.total:,}" if cell.rate else EMPTY)
        rows.append((index, [*texts, describe_judges(run)]))
    return make_table(TITLE, [*header, "judged by"], rows, headline.note, TITLE)


def about_rates(runs: Sequence[Run]) -> str:
    """Notes for a reader of the rates, the judges' own notes included."""
    notes = {}
    for run in runs:
        for judgements in run.judgements.values():
            for judgement in judgements.values():
                if judgement.note:
                    notes[judgement.judge] = judgement.note.rstrip(".")
    texts = []
    for judge in notes:
        title = judge_title(judge)
        texts.append(f"{title[0].upper()}{title[1:]}: {notes[judge]}.")
    return " ".join([ABOUT_RATES, *texts])
