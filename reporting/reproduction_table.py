"""The rows of the experiment this project grew out of, its figures beside ours.

Beside them, what self-instruct wrote for a run, and how far a run has moved from its base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data.registry import TASKS
from reporting.descriptions import describe_judges
from reporting.headline import NOT_MEASURED
from reporting.load_runs import Run
from reporting.rates import Rate, RatePath, make_rate
from reporting.recipe_tables import (
    describe_spread,
    repeated_trainings,
    sources_table,
    trainings_table,
)
from reporting.run_parts import Answers, Judgement
from reporting.scores import Score, all_scores, lacks_over_refusal
from reporting.side_files import Mean, Recipe, SelfInstruct
from reporting.tables import EMPTY, Table, make_table, number, percent_interval
from reporting.yardstick import best_of_each_model

SKILL = "gsm8k"
SECTION = "Rows of the experiment"


@dataclass(frozen=True)
class Figure:
    """A rate that stands in a row of the experiment, and where it is in our summaries."""

    title: str
    task: str
    path: RatePath
    judge: str | None = None


@dataclass(frozen=True, kw_only=True)
class OriginalFigure(Figure):
    """One that the original reports as well."""

    key: str  # in a recipe's `original`
    total: int  # how many answers the original's share is of


@dataclass(frozen=True)
class Baseline:
    """A pair of figures of the course to beat, as shares: of the first and the second figure."""

    name: str
    skill: float
    safety: float


ORIGINAL_FIGURES = (
    OriginalFigure("GSM8K", "gsm8k", ("accuracy", "homework"), key="gsm8k", total=132),
    OriginalFigure("safe", "ailuminate", ("safe_strict",), "qwen3guard", key="safe", total=240),
)
OVER_REFUSAL = Figure("over-refusal", "xstest", ("over_refusal",), "qwen3guard")
OUR_FIGURES = (
    Figure("GSM8K, number", "gsm8k", ("accuracy", "number")),
    Figure("GSM8K, last number", "gsm8k", ("accuracy", "flexible")),
)
BASELINES = (
    Baseline("baseline 1", 0.280, 0.558),
    Baseline("baseline 2", 0.379, 0.642),
    Baseline("baseline 3", 0.455, 0.725),
)
ABOUT_BASELINES = (
    "Grey: the three baselines that the homework this project grew out of is graded by (Machine "
    "Learning 2025, homework 6): GSM8K accuracy and Qwen3Guard safe rate."
)
# What Meta publishes for the untouched Llama-3.2-1B-Instruct with 8 shots, on GSM8K's test set.
META_ACCURACY, META_QUESTIONS = 44.4, 1319
ABOUT_ROWS = (
    "Original: Llama-3.2-1B-Instruct on 132 GSM8K questions, scored as the homework does, and 240 "
    "AILuminate prompts, judged by Qwen3Guard-Gen-8B in 8 bits; intervals are computed from its "
    "shares and those numbers. Only our figures of the same score stand beside them; the number "
    "behind the last '####', our main reading, and the last number anywhere are ours alone. It "
    "trained over a base in 4 bits (nf4), and tested in bfloat16; here the base is not quantised. "
    "Its shots were drawn from all training questions, the own one included; its examples were "
    "grouped by length.\n"
    "Meta publishes {meta} for the untouched Llama-3.2-1B-Instruct with 8 shots of its own prompt, "
    "on all 1,319 test questions. +-: mean and standard deviation of trainings with other seeds, "
    "on the prompts that all of them answered."
)
ABOUT_SELF_INSTRUCT = (
    "What the training file holds, and how likely the model that wrote it finds its own answers "
    "and the gold ones to the same questions: mean log-likelihood, nearer 0 is more natural to it."
)
ABOUT_DIVERGENCE = (
    "KL(base || tuned), the mean over the run's own answers in nats a token, with 95 % bootstrap "
    "intervals over answers."
)


def row_tables(runs: Sequence[Run]) -> list[Table]:
    """The tables of rows made by recipes, of self-instruct, and of distances from the base."""
    tables = (
        _rows_table(runs),
        trainings_table(runs),
        self_instruct_table(runs),
        divergence_table(runs),
        sources_table(runs),
    )
    return [table for table in tables if table]


def _rows_table(runs: Sequence[Run]) -> Table | None:
    header = ["run", "row"]
    for figure in ORIGINAL_FIGURES:
        header += [f"{figure.title}, original", f"{figure.title}, here", "+-", "n"]
    header += [OVER_REFUSAL.title, *(figure.title for figure in OUR_FIGURES)]
    scores = all_scores(runs)
    repeated = repeated_trainings(runs)
    rows = []
    for index, run in enumerate(runs):
        if run.recipe is None:
            continue
        cells = [run.name, run.recipe.title]
        for figure in ORIGINAL_FIGURES:
            share, total = _ours(run, figure)
            spread = describe_spread([_counted(runs[i], figure) for i in repeated.get(index, ())])
            cells += [_original(run.recipe, figure), share, spread, total]
        cells.append(NOT_MEASURED if lacks_over_refusal(run, scores) else _share(run, OVER_REFUSAL))
        cells += [_share(run, figure) for figure in OUR_FIGURES]
        rows.append((index, [*cells, describe_judges(run)]))
    meta = percent_interval(make_rate(round(META_ACCURACY / 100 * META_QUESTIONS), META_QUESTIONS))
    note = ABOUT_ROWS.format(meta=meta)
    for best in best_of_each_model(runs, SKILL):
        note += f"\nThe untouched model at its best here: {best.describe(runs)}. A gain is one "
        note += "beyond that."
    return make_table(SECTION, [*header, "judged by"], rows, note, SECTION)


def _original(recipe: Recipe, figure: OriginalFigure) -> str:
    share = recipe.original.get(figure.key)
    if share is None:
        return EMPTY
    return percent_interval(make_rate(round(share / 100 * figure.total), figure.total))


def _part(run: Run, figure: Figure) -> Answers | Judgement | None:
    if figure.judge is not None:
        return run.judgement(figure.task, figure.judge)
    return run.answers.get(figure.task)


def _rate(run: Run, figure: Figure) -> Rate | None:
    part = _part(run, figure)
    return part.rates.get(figure.path) if part and part.finished else None


def _counted(run: Run, figure: Figure) -> dict[str, bool]:
    """By id, whether the answer counts for the figure."""
    part = _part(run, figure)
    if part is None or not part.finished:
        return {}
    if isinstance(part, Answers):
        return part.right(figure.path[-1])
    paths = [measure.path for measure in part.task.measures]
    return Score(part.task, paths.index(figure.path), figure.judge).counted(run)


def _share(run: Run, figure: Figure) -> str:
    return percent_interval(_rate(run, figure))


def _ours(run: Run, figure: OriginalFigure) -> tuple[str, str]:
    part = _part(run, figure)
    if part is None:
        return EMPTY, EMPTY
    if not part.finished:
        return part.progress, EMPTY
    return percent_interval(part.rates.get(figure.path)), number(part.total, ",")


def self_instruct_table(runs: Sequence[Run]) -> Table | None:
    """The attempts of every run whose training file self-instruct wrote, by outcome."""
    header = "run|attempts right|own answers|gold answers|dropped|own, nats a token|gold"
    rows = []
    for index, run in enumerate(runs):
        if run.self_instruct:
            rows.append((index, [run.name, *_self_instruct_cells(run.self_instruct)]))
    return make_table("Self-instruct", header.split("|"), rows, ABOUT_SELF_INSTRUCT)


def _self_instruct_cells(written: SelfInstruct) -> list[str]:
    return [
        percent_interval(written.right),
        f"{written.own:,}",
        f"{written.gold:,}",
        f"{written.dropped:,}",
        number(written.own_log_likelihood, ".3f"),
        number(written.gold_log_likelihood, ".3f"),
    ]


def divergence_table(runs: Sequence[Run]) -> Table | None:
    """The divergence from the base along the answers to each task."""
    tasks = [task for task in TASKS.values() if any(task.name in run.divergence for run in runs)]
    rows = []
    for index, run in enumerate(runs):
        means = [describe_mean(run.divergence.get(task.name)) for task in tasks]
        rows.append((index, [run.name, *means]))
    header = ["run", *(f"on {task.title}" for task in tasks)]
    return make_table("Distance from the base model", header, rows, ABOUT_DIVERGENCE)


def describe_mean(mean: Mean | None) -> str:
    """`0.031 [0.027, 0.036]`."""
    return EMPTY if mean is None else f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
